"""Configurations as users write them: YAML files and `key=value` arguments."""

import copy
import functools
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import InputError
from utils.files import read_bytes
from utils.text import one_line, shown

# Bytes and values (those of aliases counted wherever they stand) of a configuration file; the largest here has 90.
_FILE_BYTES = 1 << 20
_FILE_VALUES = 10_000
# Characters of a library's reason that a message quotes.
_REASON = 300
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\s*=(.*)", re.DOTALL)
# What YAML reads as another number than it looks: 1:30 as 90 (base 60), 010 as 8 (base 8).
_MISLEADING_NUMBER = re.compile(r"[-+]?(\d+(:[0-5]?\d)+(\.\d*)?|0[0-7_]*[1-7][0-7_]*)")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# What PyYAML raises of a value that is not what its tag says, as `!!bool maybe`; and of all else.
_WRONG_TAG = (LookupError, AttributeError)
YAML_ERRORS = (yaml.YAMLError, ValueError, *_WRONG_TAG)


def parse_overrides(tokens: Sequence[str], sections: Collection[str]) -> dict[str, Any]:
    """Turn `key=value` arguments into a table; spaces around `=` and inside values and lists are fine.

    Args:
        sections: what keys begin with.

    Raises:
        InputError: a token that belongs to no key.
    """
    overrides: dict[str, Any] = {}
    queue = list(tokens)
    while queue:
        text = queue.pop(0)
        if "=" not in text and queue and queue[0].lstrip().startswith("="):
            text += queue.pop(0)
        match = _ASSIGNMENT.fullmatch(text.strip())
        if not match:
            raise InputError(f"argument {shown(text)} is not of the form key=value")
        key = match[1]
        value = match[2].strip()
        if not value and queue and not _starts_assignment(queue, sections):
            value = queue.pop(0).strip()
        while queue and _goes_on(value) and not _starts_assignment(queue, sections):
            value += " " + queue.pop(0)
        overrides[key] = _parse_value(key, value)
    return overrides


def _goes_on(value: str) -> bool:
    """Whether a list ends in a later argument."""
    return value.endswith(",") or (value.startswith("[") and value.count("[") > value.count("]"))


def _starts_assignment(queue: Sequence[str], sections: Collection[str]) -> bool:
    """Whether the next tokens set another key, which leaves the current one an empty value."""
    if len(queue) > 1 and queue[1].lstrip().startswith("="):
        return True
    match = _ASSIGNMENT.fullmatch(queue[0].strip())
    return match is not None and match[1].split(".")[0] in sections


def _parse_value(key: str, text: str) -> Any:
    """Lists become lists; everything else stays text, which the key's type then reads."""
    if not text.startswith("["):
        return text
    try:
        return yaml.safe_load(text)
    except (*YAML_ERRORS, RecursionError):
        raise InputError(f"{key}: {shown(text)} is not a list") from None


def read_yaml(path: Path) -> dict[Any, Any]:
    """The content of a configuration file.

    Raises:
        InputError: it is missing, or not a YAML file with keys.
    """
    try:
        text = read_bytes(path, _FILE_BYTES).decode("utf-8-sig")
        content = copy.deepcopy(_parse(text, path))
    except FileNotFoundError:
        raise InputError(f"configuration not found: {path}") from None
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path} is not a configuration: it is nested too deep") from None
    except OSError as error:
        raise InputError(f"configuration cannot be read: {path}: {error.strerror}") from None
    except _WRONG_TAG:
        raise InputError(f"{path} is not YAML: a value is not of the type that its tag (!!) says") from None
    except (*YAML_ERRORS, OmegaConfBaseException) as error:
        raise InputError(f"{path} is not YAML: {one_line(error, _REASON)}") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} is not a configuration: it holds no keys")
    return content


@functools.lru_cache(maxsize=8)
def _parse(text: str, path: Path) -> Any:
    """The content of the text of a file; parsing takes longest of all, and programs may read a file many times."""
    if _count_values(yaml.compose(text, yaml.SafeLoader)) > _FILE_VALUES:
        raise InputError(f"{path} is not a configuration: it holds more than {_FILE_VALUES} values")
    _check_numbers(text, path)
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


def read_kept_yaml(text: object) -> Any:
    """The content of a YAML text that a file keeps; None for what cannot be read."""
    if not isinstance(text, str) or len(text) > _FILE_BYTES:
        return None
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None or _count_values(node) > _FILE_VALUES:
            return None
        return yaml.SafeLoader("").construct_document(node)
    except (*YAML_ERRORS, RecursionError):
        return None


def _check_numbers(text: str, path: Path) -> None:
    """Raises InputError for a number of a YAML text that YAML reads as another one than it looks."""
    resolver = yaml.SafeLoader("")
    for event in yaml.parse(text, yaml.SafeLoader):
        if not isinstance(event, yaml.ScalarEvent) or not _MISLEADING_NUMBER.fullmatch(event.value):
            continue
        if event.implicit[0] and resolver.resolve(yaml.ScalarNode, event.value, (True, False)) in _NUMBER_TAGS:
            raise InputError(
                f"{path}: YAML reads {shown(event.value)} as a number of base 60 (colons) or 8 (a zero in front): "
                "write a decimal number, or quotes if it is text"
            )


def _count_values(node: yaml.Node | None, counted: dict[int, int] | None = None) -> int:
    """Values at and below a node, those of an alias counted wherever it stands.

    Raises:
        RecursionError: nested too deep, or an alias of what it stands in.
    """
    counted = {} if counted is None else counted
    if id(node) not in counted:
        children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else []
        children += node.value if isinstance(node, yaml.SequenceNode) else []
        counted[id(node)] = 1 + sum(_count_values(child, counted) for child in children)
    return counted[id(node)]

"""Values of a configuration as users write them, read by what their fields declare: paths, lists, texts, booleans."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from utils.errors import InputError
from utils.fields import is_path
from utils.files import expand_path
from utils.hub import is_hub_address
from utils.sections import holds_numbers, is_section, keys_of
from utils.text import shown

_INTEGER = re.compile(r"[-+]?\d+")
# Characters of a number: Python reads no text of thousands as one.
_LONGEST_NUMBER = 1000
# Texts that are no number, and mean none.
_NOTHING = ("", "null")
# What stands for no value elsewhere, and would name a file here.
_NO_PATHS = ("null", "none", "nil")


def is_empty(value: Any, kind: Any) -> bool:
    """Whether nothing stands where a key of this type needs a value."""
    if value is None:
        return type(None) not in get_args(kind)
    return value == "???" or (kind in (int, float, bool) and value in _NOTHING)


def read_values(given: Any, owner: Any, prefix: str = "") -> Any:
    """The same values with paths expanded and lists that are written without brackets as lists.

    Raises:
        InputError: a path cannot be expanded, or a text or boolean is another value; the message names the key.
    """
    if not isinstance(given, dict):
        return given
    read = dict(given)
    for name, key in keys_of(owner).items():
        if name not in given:
            continue
        path = f"{prefix}{name}"
        if is_section(key.kind):
            read[name] = read_values(given[name], key.kind, f"{path}.")
        elif holds_numbers(key.kind):
            read[name] = _read_numbers(given[name], path)
        elif key.kind == list[int | list[int]]:
            read[name] = [_read_numbers(item, path) for item in _read_items(given[name], path)]
        elif get_origin(key.kind) is list:
            read[name] = _read_list(given[name], path)
        elif is_path(key.declared):
            read[name] = _expand(_read_path(given[name], path), path)
        elif key.kind is str or get_origin(key.kind) is Literal:
            _check_text(given[name], path)
        elif bool in (key.kind, *get_args(key.kind)):
            _check_boolean(given[name], path)
    return read


def _check_text(value: Any, key: str) -> None:
    if isinstance(value, list):
        raise InputError(f"{key} is a list, where only a text can stand")
    if isinstance(value, bool):
        raise InputError(f"{key} is {value}, which YAML also reads from on, off, yes and no: write it in quotes")


def _check_boolean(value: Any, key: str) -> None:
    if _INTEGER.fullmatch(str(value)) and str(value) not in ("0", "1"):
        raise InputError(f"{key} is {shown(value)}; it must be true or false")


def _read_path(value: Any, key: str) -> str:
    text = str(value).strip()
    if text.lower() in _NO_PATHS:
        raise InputError(f"{key} is {shown(value)}, which is no path here: leave it empty for none, or write ./{text}")
    if not isinstance(value, str):
        raise InputError(f"{key} is {shown(value)}, not a path: write it in quotes if a file is named so")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        raise InputError(f"{key} is {shown(value)}, with quotes as part of the name: leave them out")
    return value


def _read_list(value: Any, key: str) -> list[Any]:
    items = _read_items(value, key)
    inner = next((item for item in items if isinstance(item, list | dict)), None)
    if inner is not None:
        raise InputError(f"{key} holds a {_kind(inner)} inside a list, where only single values can stand")
    return items


def _kind(value: list[Any] | dict[Any, Any]) -> str:
    return "list" if isinstance(value, list) else "section"


def _read_items(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise InputError(f"{key} is {shown(value)}, not a list of values")
    if None in value:
        raise InputError(f"{key} holds an empty item: give it a value, or take it out")
    return value


def _read_numbers(value: Any, key: str) -> Any:
    """A whole number or a list of such, of what may be text; what is neither is left to the check of values."""
    if isinstance(value, list) or (isinstance(value, str) and "," in value):
        return [_read_number(item) for item in _read_list(value, key)]
    return _read_number(value)


def _read_number(value: Any) -> Any:
    if isinstance(value, str) and len(value) < _LONGEST_NUMBER and _INTEGER.fullmatch(value.strip()):
        return int(value)
    return value


def _expand(text: str, key: str) -> str:
    """A path with what `expand_path` replaces; other paths, and addresses on the hub, as they are written."""
    if is_hub_address(text):
        return text
    try:
        expanded = expand_path(text)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    return text if expanded == Path(text) else str(expanded)

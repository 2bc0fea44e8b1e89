"""Process set-up for the entry scripts: the typed configuration, seeds, precision and error messages.

Not a packaging script: the project runs from its folder.
"""

import argparse
import dataclasses
import difflib
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.dataset import DataConfig, check_image_config
from data.loader import LoaderConfig
from evaluation.metrics import check_metric_names
from geometry.paths import VideoConfig, check_video_config
from model import ModelConfig, check_model_config, unread_keys
from model.execution import ExecutionConfig, check_execution_config
from model.loss import LossConfig
from training.optim import OptimConfig, check_optim_config
from utils.checkpoint import CheckpointConfig, check_checkpoint_config
from utils.cli import path_argument
from utils.errors import InputError
from utils.fields import bounded, check_ranges, file_path, is_path
from utils.files import expand_path, read_bytes
from utils.hub import is_hub_address
from utils.parallel import cores_of_process
from utils.text import printable, shown

log = logging.getLogger("lvsm")

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WITHOUT_EFFECT = ("use_rel_pose", "center_crop")
_SECTIONS = ("model", "training", "inference")
# What other projects call our keys.
_OTHER_NAMES = {
    "learning_rate": "training.lr",
    "batch_size": "training.batch_size_per_gpu",
    "epochs": "training.train_steps",
    "save_every": "training.checkpoint_every",
    "output_dir": "inference_out_dir",
}
# Bytes and values (those of aliases counted wherever they stand) of a configuration file; the largest here has 90.
_FILE_BYTES = 1 << 20
# Other values of these than those of training give the model other inputs than it learned from.
_SEEN_BY_THE_MODEL = (
    "training.pose_normalization",
    "training.scene_scale_factor",
    "training.square_crop",
    "model.image_tokenizer.image_size",
)
_FILE_VALUES = 10_000
# Characters of a library's reason that a message quotes.
_REASON = 300
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\s*=(.*)", re.DOTALL)
# What YAML reads as another number than it looks: 1:30 as 90 (base 60), 010 as 8 (base 8).
_MISLEADING_NUMBER = re.compile(r"[-+]?(\d+(:[0-5]?\d)+(\.\d*)?|0[0-7_]*[1-7][0-7_]*)")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_INTEGER = re.compile(r"[-+]?\d+")
# What stands for no value elsewhere, and would name a file here.
_NO_PATHS = ("null", "none", "nil")


@dataclass(frozen=True)
class TrainingConfig(DataConfig, LoaderConfig, LossConfig, OptimConfig, CheckpointConfig, ExecutionConfig):
    """The `training` section: its parts' keys (see the base classes) and those of the run itself."""

    batch_size_per_gpu: int = bounded(8, 1, 65_536)
    grad_accum_steps: int = bounded(1, 1, 65_536)
    total_batch_size: int = bounded(0, 0, 1_000_000)
    dynamic_input_view_num: bool = False
    use_amp: bool = True
    amp_dtype: str = "bf16"
    use_tf32: bool = True
    seed: int = bounded(777, 0, 2**63 - 1)
    distributed_timeout_minutes: float = bounded(10.0, 0, 10_000, open_below=True)
    max_unusable_share: float = bounded(0.01, 0, 1)
    max_consecutive_skips: int = bounded(100, 0, 1_000_000_000)
    num_threads: int = bounded(8, 1, 4096)
    dataset_name: str = "data.dataset_scene.Dataset"
    resume_ckpt: str = file_path("")
    reset_training_state: bool = False
    print_every: int = bounded(20, 1, 1_000_000_000)
    vis_every: int = bounded(1000, 1, 1_000_000_000)
    validate_every: int = bounded(0, 0, 1_000_000_000)
    validation_path: str = file_path("")
    validation_index: str = file_path("")
    log_grad_norm_details: bool = False
    wandb_log_every: int = bounded(50, 1, 1_000_000_000)
    wandb_project: str = "LVSM"
    wandb_exp_name: str = "LVSM"
    api_key_path: str = file_path("./configs/api_keys.yaml")
    use_rel_pose: bool | None = None
    center_crop: bool | None = None


@dataclass(frozen=True)
class InferenceConfig:
    """The `inference` section. `metrics`, `allow_missing` and `nearest_input` are this project's own keys."""

    if_inference: bool = True
    compute_metrics: bool = True
    generate_website: bool = True
    render_video: bool = False
    view_idx_file_path: str = file_path("./data/evaluation_index_re10k.json")
    render_video_config: VideoConfig = field(default_factory=VideoConfig)
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim", "lpips"])
    allow_missing: bool = False
    nearest_input: bool = False


@dataclass(frozen=True)
class Config:
    """A whole configuration file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    inference_out_dir: str = file_path("./experiments/evaluation")


def load_config(argv: Sequence[str]) -> tuple[Config, set[str]]:
    """Read `--config FILE key=value ...`.

    Returns:
        The configuration, and the dotted keys that the command line set.

    Raises:
        InputError: names the file or key that is missing, unknown or of the wrong type.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(
        "--config", type=path_argument, required=True, action="append", help="a YAML file, see configs/"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, e.g. training.lr=1e-4")
    arguments = parser.parse_intermixed_args(argv)
    if len(arguments.config) > 1:
        raise InputError(
            f"--config is given {len(arguments.config)} times: name one file and change its keys by key=value"
        )
    overrides = parse_overrides(arguments.overrides)
    config = build_config(read_yaml(arguments.config[0]), overrides)
    return config, set(overrides)


def build_config(content: Mapping[Any, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then the content of a YAML file, then dotted overrides, checked.

    Raises:
        InputError: names the key that is unknown (and the nearest known one) or has a wrong value.
    """
    try:
        given = OmegaConf.create({key: value or {} if key in _SECTIONS else value for key, value in content.items()})
        _check_keys(OmegaConf.to_container(given), Config)
        for key, value in (overrides or {}).items():
            _check_keys(_nested(key, value), Config)
            OmegaConf.update(given, key, value)
        read = _read_texts(OmegaConf.to_container(given), Config)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), read))
    except OmegaConfBaseException as error:
        reason = printable(str(error).splitlines()[0], _REASON)
        raise InputError(f"{printable(error.full_key or 'configuration', _REASON)}: {reason}") from None
    except RecursionError:
        raise InputError("configuration: values nested, or naming one another, without end") from None
    assert isinstance(config, Config)
    _check_values(config)
    return config


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` arguments into a table; spaces around `=` and inside values and lists are fine.

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
        key, value = match[1], match[2].strip()
        if not value and queue and not _starts_assignment(queue):
            value = queue.pop(0).strip()
        while queue and _goes_on(value) and not _starts_assignment(queue):
            value += " " + queue.pop(0)
        overrides[key] = _parse_value(key, value)
    return overrides


def _goes_on(value: str) -> bool:
    """Whether a list ends in a later argument."""
    return value.endswith(",") or (value.startswith("[") and value.count("[") > value.count("]"))


def _starts_assignment(queue: Sequence[str]) -> bool:
    """Whether the next tokens set another key, which leaves the current one an empty value."""
    if len(queue) > 1 and queue[1].lstrip().startswith("="):
        return True
    match = _ASSIGNMENT.fullmatch(queue[0].strip())
    return match is not None and match[1].split(".")[0] in get_type_hints(Config)


def _parse_value(key: str, text: str) -> Any:
    """Lists become lists; everything else stays text, which the key's type then reads."""
    if not text.startswith("["):
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise InputError(f"{key}: {shown(text)} is not a list") from None


def read_yaml(path: Path) -> dict[Any, Any]:
    """The content of a configuration file.

    Raises:
        InputError: it is missing, or not a YAML file with keys.
    """
    try:
        text = read_bytes(path, _FILE_BYTES).decode("utf-8-sig")
        if _count_values(yaml.compose(text, yaml.SafeLoader)) > _FILE_VALUES:
            raise InputError(f"{path} is not a configuration: it holds more than {_FILE_VALUES} values")
        _check_numbers(text, path)
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except FileNotFoundError:
        raise InputError(f"configuration not found: {path}") from None
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path} is not a configuration: it is nested too deep") from None
    except OSError as error:
        raise InputError(f"configuration cannot be read: {path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} is not YAML: {printable(' '.join(str(error).split()), _REASON)}") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} is not a configuration: it holds no keys")
    return content


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


def warn_of_other_values(config: Config, stored: object, path: Path, also: Sequence[str] = ()) -> None:
    """Warn of each key that decides what the model sees and that a checkpoint was trained with another value of.

    The keys `also` are looked at, too. `stored` is the YAML text that a checkpoint keeps of its configuration; what
    cannot be read says nothing.
    """
    if not isinstance(stored, str) or len(stored) > _FILE_BYTES:
        return
    try:
        if _count_values(yaml.compose(stored, yaml.SafeLoader)) > _FILE_VALUES:
            return
        trained = yaml.safe_load(stored)
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    given = dataclasses.asdict(config)
    for key in (*_SEEN_BY_THE_MODEL, *also):
        before, now = _value_at(trained, key), _value_at(given, key)
        if isinstance(before, bool | int | float | str) and before != now:
            log.warning("%s is %s, but %s was trained with %s", key, shown(now), path, shown(before))


def _value_at(content: object, key: str) -> object:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


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


def _read_texts(given: Any, owner: Any, prefix: str = "") -> Any:
    """The same values with paths expanded and lists that are written without brackets as lists.

    Raises:
        InputError: a path cannot be expanded, or a text or boolean is another value; the message names the key.
    """
    if not isinstance(given, dict):
        return given
    kinds, read = get_type_hints(owner), dict(given)
    for declared in dataclasses.fields(owner):
        value, kind, key = given.get(declared.name), kinds[declared.name], f"{prefix}{declared.name}"
        if dataclasses.is_dataclass(kind) and declared.name in given:
            read[declared.name] = _read_texts(value, kind, f"{key}.")
        elif get_origin(kind) is list and declared.name in given:
            read[declared.name] = _read_list(value, key)
        elif is_path(declared) and declared.name in given:
            read[declared.name] = _expand(_read_path(value, key), key)
        elif kind is str and isinstance(value, bool):
            raise InputError(f"{key} is {value}, which YAML also reads from on, off, yes and no: write it in quotes")
        elif bool in (kind, *get_args(kind)):
            _check_boolean(value, key)
    return read


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


def _read_list(value: Any, key: str) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        raise InputError(f"{key} is {shown(value)}, not a list of values")
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


def _nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _check_keys(given: Any, owner: Any, prefix: str = "") -> None:
    """Raises InputError for the first key that `owner` (a dataclass) does not have, or that has no value."""
    known = get_type_hints(owner)
    if not isinstance(given, dict):
        raise InputError(f"{prefix[:-1]} is a section (with {', '.join(known)}), not a value")
    for key, value in given.items():
        if key not in known:
            name = printable(f"{prefix}{key}", _REASON)
            raise InputError(f"unknown key {name}{_nearest(name)}")
        if value == "???":
            raise InputError(f"{prefix}{key} is '???', which stands for no value: give it one, or leave the key out")
        if dataclasses.is_dataclass(known[key]):
            _check_keys(value, known[key], f"{prefix}{key}.")


def _nearest(key: str) -> str:
    """A hint at the known key that is meant: the last part decides, and of like ones those of the same section."""
    section, last, leaves = key.split(".")[0], key.rsplit(".", 1)[-1], list(_leaves(Config))
    known = {name: name for leaf in leaves for name in (leaf, leaf.rsplit(".", 1)[0])} | _OTHER_NAMES

    def likeness(name: str) -> float:
        ratio = difflib.SequenceMatcher(None, last, name.rsplit(".", 1)[-1]).ratio()
        return ratio + 0.1 * known[name].startswith(f"{section}.")

    close = max(known, key=likeness)
    if likeness(close) < 0.7:
        return f"; the sections are {', '.join(get_type_hints(Config))}"
    return f"; did you mean {known[close]}?"


def _leaves(owner: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(owner).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_values(config: Config) -> None:
    training = config.training
    check_ranges(config)
    for key, path in (
        ("training.dataset_path", training.dataset_path),
        ("training.checkpoint_dir", training.checkpoint_dir),
        ("inference.view_idx_file_path", config.inference.view_idx_file_path),
        ("inference_out_dir", config.inference_out_dir),
    ):
        if not path.strip():
            raise InputError(f"{key} is empty: name a file or folder")
    if config.inference.compute_metrics and not config.inference.metrics:
        raise InputError("inference.metrics names no metric: inference.compute_metrics=false asks for none")
    check_model_config(config.model)
    check_image_config(training)
    check_optim_config(training)
    check_execution_config(training)
    check_checkpoint_config(training)
    check_metric_names(config.inference.metrics)
    check_video_config(config.inference.render_video_config)
    if training.amp_dtype not in _AMP_DTYPES:
        raise InputError(f"training.amp_dtype is {shown(training.amp_dtype)}; known: {', '.join(_AMP_DTYPES)}")
    if training.dataset_name != "data.dataset_scene.Dataset":
        raise InputError(f"training.dataset_name is {shown(training.dataset_name)}; known: data.dataset_scene.Dataset")
    for key in _WITHOUT_EFFECT:
        if getattr(training, key) is not None:
            log.warning("training.%s has no effect and is ignored", key)
    for key in unread_keys(config.model):
        log.warning("%s has no effect on this variant", key)


def output_folder(text: str, key: str) -> Path:
    """The folder of its own that a run writes to; `key` named it.

    Raises:
        InputError: it is the root of the file system or the home folder, as a variable that is empty makes it.
    """
    folder = Path(text)
    if folder.resolve() in {Path(folder.resolve().anchor), Path("~").expanduser().resolve()}:
        raise InputError(f"{key} is {shown(text)}, not a folder of its own: name one that may be filled with files")
    return folder


def set_threads_and_precision(cfg: TrainingConfig) -> None:
    """CPU threads (never more than this process's share of the cores) and TF32 on GPUs."""
    torch.set_num_threads(min(cfg.num_threads, cores_of_process()))
    torch.set_float32_matmul_precision("high" if cfg.use_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = cfg.use_tf32


def autocast(cfg: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The precision that `use_amp` and `amp_dtype` ask for."""
    dtype = amp_dtype(cfg)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def amp_dtype(cfg: TrainingConfig) -> torch.dtype:
    """The type in which matrix products run."""
    return _AMP_DTYPES[cfg.amp_dtype] if cfg.use_amp else torch.float32

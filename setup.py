"""Process set-up for the entry scripts: the typed configuration, seeds, precision and error messages.

Not a packaging script: the project runs from its folder.
"""

import argparse
import dataclasses
import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.dataset import DataConfig, check_image_config
from data.loader import LoaderConfig
from model import ModelConfig, check_model_config, unread_keys
from model.execution import ExecutionConfig, check_execution_config
from model.loss import LossConfig
from utils.checkpoint import CheckpointConfig, check_checkpoint_config
from utils.errors import InputError
from utils.metrics import check_metric_names
from utils.optim import OptimConfig, check_optim_config
from utils.parallel import cores_of_process
from utils.paths import VideoConfig, check_video_config

log = logging.getLogger("lvsm")

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WITHOUT_EFFECT = ("use_rel_pose", "center_crop")
_POSITIVE = "batch_size_per_gpu grad_accum_steps print_every vis_every wandb_log_every num_threads"
_AT_LEAST = dict.fromkeys([*_POSITIVE.split(), "prefetch_factor"], 1) | dict.fromkeys(
    ["num_workers", "seed", "validate_every", "total_batch_size"], 0
)
_SECTIONS = ("model", "training", "inference")
# What other projects call our keys.
_OTHER_NAMES = {
    "learning_rate": "training.lr",
    "batch_size": "training.batch_size_per_gpu",
    "epochs": "training.train_steps",
    "save_every": "training.checkpoint_every",
    "output_dir": "inference_out_dir",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\s*=(.*)", re.DOTALL)


@dataclass(frozen=True)
class TrainingConfig(DataConfig, LoaderConfig, LossConfig, OptimConfig, CheckpointConfig, ExecutionConfig):
    """The `training` section: its parts' keys (see the base classes) and those of the run itself."""

    batch_size_per_gpu: int = 8
    grad_accum_steps: int = 1
    total_batch_size: int = 0
    dynamic_input_view_num: bool = False
    use_amp: bool = True
    amp_dtype: str = "bf16"
    use_tf32: bool = True
    seed: int = 777
    distributed_timeout_minutes: float = 10.0
    max_unusable_share: float = 0.01
    num_threads: int = 8
    dataset_name: str = "data.dataset_scene.Dataset"
    resume_ckpt: str = ""
    reset_training_state: bool = False
    print_every: int = 20
    vis_every: int = 1000
    validate_every: int = 0
    validation_path: str = ""
    validation_index: str = ""
    log_grad_norm_details: bool = False
    wandb_log_every: int = 50
    wandb_project: str = "LVSM"
    wandb_exp_name: str = "LVSM"
    api_key_path: str = "./configs/api_keys.yaml"
    use_rel_pose: bool | None = None
    center_crop: bool | None = None


@dataclass(frozen=True)
class InferenceConfig:
    """The `inference` section. `metrics`, `allow_missing` and `nearest_input` are this project's own keys."""

    if_inference: bool = True
    compute_metrics: bool = True
    generate_website: bool = True
    render_video: bool = False
    view_idx_file_path: str = "./data/evaluation_index_re10k.json"
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
    inference_out_dir: str = "./experiments/evaluation"


def load_config(argv: Sequence[str]) -> tuple[Config, set[str]]:
    """Read `--config FILE key=value ...`.

    Returns:
        The configuration, and the dotted keys that the command line set.

    Raises:
        InputError: names the file or key that is missing, unknown or of the wrong type.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, e.g. training.lr=1e-4")
    arguments = parser.parse_intermixed_args(argv)
    overrides = parse_overrides(arguments.overrides)
    config = build_config(read_yaml(arguments.config), overrides)
    return config, set(overrides)


def build_config(content: Mapping[Any, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then the content of a YAML file, then dotted overrides, checked.

    Raises:
        InputError: names the key that is unknown (and the nearest known one) or has a wrong value.
    """
    given = OmegaConf.create({key: value or {} if key in _SECTIONS else value for key, value in content.items()})
    try:
        _check_keys(OmegaConf.to_container(given), Config)
        for key, value in (overrides or {}).items():
            _check_keys(_nested(key, value), Config)
            OmegaConf.update(given, key, value)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), given))
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None
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
            raise InputError(f"argument {text!r} is not of the form key=value")
        key, value = match[1], match[2].strip()
        if not value and queue and not _starts_assignment(queue):
            value = queue.pop(0).strip()
        while value.startswith("[") and value.count("[") > value.count("]") and queue:
            value += " " + queue.pop(0)
        overrides[key] = _parse_value(key, value)
    return overrides


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
    except yaml.YAMLError:
        raise InputError(f"{key}: {text!r} is not a list") from None


def read_yaml(path: Path) -> dict[Any, Any]:
    """The content of a configuration file.

    Raises:
        InputError: it is missing, or not a YAML file with keys.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise InputError(f"configuration not found: {path}") from None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a configuration: it holds no keys")
    return content


def _nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _check_keys(given: Any, owner: Any, prefix: str = "") -> None:
    """Raises InputError for the first key that `owner` (a dataclass) does not have."""
    known = get_type_hints(owner)
    if not isinstance(given, dict):
        raise InputError(f"{prefix[:-1]} is a section (with {', '.join(known)}), not a value")
    for key, value in given.items():
        if key not in known:
            raise InputError(f"unknown key {prefix}{key}{_nearest(f'{prefix}{key}')}")
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
    check_model_config(config.model)
    check_image_config(training)
    check_optim_config(training)
    check_execution_config(training)
    check_checkpoint_config(training)
    check_metric_names(config.inference.metrics)
    check_video_config(config.inference.render_video_config)
    for key, least in _AT_LEAST.items():
        if getattr(training, key) < least:
            raise InputError(f"training.{key} is {getattr(training, key)}; it must be at least {least}")
    if training.amp_dtype not in _AMP_DTYPES:
        raise InputError(f"training.amp_dtype is {training.amp_dtype!r}; known: {', '.join(_AMP_DTYPES)}")
    if training.dataset_name != "data.dataset_scene.Dataset":
        raise InputError(f"training.dataset_name is {training.dataset_name!r}; known: data.dataset_scene.Dataset")
    for key in _WITHOUT_EFFECT:
        if getattr(training, key) is not None:
            log.warning("training.%s has no effect and is ignored", key)
    for key in unread_keys(config.model):
        log.warning("%s has no effect on this variant", key)


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

"""Process set-up for the entry scripts: the typed configuration, threads and precision.

Not a packaging script: the project runs from its folder.
"""

import argparse
import dataclasses
import difflib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.dataset import DataConfig
from data.loader import LoaderConfig
from data.views import Selection, check_input_counts, check_view_config
from evaluation.evaluator import EvaluationConfig
from evaluation.renderer import Renderer, finished_renderer
from evaluation.validation import ValidationConfig
from geometry.image_size import ImageSize, is_size, size_fault, size_text
from geometry.normalization import PoseNormalization
from geometry.paths import check_video_config
from model import LVSM, ModelConfig, build_model, check_model_config, unread_keys
from model.execution import ExecutionConfig, prepare_compiler
from model.function import function_of, load_weights, with_function
from model.loss import LossConfig, term_weights
from training.averaging import AveragingConfig
from training.incidents import IncidentsConfig
from training.metrics_log import MetricsLogConfig
from training.optim import OptimConfig
from training.restoring import RestoringConfig
from training.trainer import TrainerConfig
from utils.checkpoint import CheckpointConfig, choose_weights, find_checkpoint, read_checkpoint
from utils.cli import path_argument
from utils.config_file import parse_overrides, read_kept_yaml, read_yaml
from utils.config_values import is_empty, read_values
from utils.distributed import Process, ProcessConfig
from utils.errors import InputError
from utils.fields import file_path, range_of
from utils.hub import is_hub_address
from utils.parallel import cores_of_process
from utils.precision import PrecisionConfig, set_tf32
from utils.sections import Composed, check_values, distribute, flat_type, flatten, is_section, keys_of, leaves
from utils.text import printable, shown
from viewer.config import ViewerConfig

log = logging.getLogger("lvsm")

_SECTIONS = ("model", "training", "inference", "viewer")
# What other projects call our keys.
_OTHER_NAMES = {
    "learning_rate": "training.lr",
    "batch_size": "training.batch_size_per_gpu",
    "epochs": "training.train_steps",
    "save_every": "training.checkpoint_every",
    "output_dir": "inference_out_dir",
}
# Other values of these than those of training give the model other inputs than it learned from.
_SEEN_BY_THE_MODEL = (
    "training.pose_normalization",
    "training.scene_scale_factor",
    "training.pose_scale",
    "training.background",
    "training.square_crop",
)
_SIZE = "model.image_tokenizer.image_size"
_SIZES = "training.image_sizes"
# What positions may be multiplied by.
_POSE_SCALES: Any = range_of(DataConfig.__dataclass_fields__["pose_scale"])
# What weights were trained with that do not say it, such as published ones.
_UNLESS_SAID: dict[str, Any] = {"training.pose_normalization": "all_views"}
# Characters of a library's reason that a message quotes.
_REASON = 300


@dataclass(frozen=True)
class PublishedConfig:
    """Keys of the published files that change nothing here."""

    dataset_name: Literal["data.dataset_scene.Dataset"] = "data.dataset_scene.Dataset"
    use_rel_pose: bool | None = None
    center_crop: bool | None = None


@dataclass(frozen=True)
class TrainingConfig(Composed):
    """The `training` section: `training.lr` is a field of `optim`, and so on."""

    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    restoring: RestoringConfig = field(default_factory=RestoringConfig)
    metrics_log: MetricsLogConfig = field(default_factory=MetricsLogConfig)
    incidents: IncidentsConfig = field(default_factory=IncidentsConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    published: PublishedConfig = field(default_factory=PublishedConfig)


@dataclass(frozen=True)
class InvocationConfig:
    """A key of the published files that changes nothing: running inference.py means inference."""

    if_inference: bool = True


@dataclass(frozen=True)
class InferenceConfig(Composed):
    """The `inference` section."""

    invocation: InvocationConfig = field(default_factory=InvocationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class Config:
    """A whole configuration file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    viewer: ViewerConfig = field(default_factory=ViewerConfig)
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
    overrides = parse_overrides(arguments.overrides, keys_of(Config))
    return build_config(read_yaml(arguments.config[0]), overrides), set(overrides)


def read_config(path: Path, overrides: Sequence[str]) -> Config:
    """A configuration file with `key=value` overrides.

    Raises:
        InputError: names the file or key that is missing, unknown or of the wrong type.
    """
    return build_config(read_yaml(path), parse_overrides(overrides, keys_of(Config)))


def build_config(content: Mapping[Any, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then the content of a YAML file, then dotted overrides, checked.

    Raises:
        InputError: names the key that is unknown (and the nearest known one) or has a wrong value.
    """
    try:
        given = {key: {} if value is None and key in _SECTIONS else value for key, value in content.items()}
        _check_keys(given, Config)
        for key, value in (overrides or {}).items():
            _check_keys(_nested(key, value), Config)
            given = _with_value(given, key.split("."), value)
        merged = OmegaConf.merge(_defaults(Config), read_values(given, Config))
        values: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = printable(str(error).splitlines()[0], _REASON)
        raise InputError(f"{printable(error.full_key or 'configuration', _REASON)}: {reason}") from None
    except RecursionError:
        raise InputError("configuration: values nested, or naming one another, without end") from None
    check_values(Config, values)
    config = distribute(Config, values)
    _check_values(config)
    return config


@functools.cache
def _defaults(kind: type) -> Any:
    """What a configuration says that says nothing, of the types that its values must have."""
    return OmegaConf.merge(OmegaConf.structured(flat_type(kind)), flatten(kind()))


def with_training(config: Config, **values: Any) -> Config:
    """The configuration with other values in its `training` section, by the names that users write."""
    training = distribute(TrainingConfig, flatten(config.training) | values)
    return dataclasses.replace(config, training=training)


def with_function_of(config: Config, model: LVSM) -> Config:
    """The configuration that says what the model computes, whatever it was built from."""
    return dataclasses.replace(config, model=with_function(config.model, function_of(model)))


def with_pose_normalization(config: Config, trained: object = None, source: object = "") -> Config:
    """The configuration with the pose normalisation of training, where it leaves that open (`auto`).

    Where that is `none`, the scale of positions is that of training, too, unless the configuration names one.

    Args:
        trained: the configuration that a checkpoint keeps (`read_kept_yaml`). What cannot be read, or does not say it,
            such as a published file, counts as the paper's: all views.
        source: the checkpoint's file, for messages.

    Raises:
        InputError: it was trained with one that is not known, or with a scale that cannot be.
    """
    key = "training.pose_normalization"
    if config.training.data.pose_normalization != "auto":
        return config
    value = _trained_with(trained, key)
    if value not in get_args(PoseNormalization):
        known = ", ".join(get_args(PoseNormalization))
        raise InputError(f"{source} was trained with {key}={shown(value)}: set the key to one of {known}")
    config = with_training(config, pose_normalization=value)
    return _with_pose_scale(config, trained, source) if value == "none" else config


def _with_pose_scale(config: Config, trained: object, source: object) -> Config:
    """The configuration with the scale of positions of training, unless it names one itself."""
    key = "training.pose_scale"
    scale = _value_at(trained, key)
    if scale is None or config.training.data.pose_scale != 1:
        return config
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not _POSE_SCALES.admits(scale):
        raise InputError(
            f"{source} was trained with {key}={shown(scale)}: set training.pose_normalization=none and {key}"
        )
    return with_training(config, pose_scale=float(scale))


def with_fixed_background(config: Config, process: Process) -> Config:
    """The configuration with white where it says `random`, which is for training alone; says so."""
    if config.training.data.background != "random":
        return config
    if process.is_main:
        log.info("training.background=random is for training alone: what is rendered and scored here is on white")
    return with_training(config, background="white")


def owners(config: Config) -> dict[str, Any]:
    """Every owner's config by the owner's name, and values that have no owner."""
    return {
        "model": config.model,
        **vars(config.training),
        **vars(config.inference),
        "inference_out_dir": config.inference_out_dir,
    }


def config_text(config: Config) -> str:
    """The configuration as YAML, as a run folder and its checkpoints keep it."""
    return OmegaConf.to_yaml(OmegaConf.create(flatten(config)))


def warn_of_other_values(
    config: Config, trained: object, path: Path, also: Sequence[str] = (), sizes: Mapping[str, ImageSize] | None = None
) -> None:
    """Warn of each key that decides what the model sees and that a checkpoint was trained with another value of.

    The keys `also` are looked at, too. Weights that do not say their pose normalisation were trained as published.

    Args:
        trained: the configuration that a checkpoint keeps (`read_kept_yaml`); what cannot be read says nothing.
        sizes: of images, by their keys; None: the model's.
    """
    given = flatten(config)
    for key in (*_SEEN_BY_THE_MODEL, *also):
        before = _trained_with(trained, key)
        now = _value_at(given, key)
        if isinstance(before, bool | int | float | str) and before != now:
            log.warning("%s is %s, but %s was trained with %s", key, shown(now), path, shown(before))
    _warn_of_other_sizes(sizes or {_SIZE: config.model.image_tokenizer.image_size}, trained, path)


def _warn_of_other_sizes(sizes: Mapping[str, ImageSize], trained: object, path: Path) -> None:
    """Warn of each size, by its key, that is none of those in a checkpoint's configuration, if that names any."""
    given = _value_at(trained, _SIZES) or [_value_at(trained, _SIZE)]
    known = [size_text(size) for size in given if is_size(size)] if isinstance(given, list) else []
    for key, size in sizes.items():
        if known and size_text(size) not in known:
            log.warning(
                "%s is %s, but %s was trained with %s", key, size_text(size), path, printable(", ".join(known), _REASON)
            )


def _trained_with(trained: object, key: str) -> object:
    """The value of a key in a checkpoint's configuration, or what weights have that do not say it; None if unknown."""
    value = _value_at(trained, key)
    return _UNLESS_SAID.get(key) if value in (None, "auto") else value


def _value_at(content: object, key: str) -> object:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _with_value(content: object, path: Sequence[str], value: Any) -> dict[Any, Any]:
    """Content with another value at a path; where the path leads through no section, it does from then on."""
    section = content if isinstance(content, dict) else {}
    first, *rest = path
    return section | {first: _with_value(section.get(first), rest, value) if rest else value}


def _check_keys(given: Any, owner: Any, prefix: str = "") -> None:
    """Raises InputError for the first key that a dataclass lacks, that is empty, or that wrongly holds keys."""
    known = keys_of(owner)
    if not isinstance(given, dict):
        raise InputError(f"{prefix[:-1]} is a section (with {', '.join(known)}), not a value")
    for key, value in given.items():
        if key not in known:
            name = printable(f"{prefix}{key}", _REASON)
            raise InputError(f"unknown key {name}{_nearest(name)}")
        if is_empty(value, known[key].kind):
            raise InputError(f"{prefix}{key} is empty: give it a value, or leave the key out")
        if is_section(known[key].kind):
            _check_keys(value, known[key].kind, f"{prefix}{key}.")
        elif isinstance(value, dict):
            what = "list" if get_origin(known[key].kind) is list else "value"
            raise InputError(f"{prefix}{key} is a {what}, not a section: set it as a whole")


def _nearest(key: str) -> str:
    """A hint at the known key that is meant: the last part decides, and of like ones those of the same section."""
    section = key.split(".")[0]
    last = key.rsplit(".", 1)[-1]
    known = {name: name for leaf, _ in leaves(Config) for name in (leaf, leaf.rsplit(".", 1)[0])} | _OTHER_NAMES

    def likeness(name: str) -> float:
        ratio = difflib.SequenceMatcher(None, last, name.rsplit(".", 1)[-1]).ratio()
        return ratio + 0.1 * known[name].startswith(f"{section}.")

    close = max(known, key=likeness)
    if likeness(close) < 0.7:
        return f"; the sections are {', '.join(keys_of(Config))}"
    return f"; did you mean {known[close]}?"


def _check_values(config: Config) -> None:
    for key, path in (
        ("training.dataset_path", config.training.data.dataset_path),
        ("training.checkpoint_dir", config.training.checkpoint.checkpoint_dir),
        ("inference.view_idx_file_path", config.inference.evaluation.view_idx_file_path),
        ("inference_out_dir", config.inference_out_dir),
        ("viewer.out_dir", config.viewer.out_dir),
    ):
        if not path.strip():
            raise InputError(f"{key} is empty: name a file or folder")
    if not config.viewer.host.strip():
        raise InputError("viewer.host is empty: name an address, 127.0.0.1 for this machine alone")
    evaluation = config.inference.evaluation
    if evaluation.compute_metrics and not evaluation.metrics:
        raise InputError("inference.metrics names no metric: inference.compute_metrics=false asks for none")
    with _below("model"):
        check_model_config(config.model)
    _check_shape({_SIZE: config.model.image_tokenizer.image_size}, config.training.data.square_crop)
    with _below("training"):
        check_input_counts(config.training.data)
    with _below("inference.render_video_config"):
        check_video_config(evaluation.render_video_config)
    for name, value in flatten(config.training.published).items():
        if name != "dataset_name" and value is not None:
            log.warning("training.%s has no effect and is ignored", name)
    for key in unread_keys(config.model):
        log.warning("%s has no effect on this variant", key)


def _check_shape(sizes: Mapping[str, ImageSize], square_crop: bool) -> None:
    """Raises InputError for sizes, by their keys, that name a shape to which no image is cut."""
    for key, size in sizes.items():
        if isinstance(size, list) and not square_crop:
            raise InputError(
                f"{key} names both sides, to which training.square_crop=false would not cut: leave "
                "training.square_crop out, or give the shorter side alone"
            )


def check_training(config: Config) -> None:
    """Check what only training asks for.

    Raises:
        InputError: values that nothing can be trained with; the message names the keys.
    """
    cfg = config.training
    if is_hub_address(cfg.checkpoint.checkpoint_dir):
        raise InputError(
            f"training.checkpoint_dir is {shown(cfg.checkpoint.checkpoint_dir)}, but the run's own folder is meant: "
            "name published weights as training.resume_ckpt"
        )
    if not any(term_weights(cfg.loss).values()):
        raise InputError("every training.*_loss_weight is 0: nothing would be learned")
    if cfg.trainer.validate_every and not (cfg.validation.validation_path and cfg.validation.validation_index):
        raise InputError("training.validate_every needs training.validation_path and training.validation_index")
    if cfg.trainer.validate_every and cfg.averaging.weights == "ema" and not cfg.averaging.ema_decay:
        raise InputError(
            "training.weights=ema leaves nothing to validate while training.ema_decay is 0: set training.ema_decay, "
            "or leave training.weights out"
        )
    if cfg.precision.use_amp and cfg.precision.amp_dtype == "fp16":
        raise InputError("training.amp_dtype=fp16 would need loss scaling: train with bf16 or fp32")
    if cfg.data.pose_scale != 1 and cfg.data.pose_normalization != "none":
        raise InputError(
            f"training.pose_scale is {cfg.data.pose_scale:g}, which only training.pose_normalization=none reads: "
            "set that, or leave pose_scale out"
        )
    with _below("training"):
        check_view_config(cfg.data)
    _check_sizes(config)


def sizes_of_training(config: Config) -> dict[str, ImageSize]:
    """The sizes of images that training takes, by their keys."""
    several = config.training.data.image_sizes
    if not several:
        return {_SIZE: config.model.image_tokenizer.image_size}
    return {f"{_SIZES}[{place}]": size for place, size in enumerate(several)}


def _check_sizes(config: Config) -> None:
    """Raises InputError for sizes that nothing can be trained with; warns if nothing is trained at that of scores."""
    size = config.model.image_tokenizer.image_size
    sizes = sizes_of_training(config)
    _check_shape(sizes, config.training.data.square_crop)
    for key, one in sizes.items():
        if fault := size_fault(one, config.model.image_tokenizer.patch_size):
            raise InputError(f"{key} {fault}")
    if size_text(size) not in map(size_text, sizes.values()):
        log.warning("%s is %s, which validation and evaluation take: %s lacks it", _SIZE, size_text(size), _SIZES)


def check_view_counts(config: Config, overridden: set[str], selection: Selection, where: str) -> None:
    """Raises InputError if the command line asks for other view counts than the index gives."""
    data = config.training.data
    inputs = len(selection.context)
    targets = len(selection.target)
    counts = {"num_input_views": inputs, "num_target_views": targets, "num_views": inputs + targets}
    for key, count in counts.items():
        if f"training.{key}" in overridden and getattr(data, key) != count:
            raise InputError(
                f"training.{key}={getattr(data, key)} contradicts {where}, which has {count}: "
                "leave it out, the index decides"
            )


def with_accumulation(config: Config, world_size: int) -> Config:
    """The configuration with `grad_accum_steps` such that an update sees `total_batch_size` scenes, if that is set.

    Raises:
        InputError: the total is no multiple of what all processes see at once, or both keys are set.
    """
    cfg = config.training.trainer
    scenes = config.training.loader.batch_size_per_gpu
    if not cfg.total_batch_size:
        return config
    if cfg.grad_accum_steps != 1:
        raise InputError("training.grad_accum_steps follows from training.total_batch_size: set only one of them")
    steps, rest = divmod(cfg.total_batch_size, scenes * world_size)
    if rest:
        raise InputError(
            f"training.total_batch_size={cfg.total_batch_size} is no multiple of batch_size_per_gpu x processes "
            f"({scenes} x {world_size}): make it a multiple of {scenes * world_size}"
        )
    return with_training(config, grad_accum_steps=steps)


def scenes_per_update(cfg: TrainingConfig, world_size: int) -> int:
    """Scenes that all processes together learn from in an update."""
    return cfg.loader.batch_size_per_gpu * world_size * cfg.trainer.grad_accum_steps


@contextmanager
def _below(section: str) -> Iterator[None]:
    """Name the section of the field with which the message of an owner's check begins."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}.{error}") from None


def output_folder(text: str, key: str) -> Path:
    """The folder of its own that a run writes to; `key` named it.

    Raises:
        InputError: it is the root of the file system or the home folder, as a variable that is empty makes it.
    """
    folder = Path(text)
    if folder.resolve() in {Path(folder.resolve().anchor), Path("~").expanduser().resolve()}:
        raise InputError(f"{key} is {shown(text)}, not a folder of its own: name one that may be filled with files")
    return folder


def load_renderer(config: Config, process: Process) -> tuple[Renderer, Path, Config]:
    """The configured model with weights of `training.checkpoint_dir`, their file, and the completed configuration.

    That is the configuration with what it left open (`auto`) as the weights have it, and no random background.

    Raises:
        InputError: no checkpoint, an unreadable one, one of another model, or one without the average asked for.
    """
    named = config.training.checkpoint.checkpoint_dir
    path = process.first_on_machine(lambda: find_checkpoint(named, "training.checkpoint_dir"))
    model = build_model(config.model, config.training.execution)
    choice = config.training.averaging.weights
    content, weights = choose_weights(read_checkpoint(path), choice, path, "training.weights", process.is_main)
    load_weights(model, content, path, config.training.restoring.allow_other_function)
    config = with_training(with_function_of(config, model), weights=weights)
    trained = read_kept_yaml(content.get("config"))
    config = with_pose_normalization(config, trained, path)
    if process.is_main:
        warn_of_other_values(config, trained, path)
    config = with_fixed_background(config, process)
    return finished_renderer(model, config.training.precision, process.device), path, config


def choose_threads(asked: int, spared: int) -> int:
    """Threads for the model: never more than this process's share of the cores, less those `spared`; at least 1."""
    return max(1, min(asked, cores_of_process() - spared))


def set_threads_and_precision(cfg: TrainingConfig, spared: int = 0) -> None:
    """CPU threads, TF32 on GPUs, the compiler's settings; cores `spared` are for other work of this process."""
    torch.set_num_threads(choose_threads(cfg.process.num_threads, spared))
    set_tf32(cfg.precision)
    prepare_compiler(cfg.execution)

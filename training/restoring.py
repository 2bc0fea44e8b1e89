"""What a training run goes on from."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import LVSM
from model.function import load_weights
from training.averaging import AveragedWeights
from training.optim import load_optimizer
from utils.checkpoint import (
    AVERAGE,
    TrainingState,
    WeightsChoice,
    choose_weights,
    find_checkpoint,
    held_average,
    newest_readable,
    read_checkpoint,
    training_state,
)
from utils.distributed import Process
from utils.errors import MisfitError
from utils.fields import file_path
from utils.random_state import set_random_state
from utils.text import counted

log = logging.getLogger("lvsm")


@dataclass(frozen=True)
class RestoringConfig:
    """The checkpoint to start from, and whether only its weights count.

    `allow_other_function` lets a run go on from weights that were trained as another variant, or with cameras seen in
    another way, if they fit. `reset_training_state`, which starts anew from weights, always does.
    """

    resume_ckpt: str = file_path("")
    reset_training_state: bool = False
    allow_other_function: bool = False


@dataclass(frozen=True)
class Start:
    """Where training begins: updates done, samples seen."""

    step: int = 0
    samples: int = 0


def restore(
    cfg: RestoringConfig,
    folder: Path,
    process: Process,
    model: LVSM,
    optimizer: torch.optim.AdamW,
    *,
    average: AveragedWeights | None,
    weights: WeightsChoice,
    scenes_per_update: int,
    check_stored: Callable[[object, Path], None],
) -> Start:
    """Load what training goes on from.

    The newest checkpoint of the run's `folder` that can be used comes first, then `resume_ckpt` (with
    `reset_training_state`, its weights alone).

    Args:
        average: goes on from what the checkpoint holds of it.
        weights: which of a checkpoint's are taken if only weights are.
        scenes_per_update: scenes that all processes together learn from in an update, now.
        check_stored: is shown the configuration that the checkpoint keeps, and its file; on the main process alone.

    Raises:
        InputError: checkpoints that are broken, of another model, or without training state though it is needed.
    """

    loaded = _load_own(cfg, folder, process, model) or _load_named(cfg, process, model, weights)
    if loaded is None:
        return Start()
    if process.is_main:
        check_stored(loaded.content.get("config"), loaded.path)
    if cfg.reset_training_state and not loaded.own:
        log.info("weights from %s, training starts anew", loaded.path)
        return Start()
    if cfg.reset_training_state:
        log.warning("training.reset_training_state has no effect: the run in %s has begun and goes on", folder)
    state = training_state(loaded.content, loaded.path)
    _restore_state(state, loaded.path, process, optimizer)
    _restore_average(average, loaded, process)
    if process.is_main:
        _log_resumed(state, loaded.path, scenes_per_update)
    return Start(state.step, state.samples)


def _restore_state(state: TrainingState, path: Path, process: Process, optimizer: torch.optim.AdamW) -> None:
    """Give the optimiser its moments and this process its random numbers."""
    load_optimizer(optimizer, state.optimizer, path)
    # Of another number of ranks they say nothing.
    if len(state.random_states) == process.world_size:
        set_random_state(state.random_states[process.rank])


@dataclass(frozen=True)
class _Loaded:
    """A checkpoint whose weights the model has; `own`: it lay in the run folder."""

    path: Path
    content: dict[str, Any]
    own: bool


def _load_own(cfg: RestoringConfig, folder: Path, process: Process, model: LVSM) -> _Loaded | None:
    """Load the newest checkpoint of the run folder that can be used: the main process chooses, the others follow."""

    def load(content: dict[str, Any], path: Path) -> None:
        try:
            load_weights(model, content, path, cfg.allow_other_function)
        except MisfitError as error:
            hint = "go on with the model of this run folder, or choose another training.checkpoint_dir"
            raise MisfitError(f"{error}; {hint}") from None

    found = newest_readable(folder, load) if process.is_main else None
    path = process.broadcast(found and found[0])
    if path is None:
        return None
    if found is not None:
        return _Loaded(path, found[1], True)
    content = read_checkpoint(path)
    load(content, path)
    return _Loaded(path, content, True)


def _load_named(cfg: RestoringConfig, process: Process, model: LVSM, weights: WeightsChoice) -> _Loaded | None:
    """Load the checkpoint that `training.resume_ckpt` names, if it names one."""
    if not cfg.resume_ckpt:
        return None
    path = process.first_on_machine(lambda: find_checkpoint(cfg.resume_ckpt, "training.resume_ckpt"))
    content = read_checkpoint(path)
    if cfg.reset_training_state:
        content, _ = choose_weights(content, weights, path, "training.weights", process.is_main)
    load_weights(model, content, path, cfg.allow_other_function or cfg.reset_training_state)
    return _Loaded(path, content, False)


def _restore_average(average: AveragedWeights | None, loaded: _Loaded, process: Process) -> None:
    """Give the average of weights what the checkpoint holds of it, with a word where only one of the two is there."""
    path = loaded.path
    if average is None:
        if AVERAGE in loaded.content and process.is_main:
            log.warning("%s holds an average of weights, which is dropped: training.ema_decay is 0", path)
        return
    held = held_average(loaded.content, path, "training.ema_decay=0")
    if held is not None:
        average.load(held, f"{path}, its average of weights,")
    elif process.is_main:
        log.warning("%s holds no average of weights: training.ema_decay averages from its weights on", path)


def _log_resumed(state: TrainingState, path: Path, scenes_per_update: int) -> None:
    """Log what goes on, and whether the samples of an update are as many as they were."""
    log.info("going on from %s: %s, %s", path, counted(state.step, "update"), counted(state.samples, "sample"))
    before = state.samples / max(1, state.step)
    if state.step and before != scenes_per_update:
        log.warning(
            "scenes an update: %g on average before, %d now; going on at sample %d",
            before,
            scenes_per_update,
            state.samples,
        )

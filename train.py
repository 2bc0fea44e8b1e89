"""Train an LVSM.

    python train.py --config configs/LVSM_scene_decoder_only.yaml
    torchrun --nproc_per_node 8 train.py --config configs/LVSM_scene_decoder_only.yaml training.lr=4e-4

The run folder is `training.checkpoint_dir`; running the same command again goes on from its newest checkpoint.
"""

import dataclasses
import datetime
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.dataset import EvaluationDataset, TrainingDataset, ViewLoader
from data.loader import TrainingLoader, evaluation_batches
from evaluation.metrics import build_metrics
from evaluation.rendering import Renderer, average_scores, find_items, whole
from model import LVSM, build_model, training_flops
from model.flops import peak_flops
from model.loss import Loss, build_loss, vgg19_path
from model.perceptual import fetch_vgg19
from model.weights import load_published
from setup import (
    Config,
    TrainingConfig,
    check_training,
    config_text,
    load_config,
    output_folder,
    set_threads_and_precision,
    warn_of_other_values,
    with_training,
)
from training.journal import Journal
from training.optim import build_optimizer, load_optimizer
from training.tracking import Tracker, start_wandb
from training.trainer import Trainer
from utils.checkpoint import TrainingState, find_checkpoint, newest_readable, read_checkpoint, training_state
from utils.cli import run_main
from utils.distributed import Process, describe_device, process_group
from utils.errors import InputError, MisfitError
from utils.files import append_json_line, write_text
from utils.lock import only_run
from utils.provenance import provenance
from utils.random_state import seed_everything, set_random_state
from utils.sections import flatten
from utils.stop_signal import Interruption
from utils.watchdog import Watch

log = logging.getLogger("lvsm")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training begins: updates done, samples seen."""

    step: int = 0
    samples: int = 0


def restore(config: Config, process: Process, model: LVSM, optimizer: torch.optim.AdamW) -> Start:
    """Load what training goes on from.

    The newest checkpoint of the run folder that can be used comes first, then `resume_ckpt` (with
    `reset_training_state`, its weights alone).

    Raises:
        InputError: checkpoints that are broken, of another model, or without training state though it is needed.
    """
    cfg = config.training

    def load_own(content: dict[str, Any], path: Path) -> None:
        load_weights(model, content, path, True)

    found = newest_readable(Path(cfg.checkpoint.checkpoint_dir), load_own) if process.is_main else None
    own = process.broadcast(found and found[0])
    if own is None and not cfg.restoring.resume_ckpt:
        return Start()
    if own is not None and cfg.restoring.reset_training_state:
        log.warning("reset_training_state has no effect: this run has begun, %s goes on", cfg.checkpoint.checkpoint_dir)
    path = own or process.first_on_machine(lambda: find_checkpoint(cfg.restoring.resume_ckpt, "training.resume_ckpt"))
    content = found[1] if found else read_checkpoint(path)
    if found is None:
        load_weights(model, content, path, own is not None)
    if process.is_main:
        also = [] if cfg.restoring.reset_training_state else ["training.seed"]
        warn_of_other_values(config, content.get("config"), path, also)
    if own is None and cfg.restoring.reset_training_state:
        log.info("weights from %s, training starts anew", path)
        return Start()
    state = training_state(content, path)
    load_optimizer(optimizer, state.optimizer, path)
    # Of another number of ranks they say nothing.
    if len(state.random_states) == process.world_size:
        set_random_state(state.random_states[process.rank])
    if process.is_main:
        say_where(cfg, process, state, path)
    return Start(state.step, state.samples)


def load_weights(model: LVSM, state: dict[str, Any], path: Path, own: bool) -> None:
    """Load a checkpoint's weights; where the run folder's `own` are of another model, the error tells of the folder."""
    try:
        load_published(model, state["model"], path)
    except MisfitError as error:
        if not own:
            raise
        hint = "or choose another training.checkpoint_dir, since this run folder is of another model"
        raise MisfitError(f"{error}; {hint}") from None


def say_where(cfg: TrainingConfig, process: Process, state: TrainingState, path: Path) -> None:
    """Log what goes on, and whether the samples of an update are as many as they were."""
    log.info("going on from %s: %d updates, %d samples", path, state.step, state.samples)
    before = state.samples / max(1, state.step)
    now = scenes_an_update(cfg, process)
    if state.step and before != now:
        log.warning(
            "the batch was %g scenes on average and is %d now: going on at sample %d", before, now, state.samples
        )


def prepare_loss(cfg: TrainingConfig, process: Process) -> Loss:
    """The loss on the process's device; one process a machine fetches VGG-19 if it is needed and missing."""

    def make() -> Loss:
        if cfg.loss.perceptual_loss_weight and not vgg19_path(cfg.loss).exists():
            fetch_vgg19(vgg19_path(cfg.loss))
        return build_loss(cfg.loss, cfg.execution)

    return process.first_on_machine(make).to(process.device)


def prepare_folder(config: Config, process: Process, origin: dict[str, Any], start: Start) -> Tracker:
    """Record the start in the run folder and open the places where numbers go."""
    cfg, wandb_run = config.training, None
    folder = Path(cfg.checkpoint.checkpoint_dir)
    if process.is_main:
        write_text(folder / "config.yaml", origin["config"])
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        begun = {"time": now, "step": start.step, "processes": process.world_size}
        append_json_line(folder / "starts.jsonl", begun | origin["provenance"])
        wandb_run = start_wandb(
            project=cfg.metrics_log.wandb_project,
            name=cfg.metrics_log.wandb_exp_name,
            folder=folder,
            config=flatten(config),
            key_file=Path(cfg.metrics_log.api_key_path),
        )
    return Tracker(folder, process, wandb_run)


def build_trainer(config: Config, process: Process) -> Trainer:
    """Build every part of a run and restore its state.

    Raises:
        InputError: data, weights or values that cannot be used.
    """
    given, config = config, with_accumulation(config, process.world_size)
    cfg, tokenizer = config.training, config.model.image_tokenizer
    interruption = Interruption(process)
    patience = cfg.process.patience
    set_threads_and_precision(cfg)
    seed_everything(cfg.trainer.seed + process.rank)
    fast = cfg.data.image_resize == "fast"
    dataset = TrainingDataset(ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size, fast), cfg.trainer.seed)
    loss = prepare_loss(cfg, process)
    model = build_model(config.model, cfg.execution).to(process.device)
    optimizer = build_optimizer(model, cfg.optim)
    start = restore(config, process, model, optimizer)
    origin = {"config": config_text(given), "provenance": provenance()}
    tracker = prepare_folder(config, process, origin, start)
    if process.is_main:
        _say(cfg, process, model, len(dataset.scenes))
    return Trainer(
        cfg.trainer,
        process,
        data=cfg.data,
        optim=cfg.optim,
        precision=cfg.precision,
        checkpoint=cfg.checkpoint,
        metrics_log=cfg.metrics_log,
        model=model,
        loss=loss,
        optimizer=optimizer,
        loader=TrainingLoader(
            dataset,
            cfg.loader,
            cfg.loader.batch_size_per_gpu,
            process.rank,
            process.world_size,
            start.samples,
            patience,
        ),
        tracker=tracker,
        journal=build_journal(config, process, start),
        interruption=interruption,
        watch=Watch(process, stalled_after=patience / 2),
        origin=origin,
        validation=build_validation(config, process, model, interruption) if cfg.trainer.validate_every else None,
        step=start.step,
    )


def build_validation(
    config: Config, process: Process, model: LVSM, interruption: Interruption
) -> Callable[[], dict[str, float]]:
    """A function that scores the scenes of `validation_path` with the views of `validation_index`.

    Raises:
        InputError: one of the two is missing or names what is not there.
    """
    cfg, tokenizer = config.training, config.model.image_tokenizer
    index_path, list_path = Path(cfg.validation.validation_index), Path(cfg.validation.validation_path)
    outside = cfg.data.allow_outside_images
    keys = ("training.validation_index", "training.validation_path")
    found = find_items(index_path, list_path, False, outside, keys) if process.is_main else None
    items, _ = process.broadcast(found)
    dataset = EvaluationDataset(ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size), items)
    renderer = Renderer(model, cfg.precision, process.device)
    metrics = build_metrics(["psnr", "ssim"], process.device, tokenizer.image_size)

    def validate() -> dict[str, float]:
        batches = evaluation_batches(
            dataset,
            cfg.loader,
            cfg.loader.batch_size_per_gpu,
            process.rank,
            process.world_size,
            cfg.process.patience,
        )
        return average_scores(renderer, metrics, whole(interruption.until_requested(batches)), process)

    return validate


def build_journal(config: Config, process: Process, start: Start) -> Journal:
    """The run's journal, with the arithmetic of a square sample."""
    cfg = config.training
    flops = training_flops(config.model, cfg.data.num_input_views, cfg.data.num_target_views)
    peak, folder = peak_flops(process.device), Path(cfg.checkpoint.checkpoint_dir)
    limits = (cfg.metrics_log.max_unusable_share, cfg.metrics_log.max_consecutive_skips)
    return Journal(folder, process, start.samples, flops, peak, *limits)


def with_accumulation(config: Config, world_size: int) -> Config:
    """The configuration with `grad_accum_steps` such that an update sees `total_batch_size` scenes, if that is set.

    Raises:
        InputError: the total is no multiple of what all processes see at once, or both keys are set.
    """
    cfg, scenes = config.training.trainer, config.training.loader.batch_size_per_gpu
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


def scenes_an_update(cfg: TrainingConfig, process: Process) -> int:
    """Scenes that all processes together learn from in an update."""
    return cfg.loader.batch_size_per_gpu * process.world_size * cfg.trainer.grad_accum_steps


def _say(cfg: TrainingConfig, process: Process, model: LVSM, num_scenes: int) -> None:
    total = scenes_an_update(cfg, process)
    log.info(
        "%s, %.1f M parameters, %s; %d scenes; batch %d x %d processes x %d accumulated = %d scenes an update",
        type(model).__name__,
        sum(p.numel() for p in model.parameters()) / 1e6,
        describe_device(process.device),
        num_scenes,
        cfg.loader.batch_size_per_gpu,
        process.world_size,
        cfg.trainer.grad_accum_steps,
        total,
    )


def main(argv: Sequence[str]) -> None:
    """Build and run."""
    config, _ = load_config(argv)
    check_training(config)
    folder = output_folder(config.training.checkpoint.checkpoint_dir, "training.checkpoint_dir")
    with (
        process_group(config.training.process.distributed_timeout_minutes) as process,
        only_run(process, folder, "training.checkpoint_dir"),
    ):
        trainer = build_trainer(config, process)
        try:
            trainer.run()
        finally:
            trainer.close()


if __name__ == "__main__":
    run_main(main)

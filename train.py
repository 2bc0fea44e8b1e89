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
from omegaconf import OmegaConf

from data.dataset import EvaluationDataset, TrainingDataset, ViewLoader
from data.loader import TrainingLoader, evaluation_batches
from evaluation.metrics import build_metrics
from evaluation.rendering import Renderer, average_scores, find_items, whole
from model import LVSM, build_model
from model.flops import peak_flops, training_flops
from model.loss import Loss, build_loss, vgg19_path
from model.perceptual import fetch_vgg19
from model.weights import load_published
from setup import Config, TrainingConfig, load_config, output_folder, set_threads_and_precision, warn_of_other_values
from training.journal import Journal
from training.optim import build_optimizer, load_optimizer
from training.tracking import Tracker, start_wandb
from training.trainer import Trainer
from utils.checkpoint import TrainingState, find_checkpoint, newest_readable, read_checkpoint, training_state
from utils.cli import run_main
from utils.distributed import Process, describe_device, process_group
from utils.errors import InputError, MisfitError
from utils.files import append_json_line, write_text
from utils.hub import is_hub_address
from utils.lock import only_run
from utils.provenance import provenance
from utils.random_state import seed_everything, set_random_state
from utils.stop_signal import Interruption
from utils.text import shown
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

    found = newest_readable(Path(cfg.checkpoint_dir), load_own) if process.is_main else None
    own = process.broadcast(found and found[0])
    if own is None and not cfg.resume_ckpt:
        return Start()
    if own is not None and cfg.reset_training_state:
        log.warning("reset_training_state has no effect: this run has begun, %s goes on", cfg.checkpoint_dir)
    path = own or process.first_on_machine(lambda: find_checkpoint(cfg.resume_ckpt, "training.resume_ckpt"))
    content = found[1] if found else read_checkpoint(path)
    if found is None:
        load_weights(model, content, path, own is not None)
    if process.is_main:
        warn_of_other_values(config, content.get("config"), path, [] if cfg.reset_training_state else ["training.seed"])
    if own is None and cfg.reset_training_state:
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
    now = cfg.batch_size_per_gpu * process.world_size * cfg.grad_accum_steps
    if state.step and before != now:
        log.warning(
            "the batch was %g scenes on average and is %d now: going on at sample %d", before, now, state.samples
        )


def prepare_loss(cfg: TrainingConfig, process: Process) -> Loss:
    """The loss on the process's device; one process a machine fetches VGG-19 if it is needed and missing."""

    def make() -> Loss:
        if cfg.perceptual_loss_weight and not vgg19_path(cfg).exists():
            fetch_vgg19(vgg19_path(cfg))
        return build_loss(cfg, cfg)

    return process.first_on_machine(make).to(process.device)


def prepare_folder(config: Config, process: Process, origin: dict[str, Any], start: Start) -> Tracker:
    """Record the start in the run folder and open the places where numbers go."""
    cfg, wandb_run = config.training, None
    folder = Path(cfg.checkpoint_dir)
    if process.is_main:
        write_text(folder / "config.yaml", origin["config"])
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        begun = {"time": now, "step": start.step, "processes": process.world_size}
        append_json_line(folder / "starts.jsonl", begun | origin["provenance"])
        wandb_run = start_wandb(
            project=cfg.wandb_project,
            name=cfg.wandb_exp_name,
            folder=folder,
            config=dataclasses.asdict(config),
            key_file=Path(cfg.api_key_path),
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
    patience = cfg.distributed_timeout_minutes * 60
    set_threads_and_precision(cfg)
    seed_everything(cfg.seed + process.rank)
    fast = cfg.image_resize == "fast"
    dataset = TrainingDataset(ViewLoader(cfg, tokenizer.image_size, tokenizer.patch_size, fast), cfg.seed)
    loss = prepare_loss(cfg, process)
    model = build_model(config.model, cfg).to(process.device)
    optimizer = build_optimizer(model, cfg)
    start = restore(config, process, model, optimizer)
    origin = {"config": OmegaConf.to_yaml(OmegaConf.structured(given)), "provenance": provenance()}
    tracker = prepare_folder(config, process, origin, start)
    if process.is_main:
        _say(cfg, process, model, len(dataset.scenes))
    return Trainer(
        cfg,
        process,
        model=model,
        loss=loss,
        optimizer=optimizer,
        loader=TrainingLoader(
            dataset, cfg, cfg.batch_size_per_gpu, process.rank, process.world_size, start.samples, patience
        ),
        tracker=tracker,
        journal=build_journal(config, process, start),
        interruption=interruption,
        watch=Watch(process, stalled_after=patience / 2),
        origin=origin,
        validation=build_validation(config, process, model, interruption) if cfg.validate_every else None,
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
    index_path, list_path = Path(cfg.validation_index), Path(cfg.validation_path)
    outside = cfg.allow_outside_images
    keys = ("training.validation_index", "training.validation_path")
    found = find_items(index_path, list_path, False, outside, keys) if process.is_main else None
    items, _ = process.broadcast(found)
    dataset = EvaluationDataset(ViewLoader(cfg, tokenizer.image_size, tokenizer.patch_size), items)
    renderer = Renderer(model, cfg, process.device)
    metrics = build_metrics(["psnr", "ssim"], process.device, tokenizer.image_size)

    def validate() -> dict[str, float]:
        patience = cfg.distributed_timeout_minutes * 60
        batches = evaluation_batches(dataset, cfg, cfg.batch_size_per_gpu, process.rank, process.world_size, patience)
        return average_scores(renderer, metrics, whole(interruption.until_requested(batches)), process)

    return validate


def build_journal(config: Config, process: Process, start: Start) -> Journal:
    """The run's journal, with the arithmetic of a square sample."""
    cfg = config.training
    flops = training_flops(config.model, cfg.num_input_views, cfg.num_target_views)
    peak, folder = peak_flops(process.device), Path(cfg.checkpoint_dir)
    limits = (cfg.max_unusable_share, cfg.max_consecutive_skips)
    return Journal(folder, process, start.samples, flops, peak, *limits)


def with_accumulation(config: Config, world_size: int) -> Config:
    """The configuration with `grad_accum_steps` such that an update sees `total_batch_size` scenes, if that is set.

    Raises:
        InputError: the total is no multiple of what all processes see at once, or both keys are set.
    """
    cfg = config.training
    if not cfg.total_batch_size:
        return config
    if cfg.grad_accum_steps != 1:
        raise InputError("training.grad_accum_steps follows from training.total_batch_size: set only one of them")
    steps, rest = divmod(cfg.total_batch_size, cfg.batch_size_per_gpu * world_size)
    if rest:
        raise InputError(
            f"training.total_batch_size={cfg.total_batch_size} is no multiple of batch_size_per_gpu x processes "
            f"({cfg.batch_size_per_gpu} x {world_size}): make it a multiple of {cfg.batch_size_per_gpu * world_size}"
        )
    return dataclasses.replace(config, training=dataclasses.replace(cfg, grad_accum_steps=steps))


def _check_training(cfg: TrainingConfig) -> None:
    if is_hub_address(cfg.checkpoint_dir):
        raise InputError(
            f"training.checkpoint_dir is {shown(cfg.checkpoint_dir)}, but the run's own folder is meant: "
            "name published weights as training.resume_ckpt"
        )
    if not (cfg.l2_loss_weight or cfg.lpips_loss_weight or cfg.perceptual_loss_weight):
        raise InputError("every training.*_loss_weight is 0: nothing would be learned")
    if cfg.validate_every and not (cfg.validation_path and cfg.validation_index):
        raise InputError("training.validate_every needs training.validation_path and training.validation_index")
    if cfg.use_amp and cfg.amp_dtype == "fp16":
        raise InputError("training.amp_dtype=fp16 would need loss scaling: train with bf16 or fp32")
    free = cfg.num_views if cfg.target_has_input else cfg.num_views - cfg.num_target_views
    if cfg.dynamic_input_view_num and (free < 4 or cfg.pose_normalization != "all_views"):
        raise InputError(
            "training.dynamic_input_view_num draws 2 to 4 inputs: it needs room for 4 in num_views, "
            "and pose_normalization=all_views"
        )


def _say(cfg: TrainingConfig, process: Process, model: LVSM, num_scenes: int) -> None:
    total = cfg.batch_size_per_gpu * process.world_size * cfg.grad_accum_steps
    log.info(
        "%s, %.1f M parameters, %s; %d scenes; batch %d x %d processes x %d accumulated = %d scenes an update",
        type(model).__name__,
        sum(p.numel() for p in model.parameters()) / 1e6,
        describe_device(process.device),
        num_scenes,
        cfg.batch_size_per_gpu,
        process.world_size,
        cfg.grad_accum_steps,
        total,
    )


def main(argv: Sequence[str]) -> None:
    """Build and run."""
    config, _ = load_config(argv)
    _check_training(config.training)
    folder = output_folder(config.training.checkpoint_dir, "training.checkpoint_dir")
    with (
        process_group(config.training.distributed_timeout_minutes) as process,
        only_run(process, folder, "training.checkpoint_dir"),
    ):
        trainer = build_trainer(config, process)
        try:
            trainer.run()
        finally:
            trainer.close()


if __name__ == "__main__":
    run_main(main)

"""Train an LVSM.

    python train.py --config configs/LVSM_scene_decoder_only.yaml
    torchrun --nproc_per_node 8 train.py --config configs/LVSM_scene_decoder_only.yaml training.lr=4e-4

The run folder is `training.checkpoint_dir`; running the same command again goes on from its newest checkpoint.
"""

import datetime
import itertools
import logging
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.dataset import TrainingDataset, ViewLoader
from data.loader import TrainingLoader
from evaluation.items import find_items, items_reader
from evaluation.metrics import build_metrics
from evaluation.renderer import Renderer
from evaluation.validation import Validation
from model import LVSM, build_model, training_flops
from model.execution import compile_each_shape
from model.flops import peak_flops
from model.function import function_of
from model.loss import build_loss
from setup import (
    Config,
    TrainingConfig,
    check_training,
    config_text,
    load_config,
    output_folder,
    scenes_per_update,
    set_threads_and_precision,
    sizes_of_training,
    warn_of_other_values,
    with_accumulation,
    with_fixed_background,
    with_function_of,
    with_pose_normalization,
)
from training.averaging import AveragedWeights, build_average
from training.incidents import Incidents
from training.metrics_log import MetricsLog, SampleCost
from training.optim import build_optimizer
from training.restoring import Start, restore
from training.trainer import Learner, Trainer
from training.wandb_run import start_wandb
from utils.cli import run_main
from utils.config_file import read_kept_yaml
from utils.distributed import Process, describe_device, only_run, process_group
from utils.files import append_json_line, write_text
from utils.provenance import provenance
from utils.random_state import seed_everything
from utils.sections import flatten
from utils.stop_signal import StopSignal
from utils.text import counted
from utils.watchdog import Watchdog

log = logging.getLogger("lvsm")


def build_trainer(config: Config, process: Process) -> Trainer:
    """Build every part of a run and restore its state.

    Raises:
        InputError: data, weights or values that cannot be used.
    """
    config = with_pose_normalization(config)
    asked = config
    config = with_accumulation(config, process.world_size)
    cfg = config.training
    stop_signal = StopSignal(process)
    set_threads_and_precision(cfg)
    if cfg.data.image_sizes and len(cfg.data.input_counts) == 1:
        compile_each_shape(cfg.execution)
    seed_everything(cfg.trainer.seed + process.rank)
    dataset = build_dataset(config)
    learner = build_learner(config, process)
    start = restore_run(config, process, learner)
    origin = describe_origin(asked, learner.model)
    metrics_log = open_metrics_log(config, process, origin, start)
    if process.is_main:
        describe_training(cfg, process, learner.model, len(dataset.scenes))
    return Trainer(
        cfg.trainer,
        process,
        learner=learner,
        loader=build_loader(cfg, process, dataset, start),
        metrics_log=metrics_log,
        checkpoints=cfg.checkpoint,
        stop_signal=stop_signal,
        watchdog=Watchdog(process, stalled_after=cfg.process.patience / 2),
        origin=origin,
        validation=build_validation(config, process, learner, stop_signal),
        step=start.step,
    )


def build_dataset(config: Config) -> TrainingDataset:
    """The scenes of `dataset_path` as samples of the model's size."""
    cfg = config.training
    tokenizer = config.model.image_tokenizer
    fast = cfg.data.image_resize == "fast"
    return TrainingDataset(ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size, fast), cfg.trainer.seed)


def build_learner(config: Config, process: Process) -> Learner:
    """The model, freshly initialised, its loss, its optimiser and the average of its weights, if there is to be one."""
    cfg = config.training
    # One process a machine fetches the networks of the loss, if they are needed and missing.
    loss = process.first_on_machine(lambda: build_loss(cfg.loss, cfg.execution)).to(process.device)
    model = build_model(config.model, cfg.execution).to(process.device)
    average = build_average(model, cfg.averaging)
    return Learner(model, loss, build_optimizer(model, cfg.optim), cfg.optim, cfg.precision, average)


def build_loader(cfg: TrainingConfig, process: Process, dataset: TrainingDataset, start: Start) -> TrainingLoader:
    """This process's batches from where training begins."""
    return TrainingLoader(
        dataset,
        cfg.loader,
        cfg.loader.batch_size_per_gpu,
        process.rank,
        process.world_size,
        start.samples,
        cfg.process.patience,
        update=start.step,
        batches_per_update=cfg.trainer.grad_accum_steps,
    )


def restore_run(config: Config, process: Process, learner: Learner) -> Start:
    """Load what training goes on from, with a warning of keys that had other values."""
    cfg = config.training
    also = [] if cfg.restoring.reset_training_state else ["training.seed"]
    return restore(
        cfg.restoring,
        Path(cfg.checkpoint.checkpoint_dir),
        process,
        learner.model,
        learner.optimizer,
        average=learner.average,
        weights=cfg.averaging.weights,
        scenes_per_update=scenes_per_update(cfg, process.world_size),
        check_stored=lambda kept, path: warn_of_other_values(
            config, read_kept_yaml(kept), path, also, sizes_of_training(config)
        ),
    )


def describe_origin(config: Config, model: LVSM) -> dict[str, Any]:
    """What the run's checkpoints say of it: its configuration, what its weights compute, and code and machine."""
    text = config_text(with_function_of(config, model))
    return {"config": text, "function": asdict(function_of(model)), "provenance": provenance()}


def open_metrics_log(config: Config, process: Process, origin: dict[str, Any], start: Start) -> MetricsLog:
    """Record the start in the run folder and open the log of metrics."""
    cfg = config.training
    wandb_run = None
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
    return MetricsLog(
        cfg.metrics_log,
        folder,
        process,
        incidents=Incidents(cfg.incidents, folder, process, start.samples),
        train_steps=cfg.optim.train_steps,
        cost=sample_cost(config, process),
        position=start.samples,
        wandb_run=wandb_run,
    )


def sample_cost(config: Config, process: Process) -> SampleCost:
    """The arithmetic of a sample, the mean over the sizes and the numbers of inputs that it may have."""
    data = config.training.data
    models = [config.model.at_size(size) for size in sizes_of_training(config).values()]
    cases = itertools.product(models, data.input_counts)
    flops = [training_flops(model, count, data.num_target_views) for model, count in cases]
    return SampleCost(data.num_target_views, statistics.fmean(flops), peak_flops(process.device))


def build_validation(config: Config, process: Process, learner: Learner, stop_signal: StopSignal) -> Validation | None:
    """The scoring of the scenes of `validation_path` with the views of `validation_index`, if it is asked for.

    Raises:
        InputError: one of the two is missing or names what is not there.
    """
    if not config.training.trainer.validate_every:
        return None
    cfg = with_fixed_background(config, process).training
    tokenizer = config.model.image_tokenizer
    index_path = Path(cfg.validation.validation_index)
    list_path = Path(cfg.validation.validation_path)
    keys = ("training.validation_index", "training.validation_path")
    found = find_items(index_path, list_path, False, cfg.data.allow_outside_images, keys) if process.is_main else None
    items, _ = process.broadcast(found)
    load = ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size)
    average = validated_average(cfg, process, learner)
    return Validation(
        Renderer(learner.model, cfg.precision, process.device),
        build_metrics(["psnr", "ssim"], process.device, tokenizer.image_size),
        items,
        items_reader(load, cfg.loader, process, cfg.process.patience),
        process,
        stop_signal.until_requested,
        nullcontext if average is None else average.applied,
    )


def validated_average(cfg: TrainingConfig, process: Process, learner: Learner) -> AveragedWeights | None:
    """The average of weights if validation scores it; says which it scores if there are two."""
    if learner.average is None:
        return None
    trained = cfg.averaging.weights == "trained"
    if process.is_main:
        scored = "weights as trained" if trained else "average of weights"
        log.info("validation scores the %s (training.weights=%s)", scored, cfg.averaging.weights)
    return None if trained else learner.average


def describe_training(cfg: TrainingConfig, process: Process, model: LVSM, num_scenes: int) -> None:
    """Log what is trained, on what, with how many scenes an update."""
    log.info(
        "%s, %.1f M parameters, %s; %s, %d an update (batch %d x processes %d x accumulated %d)",
        type(model).__name__,
        sum(p.numel() for p in model.parameters()) / 1e6,
        describe_device(process.device),
        counted(num_scenes, "scene"),
        scenes_per_update(cfg, process.world_size),
        cfg.loader.batch_size_per_gpu,
        process.world_size,
        cfg.trainer.grad_accum_steps,
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

"""Time, memory and arithmetic of a training update, on seeded noise.

    python -m benchmarks.train_step --config configs/LVSM_scene_decoder_only.yaml \\
        --vary training.keep_activations=0 --vary training.keep_activations=1 [--bare] [--profile] [key=value ...]

`--bare` also times the update without everything that only watches it: no averages, no skip rule, no exchange of
signals, no notes. The difference is what watching costs.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import train
from benchmarks.common import (
    benchmark_parser,
    positive,
    rates,
    release_memory,
    seconds_since_start,
    seeded_batch,
    seeded_loss,
    seeded_model,
    show,
    spread,
    synchronize,
    timed,
)
from data.dataset import Batch
from data.loader import TrainingLoader
from model import training_flops
from setup import Config, read_config, with_accumulation, with_training
from training.averaging import build_average
from training.incidents import Incidents
from training.metrics_log import MetricsLog
from training.optim import build_optimizer
from training.trainer import Learner
from utils.cli import path_argument, run_main
from utils.distributed import Process, process_group
from utils.precision import autocast
from utils.stop_signal import StopSignal
from utils.watchdog import Watchdog

log = logging.getLogger("lvsm")

# Parts of kernel names, by what they do; the first that fits counts.
KERNELS = {
    "attention": ("sdpa", "fmha", "flash", "attention", "cudnn_generated_fort_native_sdpa"),
    "convolution": ("conv", "implicit", "dgrad", "wgrad", "fprop", "winograd"),
    "product": ("gemm", "nvjet", "cutlass", "cublas", "matmul"),
    "fused": ("triton",),
    "optimiser": ("multi_tensor", "adam"),
    "copy": ("memcpy", "memset", "copy", "cat"),
}


class OneBatch(TrainingLoader):
    """Hands out the same batch for ever, without a dataset."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.position = 0

    def __next__(self) -> Batch:
        """The batch once more."""
        self.position += len(self.batch.scenes)
        return self.batch


def seeded_trainer(config: Config, process: Process) -> train.Trainer:
    """A trainer with all its parts, fed with noise."""
    cfg = config.training
    model = seeded_model(config).to(process.device)
    return train.Trainer(
        cfg.trainer,
        process,
        learner=Learner(
            model,
            seeded_loss(cfg.loss, cfg.execution).to(process.device),
            build_optimizer(model, cfg.optim),
            cfg.optim,
            cfg.precision,
            build_average(model, cfg.averaging),
        ),
        loader=OneBatch(seeded_batch(cfg, config.model.image_tokenizer.image_size)),
        metrics_log=MetricsLog(
            cfg.metrics_log,
            Path(cfg.checkpoint.checkpoint_dir),
            process,
            incidents=Incidents(cfg.incidents, Path(cfg.checkpoint.checkpoint_dir), process, 0),
            train_steps=cfg.optim.train_steps,
            cost=train.sample_cost(config, process),
        ),
        checkpoints=cfg.checkpoint,
        stop_signal=StopSignal(process),
        watchdog=Watchdog(process, stalled_after=300.0),
        origin={},
    )


def bare_update(trainer: train.Trainer) -> None:
    """Forward, backward, clipping and AdamW, and nothing else."""
    cfg = trainer.cfg
    for waiting in trainer.loader.take(cfg.grad_accum_steps):
        batch = waiting.to(trainer.process.device)
        inputs, targets = batch.split()
        with autocast(trainer.precision, trainer.process.device):
            loss = trainer.loss(trainer._parallel(inputs, targets.cameras), targets.images)["loss"]
        (loss / cfg.grad_accum_steps).backward()
    nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.optim.grad_clip_norm)
    trainer.optimizer.grad_scale = trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)


def whole_update(trainer: train.Trainer, bar: tqdm) -> None:
    """An update as the training loop does it, its line of numbers included."""
    trainer._advance(bar)


def measure(
    config: Config, bare: bool = False, profile: bool = False, calls: int = 5, warmup: int = 3
) -> dict[str, Any]:
    """One row: seconds an update, their spread, memory, arithmetic; with `bare`, the cost of watching."""
    release_memory()
    config = with_accumulation(config, world_size=1)
    with tempfile.TemporaryDirectory() as folder, process_group() as process, tqdm(disable=True) as bar:
        trainer = seeded_trainer(with_training(config, checkpoint_dir=folder, warmup=0), process)
        start = time.perf_counter()
        whole_update(trainer, bar)
        synchronize()
        first = time.perf_counter() - start
        since_start = seconds_since_start()
        seconds = timed(lambda: whole_update(trainer, bar), calls, warmup)
        row = describe(config, statistics.median(seconds))
        row |= {"spread": f"{spread(seconds):.1%}", "first update s": first, "since start s": since_start}
        if bare:
            row |= watching(trainer, bar, calls)
        if profile:
            row |= kernel_shares(lambda: whole_update(trainer, bar))
        trainer.metrics_log.close()
    return row


def watching(trainer: train.Trainer, bar: tqdm, calls: int) -> dict[str, Any]:
    """What averages, the skip rule and signals cost: on and off in turn, so that a warming card counts for both."""
    whole = []
    plain = []
    for _ in range(5):
        whole += timed(lambda: whole_update(trainer, bar), calls, 1, repeats=1)
        plain += timed(lambda: bare_update(trainer), calls, 1, repeats=1)
    cost = statistics.median(whole) / statistics.median(plain) - 1
    return {"watched s": statistics.median(whole), "bare s": statistics.median(plain), "watching": f"{cost:.2%}"}


def kernel_shares(work: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of GPU time of one call by class of kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        synchronize()
    sums: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), "other")
        sums[kind] = sums.get(kind, 0.0) + event.self_device_time_total / 1000
    return {f"{kind} ms": value for kind, value in sorted(sums.items(), key=lambda item: -item[1])}


def describe(config: Config, seconds: float) -> dict[str, Any]:
    """Speed, memory and arithmetic of an update that takes `seconds`."""
    cfg = config.training
    scenes = cfg.loader.batch_size_per_gpu * cfg.trainer.grad_accum_steps
    flops = scenes * training_flops(config.model, cfg.data.most_inputs, cfg.data.num_target_views)
    return {"scenes": scenes, "s/update": seconds, "scenes/s": scenes / seconds, **rates(flops, seconds)}


def main(argv: Sequence[str]) -> None:
    """Measure one configuration, or variations of it."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True, action="append")
    parser.add_argument("--vary", action="append", metavar='"key=value ..."', help="measure with these too; repeatable")
    parser.add_argument("--bare", action="store_true", help="also time updates that nothing watches")
    parser.add_argument("--profile", action="store_true", help="also sum GPU time by class of kernel")
    parser.add_argument("--calls", type=positive, default=5, help="updates a repeat")
    parser.add_argument("--warmup", type=int, default=3, help="updates before")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    rows = []
    for path in given.config:
        for own in given.vary or [""]:
            config = read_config(path, [*given.overrides, *own.split()])
            name = {"config": path.stem.removeprefix("LVSM_scene_"), "with": own.replace("training.", "")}
            try:
                row = measure(config, given.bare, given.profile, given.calls, given.warmup)
            except torch.OutOfMemoryError:
                row = {"s/update": "out of memory"}
            rows.append(name | row)
            log.info("measured %s %s", path.stem, own)
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

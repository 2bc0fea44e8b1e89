"""Time, memory and arithmetic of a training update, on seeded noise.

    python -m benchmarks.train_step --config configs/LVSM_scene_decoder_only.yaml [--bare] [key=value ...]

`--bare` also times the update without everything that only watches it: no averages, no skip rule, no exchange of
signals, no notes. The difference is what watching costs.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import train
from benchmarks.common import (
    benchmark_parser,
    read_config,
    seeded_batch,
    seeded_loss,
    show,
    spread,
    timed,
    with_training,
)
from data.dataset import Batch
from model import build_model
from model.flops import peak_flops, training_flops
from setup import Config, autocast, set_threads_and_precision
from utils.distributed import Process, process_group
from utils.interruption import Interruption
from utils.optim import build_optimizer
from utils.random_state import seed_everything
from utils.tracking import Tracker
from utils.watch import Watch


class OneBatch:
    """Hands out the same batch for ever, as `TrainingLoader` hands out many."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.position = batch, 0

    def __next__(self) -> Batch:
        self.position += len(self.batch.scenes)
        return self.batch


def seeded_trainer(config: Config, process: Process) -> train.Trainer:
    """A trainer with all its parts, fed with noise."""
    cfg = config.training
    set_threads_and_precision(cfg)
    seed_everything(cfg.seed)
    model = build_model(config.model, cfg).to(process.device)
    return train.Trainer(
        cfg,
        process,
        model=model,
        loss=seeded_loss(cfg).to(process.device),
        optimizer=build_optimizer(model, cfg),
        loader=OneBatch(seeded_batch(cfg, config.model.image_tokenizer.image_size)),  # type: ignore[arg-type]
        tracker=Tracker(Path(cfg.checkpoint_dir), process),
        journal=train.build_journal(config, process, train.Start()),
        interruption=Interruption(process),
        watch=Watch(process, stalled_after=300),
        origin={},
    )


def bare_update(trainer: train.Trainer) -> None:
    """Forward, backward, clipping and AdamW, and nothing else."""
    cfg = trainer.cfg
    for _ in range(cfg.grad_accum_steps):
        batch = next(trainer.loader).to(trainer.process.device)
        inputs, targets = batch.split(cfg.num_input_views)
        with autocast(cfg, trainer.process.device):
            loss = trainer.loss(trainer._parallel(inputs, targets.cameras), targets.images)["loss"]
        (loss / cfg.grad_accum_steps).backward()
    nn.utils.clip_grad_norm_(trainer.model.parameters(), cfg.grad_clip_norm)
    trainer.optimizer.grad_scale = trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)


def whole_update(trainer: train.Trainer, bar: tqdm) -> None:
    """An update as the training loop does it, its line of numbers included."""
    trainer.update()
    trainer._log(bar)
    trainer.interruption.agreed()


def measure(config: Config, bare: bool, calls: int, warmup: int) -> dict[str, Any]:
    """One row: seconds an update, their spread, memory, arithmetic; with `bare`, the cost of watching."""
    with tempfile.TemporaryDirectory() as folder, process_group() as process, tqdm(disable=True) as bar:
        trainer = seeded_trainer(with_training(config, checkpoint_dir=folder, warmup=0), process)
        seconds = timed(lambda: whole_update(trainer, bar), calls, warmup)
        row = describe(config, statistics.median(seconds), process)
        row["spread"] = f"{spread(seconds):.1%}"
        if bare:
            # On and off in turn, so that a card that warms up counts for both alike.
            pairs = [
                (
                    timed(lambda: whole_update(trainer, bar), calls, 1, 1),
                    timed(lambda: bare_update(trainer), calls, 1, 1),
                )
                for _ in range(5)
            ]
            whole, plain = (statistics.median(share[0] for share in side) for side in zip(*pairs, strict=True))
            row |= {"watched s": whole, "bare s": plain, "watching": f"{whole / plain - 1:.2%}"}
        trainer.tracker.close()
    return row


def describe(config: Config, seconds: float, process: Process) -> dict[str, Any]:
    """Speed, memory and arithmetic of an update that takes `seconds`."""
    cfg, tokenizer = config.training, config.model.image_tokenizer
    scenes = cfg.batch_size_per_gpu * cfg.grad_accum_steps
    tokens = (tokenizer.image_size // tokenizer.patch_size) ** 2
    flops = scenes * training_flops(config.model, cfg.num_input_views, cfg.num_target_views, tokens)
    row: dict[str, Any] = {
        "scenes": scenes,
        "s/update": seconds,
        "scenes/s": scenes / seconds,
        "TFLOP/s": flops / seconds / 1e12,
    }
    if process.device.type == "cuda":
        row["GB"] = torch.cuda.max_memory_allocated() / 1e9
        peak = peak_flops(process.device)
        row["mfu"] = f"{flops / seconds / peak:.0%}" if peak else "?"
    return row


def main() -> None:
    """Measure one configuration."""
    parser = benchmark_parser(__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--bare", action="store_true", help="also time updates that nothing watches")
    parser.add_argument("--calls", type=int, default=10, help="updates a repeat")
    parser.add_argument("--warmup", type=int, default=5, help="updates before")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    config = read_config(given.config, given.overrides)
    show([{"config": given.config.stem} | measure(config, given.bare, given.calls, given.warmup)], given.json)


if __name__ == "__main__":
    main()

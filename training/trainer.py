"""The training loop: one update, and what happens around it."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.dataset import Batch
from data.loader import TrainingLoader, failures_told
from model import LVSM
from model.loss import Loss
from model.weights import published_state
from training.averaging import AveragedWeights
from training.incidents import Update
from training.metrics_log import MetricsLog
from training.optim import OptimConfig, clip_and_step, lr_at
from training.pictures import save_batch
from utils.checkpoint import AVERAGE, CheckpointConfig, CheckpointWriter
from utils.distributed import Process
from utils.errors import InputError
from utils.fields import bounded
from utils.garbage import collection_spares
from utils.precision import PrecisionConfig, autocast
from utils.random_state import random_state
from utils.stop_signal import Stopped, StopSignal
from utils.tensors import first_not_finite
from utils.watchdog import WAITING_FOR_DATA, Watchdog

log = logging.getLogger("lvsm")


@dataclass(frozen=True)
class TrainerConfig:
    """What an update is made of, and what happens every so many updates.

    `total_batch_size` scenes make an update, if it is set, on any number of processes; `grad_accum_steps` follows from
    it.

    Every `gradient_bucket_mb` of gradients are exchanged between GPUs during the backward pass, which slows its kernels
    down. 0 exchanges all of them after it where the launcher says that the processes share a machine, else as DDP does.
    """

    grad_accum_steps: int = bounded(1, 1, 65_536)
    total_batch_size: int = bounded(0, 0, 1_000_000)
    gradient_bucket_mb: int = bounded(0, 0, 1_000_000)
    seed: int = bounded(777, 0, 2**63 - 1)
    vis_every: int = bounded(1000, 1, 1_000_000_000)
    validate_every: int = bounded(0, 0, 1_000_000_000)
    log_grad_norm_details: bool = False


@dataclass(frozen=True)
class Learner:
    """What learns: the bare model and its loss on one device, the optimiser and how an update is made of gradients.

    `average` follows the model's weights, if they are averaged.
    """

    model: LVSM
    loss: Loss
    optimizer: torch.optim.AdamW
    cfg: OptimConfig
    precision: PrecisionConfig
    average: AveragedWeights | None = None


def bucket_mb(cfg: TrainerConfig, process: Process, model: nn.Module) -> int | None:
    """MB of gradients that DDP exchanges together; None leaves it to DDP."""
    if cfg.gradient_bucket_mb:
        return cfg.gradient_bucket_mb
    if not process.one_machine:
        return None
    return math.ceil(sum(parameter.nbytes for parameter in model.parameters()) / 2**20)


class Trainer:
    """Runs updates, from wherever its parts stand to `train_steps`.

    Args:
        learner: its model is wrapped for data-parallel training here.
        loader: batches, from the position where training goes on.
        checkpoints: where checkpoints and pictures go, and how often.
        stop_signal: tells when to stop early.
        watchdog: is told what this process does, for when it hangs.
        origin: what the checkpoints say of the run besides its state.
        validation: scores of held-out scenes by name, computed by all ranks together; cut short on a request to stop.
        step: updates done before.
    """

    def __init__(
        self,
        cfg: TrainerConfig,
        process: Process,
        *,
        learner: Learner,
        loader: TrainingLoader,
        metrics_log: MetricsLog,
        checkpoints: CheckpointConfig,
        stop_signal: StopSignal,
        watchdog: Watchdog,
        origin: dict[str, Any],
        validation: Callable[[], dict[str, float]] | None = None,
        step: int = 0,
    ) -> None:
        self.cfg = cfg
        self.process = process
        self.model = learner.model
        self.loss = learner.loss
        self.optimizer = learner.optimizer
        self.optim = learner.cfg
        self.precision = learner.precision
        self.average = learner.average
        self.loader = loader
        self.metrics_log = metrics_log
        self.checkpoints = checkpoints
        self.folder = Path(checkpoints.checkpoint_dir)
        self.stop_signal = stop_signal
        self.watchdog = watchdog
        self.origin = origin
        self.validation = validation
        self.step = step
        self.writer = CheckpointWriter(checkpoints) if process.is_main else None
        self._parallel: nn.Module = self.model
        if process.world_size > 1:
            together = bucket_mb(cfg, process, self.model)
            self._parallel = DistributedDataParallel(self.model, bucket_cap_mb=together, gradient_as_bucket_view=True)
        # All ranks have the same weights from here on.
        if self.average is not None:
            self.average.start()
        # The step whose state is on disk, or from which training goes on.
        self._saved = step

    def run(self) -> None:
        """Train to the end, or to the update after which all ranks agree to stop; log and save on the way."""
        self.model.train()
        # None: silent unless a person is watching.
        silent = None if self.process.is_main else True
        if self.step >= self.optim.train_steps and self.process.is_main:
            log.info("nothing to do: step %d of training.train_steps=%d is done", self.step, self.optim.train_steps)
        bar = tqdm(total=self.optim.train_steps, initial=self.step, unit="step", disable=silent)
        with failures_told(), self.stop_signal, self.watchdog, bar, collection_spares() as spare:
            stop = False
            while self.step < self.optim.train_steps and not stop:
                stop = self._advance(bar)
                # What was compiled for the first update stays.
                spare()
                if self.step != self._saved and (stop or self._due(self.checkpoints.checkpoint_every)):
                    self.save()
            if stop:
                log.warning("stopped after step %d; the same command goes on from there", self.step)
            if self.writer is not None:
                self.writer.wait()
            self.process.barrier("saving")
            if self.writer is not None:
                self.writer.check_last()

    def close(self) -> None:
        """End what goes on beside training: a save in the background, and the log of metrics."""
        if self.writer is not None:
            self.writer.join()
        self.metrics_log.close()

    def _advance(self, bar: tqdm) -> bool:
        """One update and what belongs to it; returns whether all ranks agree to stop after it."""
        try:
            update = self.update()
        except Stopped:
            # While waiting for data: nothing of this update has been done.
            self._show_line(bar, self.metrics_log.write_line())
            return True
        bar.update()
        stop = self.stop_signal.agreed()
        self._show_line(bar, self.metrics_log.log(update, last=stop))
        if self.validation is not None and not stop and self._due(self.cfg.validate_every):
            stop = self._validate(self.validation)
        return stop

    def update(self) -> Update:
        """One update: gradients over `grad_accum_steps` batches, communicated once."""
        batches, waited = self._next_batches()
        parts = []
        for number, batch in enumerate(batches):
            with self._communicate(number == len(batches) - 1):
                terms = self._forward(batch.to(self.process.device), show=number == 0)
                (terms["loss"] / len(batches)).backward()
            parts.append({name: value.detach() for name, value in terms.items()})
        lr = lr_at(self.step, self.optim)
        details = self._grad_norm_details()
        norm, skipped = clip_and_step(self.optimizer, self.model.parameters(), lr, self.optim)
        if self.average is not None:
            self.average.update(skipped)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        numbers = means | {"grad_norm": norm, "skipped": skipped.float()} | details
        self.step += 1
        scenes = [scene for batch in batches for scene in batch.scenes]
        failures = [failure for batch in batches for failure in batch.failures]
        return Update(self.step, self.loader.position, lr, numbers, scenes, failures, waited)

    def save(self) -> None:
        """Write a checkpoint to the run folder: every rank gives its random state, the main process writes.

        Raises:
            InputError: weights or moments are not finite, so that nobody could go on from them.
        """
        self.watchdog.note(f"saving after step {self.step}")
        self._check_finite()
        states = self.process.gather(random_state())
        if self.writer is not None:
            state = {
                "model": published_state(self.model),
                **self._average_state(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "samples": self.loader.position,
                "random_states": states,
                **self.origin,
            }
            self.writer.save(self.step, state)
        self._saved = self.step
        self.process.barrier("saving")

    def _average_state(self) -> dict[str, Any]:
        return {} if self.average is None else {AVERAGE: self.average.state()}

    def _check_finite(self) -> None:
        averages = {} if self.average is None else self.average.state()
        state = {f"the average of {name}": value for name, value in averages.items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            state |= {name: parameter} | {f"{moment} of {name}": value for moment, value in moments.items()}
        if culprit := first_not_finite(state):
            raise InputError(
                f"training diverged: {culprit} is not finite after step {self.step}: nothing was saved, "
                f"the checkpoints in {self.folder} are kept: go on from one of them with a lower training.lr"
            )

    def _validate(self, validation: Callable[[], dict[str, float]]) -> bool:
        """Write down the scores of held-out scenes; returns whether a rank was asked to stop, which ends it early."""
        self.watchdog.note(f"validating after step {self.step}")
        scores = validation()
        if self.stop_signal.agreed_now():
            return True
        numbers = {f"validation/{name}": value for name, value in scores.items()}
        self.metrics_log.log_scores(self.step, numbers)
        if self.process.is_main:
            log.info("step %d: %s", self.step, ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
        return False

    def _next_batches(self) -> tuple[list[Batch], float]:
        """The batches of one update, and the seconds spent waiting for them."""
        self.watchdog.note(f"step {self.step + 1}, {WAITING_FOR_DATA}")
        start = time.perf_counter()
        with self.stop_signal.waiting():
            batches = self.loader.take(self.cfg.grad_accum_steps)
        self.watchdog.note(f"step {self.step + 1}, computing")
        return batches, time.perf_counter() - start

    def _communicate(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Forward and backward inside this all-reduce gradients only if `wanted`."""
        if isinstance(self._parallel, DistributedDataParallel) and not wanted:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _forward(self, batch: Batch, show: bool) -> dict[str, Tensor]:
        inputs, targets = batch.split()
        with autocast(self.precision, self.process.device):
            renders = self._parallel(inputs, targets.cameras)
            terms = self.loss(renders, targets.images)
        if show and (self.step + 1) % self.cfg.vis_every == 0 and self.process.is_main:
            self._save_picture(batch, targets.images, renders)
        return terms

    def _save_picture(self, batch: Batch, images: Tensor, renders: Tensor) -> None:
        path = self.folder / "visuals" / f"{self.step + 1:08d}.png"
        save_batch(path, batch, images, renders)
        self.metrics_log.log_picture(self.step + 1, path)

    def _grad_norm_details(self) -> dict[str, Tensor]:
        """Gradient norms by part of the model, if asked for, before clipping."""
        if not self.cfg.log_grad_norm_details:
            return {}
        return {
            f"grad_norm/{name}": torch.nn.utils.get_total_norm(
                [p.grad for p in part.parameters() if p.grad is not None]
            )
            for name, part in self.model.named_children()
        }

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.optim.train_steps

    def _show_line(self, bar: tqdm, line: str | None) -> None:
        """Show a line at the bar, or log it where nobody sees the bar."""
        if line is None:
            return
        bar.set_postfix_str(line)
        if self.process.is_main and bar.disable:
            log.info("step %d/%d %s", self.step, self.optim.train_steps, line)

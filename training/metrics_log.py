"""The log of a training run's metrics: averages in the run folder, at the console and in Weights & Biases."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.incidents import Incidents, Update
from utils.distributed import Process
from utils.fields import bounded, file_path
from utils.files import open_to_append


@dataclass(frozen=True)
class MetricsLogConfig:
    """How often averages are written, and where Weights & Biases is."""

    print_every: int = bounded(20, 1, 1_000_000_000)
    wandb_log_every: int = bounded(50, 1, 1_000_000_000)
    wandb_project: str = "LVSM"
    wandb_exp_name: str = "LVSM"
    api_key_path: str = file_path("./configs/api_keys.yaml")


@dataclass(frozen=True)
class SampleCost:
    """A sample in numbers: images rendered, FLOPs forward and backward; the device's peak rate in FLOP/s, if known."""

    images: int
    flops: float
    peak: float | None


def average(updates: Sequence[Update], process: Process, also: Mapping[str, float] | None = None) -> dict[str, float]:
    """The averages over ranks of what updates gave and of `also`, the same on every rank; waits for the device."""
    also = also or {}
    values: dict[str, list[Tensor]] = {}
    for update in updates:
        for name, value in update.numbers.items():
            values.setdefault(name, []).append(value.detach().float())
    means = [torch.stack(several).mean() for several in values.values()]
    host = torch.tensor(list(also.values()), device=process.device)
    averages = process.mean(torch.cat([torch.stack(means), host] if means else [host])).tolist()
    return dict(zip([*values, *also], averages, strict=True))


class MetricsLog:
    """Averages of what updates gave, over all ranks.

    Every `print_every` updates a line goes to `folder/metrics.jsonl`, every `wandb_log_every` one to wandb, and both
    after the last of `train_steps`. Only then is the device waited for.

    Args:
        incidents: is told of updates that were skipped and samples that could not be used.
        position: samples seen before.
        wandb_run: an open wandb run, or None.
    """

    def __init__(
        self,
        cfg: MetricsLogConfig,
        folder: Path,
        process: Process,
        *,
        incidents: Incidents,
        train_steps: int,
        cost: SampleCost,
        position: int = 0,
        wandb_run: Any = None,
    ) -> None:
        self.cfg = cfg
        self.process = process
        self.incidents = incidents
        self._train_steps = train_steps
        self._cost = cost
        self._wandb = wandb_run
        # Updates since the last line, and since the last word to wandb.
        self._updates: list[Update] = []
        self._wandb_updates: list[Update] = []
        self._line: dict[str, float] = {}
        self._position = position
        self._since = time.perf_counter()
        self._file = None
        if process.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(folder / "metrics.jsonl")

    def log(self, update: Update, last: bool = False) -> str | None:
        """Log an update; every rank calls it.

        Args:
            last: write a line whether or not one is due.

        Returns:
            The line for people, if one was written.

        Raises:
            InputError: too many samples are unusable (the message names one), or too many updates in a row skipped.
        """
        self._updates.append(update)
        self._wandb_updates.append(update)
        text = None
        if last or self._due(update.step, self.cfg.print_every):
            text = self.write_line()
        if self._due(update.step, self.cfg.wandb_log_every):
            averages = average(self._wandb_updates, self.process)
            self._wandb_updates = []
            self._write_wandb(update.step, self._line | averages | {"lr": update.lr})
        return text

    def write_line(self) -> str | None:
        """Write the averages since the last line; returns it for people, or None if there was no update since."""
        if not self._updates:
            return None
        newest = self._updates[-1]
        line = self._average(newest) | {"lr": newest.lr}
        line["images_per_second"] = line["samples_per_second"] * self._cost.images
        self._write(newest.step, line)
        self._line = line
        return describe(line)

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Log scores, to every place at once."""
        self._write(step, scores)
        self._write_wandb(step, scores)

    def log_picture(self, step: int, path: Path) -> None:
        """Send a picture to wandb, if there is a run."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({"views": wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """End what is written to."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._train_steps

    def _average(self, newest: Update) -> dict[str, float]:
        """Averages and rates since the last line, up to the newest update, the same on every rank."""
        now = time.perf_counter()
        elapsed = now - self._since
        updates = self._updates
        samples = newest.samples - self._position
        failures = [failure for update in updates for failure in update.failures]
        waited = sum(update.waited for update in updates)
        local = {"data_wait": waited / elapsed, "unusable": float(len(failures))}
        numbers = average(updates, self.process, also=local)
        self.incidents.note_skipped(round(numbers["skipped"] * len(updates)), numbers["grad_norm"], updates)
        self.incidents.note_unusable(round(numbers["unusable"] * self.process.world_size), newest.samples, failures)
        numbers |= {"skipped": self.incidents.skipped, "unusable": self.incidents.unusable}
        numbers["samples_per_second"] = samples / elapsed
        numbers["seconds_left"] = (self._train_steps - newest.step) * elapsed / len(updates)
        if self._cost.peak is not None:
            numbers["mfu"] = samples * self._cost.flops / elapsed / (self._cost.peak * self.process.world_size)
        if self.process.device.type == "cuda":
            numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._updates = []
        self._since = now
        self._position = newest.samples
        return numbers

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append one JSON line; what is not finite becomes null."""
        if self._file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")

    def _write_wandb(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)


def describe(line: dict[str, float]) -> str:
    """A line of numbers for people."""
    text = f"loss {line['loss']:.4g} psnr {line['psnr']:.2f} lr {line['lr']:.2e} grad {line['grad_norm']:.2g}"
    text += f" {line['images_per_second']:.0f} images/s, data {line['data_wait']:.0%}"
    text += f", mfu {line['mfu']:.0%}" if "mfu" in line else ""
    text += f", {line['gpu_memory_gb']:.1f} GB" if "gpu_memory_gb" in line else ""
    if line["skipped"] or line["unusable"]:
        text += f", {line['skipped']:.0f} skipped, {line['unusable']:.0f} unusable"
    hours, minutes = divmod(round(line["seconds_left"] / 60), 60)
    return f"{text}, {hours} h {minutes:02d} min left"

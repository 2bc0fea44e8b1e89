"""What a training run says about itself: averages since the last line, speed, and what went wrong."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.distributed import Process
from utils.errors import InputError
from utils.files import append_json_line, open_to_append

# Before this many samples, a few unusable scenes say nothing about their share.
_FEW_SAMPLES = 1000


class RunningMean:
    """Averages device values over steps and ranks, reading them only when asked to."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember one step's values, without waiting for them."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def read(self, process: Process, also: Mapping[str, float] | None = None) -> dict[str, float]:
        """The averages since the last reading and those of `also` over ranks, the same on every rank; waits."""
        also = also or {}
        means = [torch.stack(values).mean() for values in self._values.values()]
        host = torch.tensor(list(also.values()), device=process.device)
        averages = process.mean(torch.cat([torch.stack(means), host] if means else [host])).tolist()
        names, self._values = [*self._values, *also], {}
        return dict(zip(names, averages, strict=True))


class Journal:
    """Collects what happens on every rank and turns it into a line of numbers when one is due.

    Updates that were skipped are written to `folder/skipped.jsonl` with their scenes and losses, scenes that could not
    be used to `folder/unusable.txt`.

    Args:
        position: samples seen before.
        flops_per_sample: arithmetic of one sample, forward and backward.
        peak: the device's rate in FLOP/s, or None if it is not known.
        max_unusable_share: share of samples that may be unusable before the run stops.
        max_consecutive_skips: updates skipped in a row at which the run stops; 0 for no limit.
    """

    def __init__(
        self,
        folder: Path,
        process: Process,
        position: int,
        flops_per_sample: float,
        peak: float | None,
        max_unusable_share: float,
        max_consecutive_skips: int,
    ) -> None:
        self.folder, self.process = folder, process
        self._flops, self._peak, self._max_share = flops_per_sample, peak, max_unusable_share
        self._means = RunningMean()
        self._max_skips, self._skips_in_a_row = max_consecutive_skips, 0
        self._steps: list[tuple[int, Sequence[str], Tensor, Tensor]] = []
        self._failures: list[str] = []
        self._start, self._samples, self.skipped, self.unusable = position, position, 0, 0
        self._since, self._waited = time.perf_counter(), 0.0

    def add(
        self, step: int, numbers: Mapping[str, Tensor], scenes: Sequence[str], failures: Sequence[str], waited: float
    ) -> None:
        """Remember an update: its numbers on the device, its scenes, and the seconds spent waiting for data."""
        self._means.add(numbers)
        self._steps.append((step, scenes, numbers["loss"].detach(), numbers["skipped"]))
        self._failures += failures
        self._waited += waited

    @property
    def is_empty(self) -> bool:
        """Whether no update has been added since the last line."""
        return not self._steps

    def line(self, position: int, steps_left: int) -> dict[str, float]:
        """Averages and rates since the last line, the same on every rank; every rank calls it.

        Args:
            position: samples seen by all ranks.

        Raises:
            InputError: too many scenes are unusable (the message names one), or too many updates in a row skipped.
        """
        now, steps, samples = time.perf_counter(), len(self._steps), position - self._samples
        elapsed = now - self._since
        local = {"data_wait": self._waited / elapsed, "unusable": float(len(self._failures))}
        numbers = self._means.read(self.process, also=local)
        self._note_skipped(round(numbers["skipped"] * steps), numbers["grad_norm"])
        self._note_unusable(round(numbers["unusable"] * self.process.world_size), position)
        numbers |= {"skipped": self.skipped, "unusable": self.unusable}
        numbers |= {"samples_per_second": samples / elapsed, "seconds_left": steps_left * elapsed / max(1, steps)}
        if self._peak is not None:
            numbers["mfu"] = samples * self._flops / elapsed / (self._peak * self.process.world_size)
        if self.process.device.type == "cuda":
            numbers["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._steps, self._waited, self._since, self._samples = [], 0.0, now, position
        return numbers

    def _note_skipped(self, count: int, norm: float) -> None:
        """Write down the batches of skipped updates, and stop at too many; all ranks agree on which those are."""
        if not count:
            self._skips_in_a_row = 0
            return
        self.skipped += count
        mine = [(step, list(scenes), loss.item()) for step, scenes, loss, skipped in self._steps if skipped.item()]
        ranks = self.process.gather(mine)
        for update in zip(*ranks, strict=True):
            batches = [{"rank": r, "loss": str(loss), "scenes": scenes} for r, (_, scenes, loss) in enumerate(update)]
            if self.process.is_main:
                append_json_line(self.folder / "skipped.jsonl", {"step": update[0][0], "batches": batches})
        for _, _, _, skipped in self._steps:
            self._skips_in_a_row = self._skips_in_a_row + 1 if skipped.item() else 0
        if self._max_skips and self._skips_in_a_row >= self._max_skips:
            raise InputError(
                f"the last {self._skips_in_a_row} updates, up to step {self._steps[-1][0]}, were skipped for their "
                f"gradient norms ({norm:.3g} on average; training.max_consecutive_skips={self._max_skips}): the run no "
                f"longer learns. Go on from an earlier checkpoint with a lower training.lr, or without the scenes that "
                f"{self.folder / 'skipped.jsonl'} names"
            )

    def _note_unusable(self, count: int, position: int) -> None:
        if not count:
            return
        self.unusable += count
        messages = [message for share in self.process.gather(self._failures) for message in share]
        self._failures = []
        if self.process.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open_to_append(self.folder / "unusable.txt") as file:
                file.writelines(f"{message}\n" for message in messages)
        seen = position - self._start
        if self.unusable > self._max_share * max(seen, _FEW_SAMPLES):
            raise InputError(
                f"{self.unusable} of {seen} samples were unusable, more than training.max_unusable_share="
                f"{self._max_share} allows; {self.folder / 'unusable.txt'} lists them, the last: {messages[-1]}"
            )


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

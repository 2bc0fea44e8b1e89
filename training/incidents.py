"""What goes wrong in a training run without ending it: updates skipped, samples that cannot be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from utils.distributed import Process
from utils.errors import InputError
from utils.fields import bounded
from utils.files import append_json_line, open_to_append
from utils.text import counted

# Before this many samples, a few unusable scenes say nothing about their share.
_FEW_SAMPLES = 1000


@dataclass(frozen=True)
class Update:
    """An update that was done.

    Attributes:
        step: updates done with it.
        samples: seen with it by all ranks.
        lr: its learning rate.
        numbers: losses and the like by name, on the device.
        scenes: of this rank.
        failures: why samples of this rank could not be used, a line each.
        waited: seconds of waiting for data.
    """

    step: int
    samples: int
    lr: float
    numbers: Mapping[str, Tensor]
    scenes: Sequence[str]
    failures: Sequence[str]
    waited: float


@dataclass(frozen=True)
class IncidentsConfig:
    """How much may go wrong before the run stops.

    `max_unusable_share` bounds the share of samples that cannot be used, `max_consecutive_skips` the updates skipped
    in a row (0: no limit).
    """

    max_unusable_share: float = bounded(0.01, 0, 1)
    max_consecutive_skips: int = bounded(100, 0, 1_000_000_000)


class Incidents:
    """Counts skipped updates and unusable samples of all ranks, and stops the run at too many.

    Skipped updates are written to `folder/skipped.jsonl` with their scenes and losses, samples that could not be used
    to `folder/unusable.txt`.

    Args:
        position: samples seen before.
    """

    def __init__(self, cfg: IncidentsConfig, folder: Path, process: Process, position: int) -> None:
        self.skipped = 0
        self.unusable = 0
        self._cfg = cfg
        self._folder = folder
        self._process = process
        self._start = position
        self._skips_in_a_row = 0

    def note_skipped(self, count: int, norm: float, updates: Sequence[Update]) -> None:
        """Write down the batches of skipped updates, and stop at too many; all ranks agree on which those are."""
        if not count:
            self._skips_in_a_row = 0
            return
        self.skipped += count
        mine = [
            (update.step, list(update.scenes), update.numbers["loss"].item())
            for update in updates
            if update.numbers["skipped"].item()
        ]
        ranks = self._process.gather(mine)
        for of_ranks in zip(*ranks, strict=True):
            batches = [{"rank": r, "loss": str(loss), "scenes": scenes} for r, (_, scenes, loss) in enumerate(of_ranks)]
            if self._process.is_main:
                append_json_line(self._folder / "skipped.jsonl", {"step": of_ranks[0][0], "batches": batches})
        for update in updates:
            self._skips_in_a_row = self._skips_in_a_row + 1 if update.numbers["skipped"].item() else 0
        limit = self._cfg.max_consecutive_skips
        if limit and self._skips_in_a_row >= limit:
            raise InputError(
                f"{counted(self._skips_in_a_row, 'update')} in a row, up to step {updates[-1].step}, skipped for too "
                f"large gradient norms ({norm:.3g} on average; training.max_consecutive_skips={limit}): the run no "
                f"longer learns. Go on from an earlier checkpoint with a lower training.lr, or without the scenes that "
                f"{self._folder / 'skipped.jsonl'} names"
            )

    def note_unusable(self, count: int, position: int, failures: Sequence[str]) -> None:
        """Write down why samples could not be used, and stop at too many.

        Raises:
            InputError: more than the allowed share; the message names one.
        """
        if not count:
            return
        self.unusable += count
        messages = [message for of_rank in self._process.gather(list(failures)) for message in of_rank]
        if self._process.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open_to_append(self._folder / "unusable.txt") as file:
                file.writelines(f"{message}\n" for message in messages)
        seen = position - self._start
        allowed = self._cfg.max_unusable_share
        if self.unusable > allowed * max(seen, _FEW_SAMPLES):
            raise InputError(
                f"unusable: {self.unusable} of {counted(seen, 'sample')}, more than "
                f"training.max_unusable_share={allowed} allows: mend the scenes that {self._folder / 'unusable.txt'} "
                f"lists, or take them out of the scene list; the last: {messages[-1]}"
            )

"""Scores of held-out scenes during training."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from data.dataset import Batch
from evaluation.items import Item, ReadItems, whole
from evaluation.metrics import Metric
from evaluation.renderer import Renderer
from evaluation.scoring import average_scores
from utils.distributed import Process
from utils.fields import file_path


@dataclass(frozen=True)
class ValidationConfig:
    """The scenes to validate on, and the index of their views."""

    validation_path: str = file_path("")
    validation_index: str = file_path("")


@dataclass(frozen=True)
class Validation:
    """Scores the scenes `items` by their `metrics`, every process its part.

    Args:
        until_stopped: passes batches on until the run is asked to stop.
        weights: inside it the renderer's model has the weights to score.
    """

    renderer: Renderer
    metrics: dict[str, Metric]
    items: list[Item]
    read: ReadItems
    process: Process
    until_stopped: Callable[[Iterator], Iterator]
    weights: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self) -> dict[str, float]:
        """Means over all scenes by metric; cut short on a request to stop."""
        batches: Iterator[Batch] = whole(self.until_stopped(self.read(self.items)))
        with self.weights():
            return average_scores(self.renderer, self.metrics, batches, self.process)

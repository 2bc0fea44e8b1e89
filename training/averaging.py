"""An exponential moving average of the weights over updates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from model import LVSM
from model.weights import fitting_state, published_state
from utils.checkpoint import WeightsChoice
from utils.fields import bounded


@dataclass(frozen=True)
class AveragingConfig:
    """Whether weights are averaged, and which of a checkpoint's are taken for renders.

    `ema_decay` is the share of the average that an update leaves (0: no average). `weights` chooses where there are
    two: the `trained` ones, their average (`ema`), or by `auto` the average if there is one.
    """

    ema_decay: float = bounded(0.0, 0, 1, open_above=True)
    weights: WeightsChoice = "auto"


class AveragedWeights:
    """The exponential moving average of a model's weights, in float32 beside them.

    After k updates it is decay^k w_0 + (1 - decay) (w_k + decay w_(k-1) + ... + decay^(k-1) w_1), as with
    `torch.optim.swa_utils.get_ema_multi_avg_fn`, which knows no skipped updates. The model must keep its weights in the
    same memory.

    Args:
        model: on the device that it trains on.
        decay: share of the average that an update leaves.
    """

    def __init__(self, model: LVSM, decay: float) -> None:
        self._decay = decay
        self._model = model
        self._weights = published_state(model)
        self._average: dict[str, Tensor] | None = None

    def load(self, state: Mapping[str, Any], source: object) -> None:
        """Take copies of a saved average.

        Args:
            state: published names -> tensors.
            source: where they come from, for error messages.

        Raises:
            InputError: names the tensor that is not plain, finite numbers.
            MisfitError: it is of another model.
        """
        given = fitting_state(self._model, state, source)
        self._average = {name: _copy(given[name].to(weight.device)) for name, weight in self._weights.items()}

    def start(self) -> None:
        """Begin with the weights as they are now, unless an average was loaded."""
        if self._average is None:
            self._average = {name: _copy(weight) for name, weight in self._weights.items()}

    def state(self) -> dict[str, Tensor]:
        """The average under published names; it changes with the next update."""
        if self._average is None:
            raise RuntimeError("the average has not begun: call start()")
        return self._average

    @torch.no_grad()
    def update(self, skipped: Bool[Tensor, ""]) -> None:
        """Move towards the weights, unless the update that led to them was skipped.

        The decision stays on the device, so the host does not wait.
        """
        averages = list(self.state().values())
        # Not torch's lerp over lists, which takes no weight from the device.
        steps = torch._foreach_sub(list(self._weights.values()), averages)
        torch._foreach_mul_(steps, (~skipped).float() * (1 - self._decay))
        torch._foreach_add_(averages, steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights inside this, and afterwards its own again, bit for bit."""
        weights = list(self._weights.values())
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, list(self.state().values()))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)


def build_average(model: LVSM, cfg: AveragingConfig) -> AveragedWeights | None:
    """The average of a model's weights, if there is to be one."""
    return AveragedWeights(model, cfg.ema_decay) if cfg.ema_decay else None


def _copy(tensor: Tensor) -> Tensor:
    """A copy in float32 that shares no memory."""
    return tensor.detach().to(torch.float32, copy=True)

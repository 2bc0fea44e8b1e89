"""A model that renders: precision, chunks, recorded kernels, films."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from evaluation.recording import Recordings, record_kernels
from geometry.cameras import Cameras, Views
from model import LVSM, Encoded
from model.transformer import Attention
from utils.media import start_to_uint8
from utils.precision import PrecisionConfig, amp_dtype, autocast

# Targets of a scene that are rendered at once. Images do not depend on it; memory grows with it. 11 fill whole rounds
# of the multiprocessors of an H100 or H200 in most matmuls (benchmarks/RECORDS.md).
_TARGETS_AT_ONCE = 11


class Predictor(ABC):
    """What gives images of target cameras: a model, or what it is compared with."""

    device: torch.device

    @abstractmethod
    def encode(self, inputs: Views) -> Encoded:
        """What is kept of the scenes' inputs [b, v]."""

    @abstractmethod
    def render(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Images of the target cameras [b, t]."""

    def stream(self, encoded: Encoded, targets: Cameras) -> Iterator[Float[Tensor, "b c 3 h w"]]:
        """Images of any number of target cameras [b, t], `c` at a time and the last time fewer."""
        for start in range(0, targets.shape[1], _TARGETS_AT_ONCE):
            yield self.render(encoded, targets[:, start : start + _TARGETS_AT_ONCE])

    def film(self, encoded: Encoded, targets: Cameras) -> Iterator[UInt8[np.ndarray, "c h w 3"]]:
        """8-bit frames of one scene from target cameras [1, t], `c` at a time, the next ones rendered meanwhile."""
        before = None
        for images in self.stream(encoded, targets):
            begun = start_to_uint8(images[0])
            if before is not None:
                yield before()
            before = begun
        if before is not None:
            yield before()


@dataclass(frozen=True)
class Renderer(Predictor):
    """A model with the precision it renders in.

    Attributes:
        recordings: what records calls that come again and again; None: nothing is recorded.
    """

    model: LVSM
    precision: PrecisionConfig
    device: torch.device
    recordings: Recordings | None = field(default=None, compare=False)

    def encode(self, inputs: Views) -> Encoded:
        """What the model keeps of the scenes' inputs [b, v]."""
        return self._call(self._encode, inputs)

    def render(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Images of the target cameras [b, t]."""
        return self._call(self._decode, encoded, targets)

    def record(self, encoded: Encoded, targets: Cameras) -> Callable[[Cameras], Tensor]:
        """A function of cameras [b, t] like `targets` that renders these scenes [b t 3 h w].

        For viewers: on a GPU its kernels are recorded at once, and it is not to be called by two threads at a time.
        """
        if self.device.type != "cuda":
            return functools.partial(self._decode, encoded)
        return record_kernels(functools.partial(self._decode, self._prepared(encoded, targets)), targets)

    def _prepared(self, encoded: Encoded, targets: Cameras) -> Encoded:
        """What renders faster, where there is memory for it."""
        try:
            with torch.inference_mode():
                return self.model.prepare_frames(encoded, targets)
        except torch.OutOfMemoryError:
            return encoded

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args) if self.recordings is None else self.recordings.call(function, *args)

    def _encode(self, inputs: Views) -> Encoded:
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.encode(inputs)

    def _decode(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.decode(encoded, targets, max_views=_TARGETS_AT_ONCE).float()


def finished_renderer(model: LVSM, precision: PrecisionConfig, device: torch.device) -> Renderer:
    """A renderer of a model that will not be trained: in evaluation mode, its weights rounded once for all calls."""
    model = round_matmul_weights(model, precision).to(device).eval()
    return Renderer(model, precision, device, Recordings() if device.type == "cuda" else None)


def round_matmul_weights(model: LVSM, cfg: PrecisionConfig) -> LVSM:
    """Round the weights of matmuls once to what autocast would round them to at every call, and prepare the norms.

    For inference alone: it changes no number, and spares the work.
    """
    dtype = amp_dtype(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
        elif isinstance(module, Attention):
            module.settle_norms()
    return model

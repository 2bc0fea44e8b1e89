"""A model that renders: precision, chunks, recorded kernels, films."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from geometry.cameras import Cameras, Views
from model import LVSM, Encoded
from utils.media import start_to_uint8
from utils.precision import PrecisionConfig, amp_dtype, autocast

# Targets of a scene rendered at once: bounds memory, changes nothing else.
_TARGETS_AT_ONCE = 8
# Runs before kernels are recorded: compilation and choices by measuring must be over.
_WARM_UP = 3


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
    """A model with the precision it renders in."""

    model: LVSM
    precision: PrecisionConfig
    device: torch.device

    def encode(self, inputs: Views) -> Encoded:
        """What the model keeps of the scenes' inputs [b, v]."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.encode(inputs)

    def render(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Images of the target cameras [b, t]."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.decode(encoded, targets, max_views=_TARGETS_AT_ONCE).float()

    def record(self, encoded: Encoded, targets: Cameras) -> Callable[[Cameras], Tensor]:
        """A function of cameras [b, t] like `targets` that renders these scenes [b t 3 h w] without work for the host.

        For viewers: on a GPU the kernels are recorded once and played again; the result is overwritten by the next.
        """
        if self.device.type != "cuda":
            return lambda cameras: self.render(encoded, cameras)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            place = replace(targets, c2w=targets.c2w.clone(), fxfycxcy=targets.fxfycxcy.clone())
            for _ in range(_WARM_UP):
                self.render(encoded, place)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
            result = self.render(encoded, place)

        # The recorded kernels read the weights and `encoded` where they lie, so `play` keeps both alive.
        def play(cameras: Cameras, _read: object = (self.model, encoded)) -> Tensor:
            with torch.inference_mode():
                place.c2w.copy_(cameras.c2w)
                place.fxfycxcy.copy_(cameras.fxfycxcy)
                graph.replay()
            return result

        return play


def round_matmul_weights(model: LVSM, cfg: PrecisionConfig) -> LVSM:
    """Round the weights of matmuls once to what autocast would round them to at every call.

    For inference alone: it changes no number, and spares the rounding.
    """
    dtype = amp_dtype(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    return model

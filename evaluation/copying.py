"""Copying the nearest input view: what every model has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.renderer import Predictor
from geometry.cameras import Cameras, Views
from model import Encoded


@dataclass(frozen=True)
class Copies(Encoded):
    """Scenes' inputs: images [b, v, 3, h, w] and camera centres [b, v, 3]."""

    images: Tensor
    centres: Tensor


@dataclass(frozen=True)
class NearestInput(Predictor):
    """Copies, for every target, the input whose camera centre is nearest.

    A target that stands where an input does is that input, and gets the nearest other one; a film does without this.
    """

    device: torch.device

    def encode(self, inputs: Views) -> Copies:
        """The inputs [b, v] as they are."""
        return Copies(inputs.images, inputs.cameras.c2w[..., :3, 3])

    def render(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Copies for the target cameras [b, t]."""
        assert isinstance(encoded, Copies)
        distances = torch.cdist(targets.c2w[..., :3, 3], encoded.centres)
        return copy_nearest(encoded.images, distances.masked_fill(distances == 0, torch.inf))

    def stream(self, encoded: Encoded, targets: Cameras) -> Iterator[Float[Tensor, "b c 3 h w"]]:
        """Copies for any number of target cameras [b, t], one at a time."""
        assert isinstance(encoded, Copies)
        for centre in targets.c2w[..., :3, 3].split(1, dim=1):
            yield copy_nearest(encoded.images, torch.cdist(centre, encoded.centres))


def copy_nearest(images: Float[Tensor, "b v 3 h w"], distances: Float[Tensor, "b t v"]) -> Float[Tensor, "b t 3 h w"]:
    """For every target the image of the input at the least distance."""
    scenes = torch.arange(len(distances), device=distances.device)[:, None]
    return images[scenes, distances.argmin(-1)]

"""Views and cameras to tokens, and tokens back to images (paper section 3.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from geometry.cameras import Cameras, Views, camera_rays, no_rays, plucker
from geometry.image_size import ImageSize
from model.compilation import Compilable
from model.transformer import LayerNorm
from utils.fields import bounded


@dataclass(frozen=True)
class TokenizerConfig:
    """Pixels to tokens, each of which covers `patch_size`² pixels.

    `image_size` is the side of square images, or [height, width]: images are scaled to cover it, then cut to its shape.
    """

    image_size: ImageSize = bounded(256, 1, 4096)
    patch_size: int = bounded(8, 1, 1024)
    in_channels: int = bounded(9, 1, 1024)


Rays = Literal["plucker", "camera", "none"]
# What tokenizers see of cameras [b, v], as six channels.
RAYS: dict[Rays, Callable[[Cameras], Tensor]] = {"plucker": plucker, "camera": camera_rays, "none": no_rays}


def image_maps(rays: Callable[[Cameras], Tensor], views: Views) -> Float[Tensor, "b v 9 h w"]:
    """Colours in [-1, 1] and rays of views whose images are in [0, 1]."""
    return torch.cat([views.images * 2 - 1, rays(views.cameras)], dim=2)


class Tokenizer(Compilable, nn.Module):
    """One linear layer from patches to tokens.

    Args:
        channels: of the maps that `maps`, set by whoever builds it, makes of views or cameras [b, v]: [b v c h w].
    """

    maps: Callable[[Any], Tensor]

    def __init__(self, channels: int, d: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(channels * patch_size**2, d, bias=False)

    def forward(self, views: Any) -> Float[Tensor, "b v n d"]:
        """The tokens of each view or camera, row by row."""
        return self.run(Tokenizer._tokenize, self, views)

    def _tokenize(self, views: Any) -> Tensor:
        p = self.patch_size
        # Channels come last inside a patch.
        patches = rearrange(self.maps(views), "b v c (H p) (W q) -> b v (H W) (p q c)", p=p, q=p)
        return self.linear(patches)


class Head(Compilable, nn.Module):
    """Normalisation, one linear layer and a sigmoid from tokens to the pixels of their patches."""

    def __init__(self, d: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = LayerNorm(d)
        self.linear = nn.Linear(d, 3 * patch_size**2, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] of that size in pixels."""
        return self.run(Head._paint, self, tokens, height, width)

    def _paint(self, tokens: Tensor, height: int, width: int) -> Tensor:
        p = self.patch_size
        pixels = torch.sigmoid(self.linear(self.norm(tokens)))
        return rearrange(pixels, "b (H W) (p q c) -> b c (H p) (W q)", H=height // p, W=width // p, p=p, q=p)

"""The VGG-19 perceptual loss, and where its weights come from."""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.compilation import Compilable
from utils.download import DownloadError, PublishedFile
from utils.errors import InputError

log = logging.getLogger("lvsm")

VGG19_URL = "https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat"
VGG19_MD5 = "106118b7cf60435e6d8e04f6a6dc3657"
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30)
_CUTS = (4, 9, 14, 23, 32)
_SCALES = (2.6, 4.8, 3.7, 5.6, 1.5 / 10)
_MEAN_RGB = (123.68, 116.779, 103.939)
# Images at a time: bounds memory, changes nothing else.
_CHUNK = 16
_OFF = "or set training.perceptual_loss_weight=0"


def _vgg19_features() -> nn.Sequential:
    """torchvision's `vgg19().features[:32]` with average pooling, weights not yet set."""
    import torchvision  # slow to import and needed only here

    # Built on the meta device, since the classifier that comes along is most of the network.
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features[:32]
    layers = [nn.AvgPool2d(2) if isinstance(layer, nn.MaxPool2d) else layer for layer in features]
    return nn.Sequential(*layers).to_empty(device="cpu")


class PerceptualLoss(Compilable, nn.Module):
    """Weighted mean absolute differences of images and of five VGG-19 feature maps (Chen and Koltun, ICCV 2017).

    Args:
        weights: `{i}.weight` [out, in, 3, 3] and `{i}.bias` for the convolutions i of `vgg19().features[:32]`.
    """

    mean: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        features = _vgg19_features()
        features.load_state_dict(dict(weights))
        starts = (0, *_CUTS[:-1])
        self.stages = nn.ModuleList(features[a:b] for a, b in zip(starts, _CUTS, strict=True))
        self.register_buffer("mean", torch.tensor(_MEAN_RGB).view(3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, render: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """Distance of `render` to `image`, both in [0, 1]; gradients flow to `render` alone.

        Computed a few images at a time, gradients along with them, so that no feature map waits for backward.
        """
        distance = functools.partial(self.run, PerceptualLoss.distance, self)
        return _Chunked.apply(render, image.detach(), distance)

    def distance(self, render: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """The same in one piece, as the formula stands."""
        x = render * 255 - self.mean
        y = image * 255 - self.mean
        total = (x - y).abs().mean()
        x, y = (z.contiguous(memory_format=torch.channels_last) for z in (x, y))
        for stage, scale in zip(self.stages, _SCALES, strict=True):
            x = stage(x)
            with torch.no_grad():
                y = stage(y)
            total = total + (x - y).float().abs().mean() / scale
        return total / 255


class _Chunked(torch.autograd.Function):
    """A mean over images as a function of `render`, whose gradient is computed in forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, render: Tensor, image: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        total: list[Tensor] = []
        gradients: list[Tensor] = []
        wanted = ctx.needs_input_grad[0]
        for x, y in zip(render.split(_CHUNK), image.split(_CHUNK), strict=True):
            with torch.set_grad_enabled(wanted):
                part = x.detach().requires_grad_(wanted)
                share = distance(part, y) * (len(x) / len(render))
            total.append(share.detach())
            gradients += torch.autograd.grad(share, part) if wanted else []
        ctx.save_for_backward(torch.cat(gradients) if wanted else None)
        return torch.stack(total).sum()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


def default_vgg19_path() -> Path:
    """Where the VGG-19 file is looked for unless the configuration names another place."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG19_URL.rsplit("/", 1)[1]


def _vgg19_file() -> PublishedFile:
    return PublishedFile(VGG19_URL, VGG19_MD5, "md5")


def load_vgg19(path: Path) -> dict[str, Tensor]:
    """Weights for `PerceptualLoss` from MatConvNet's `imagenet-vgg-verydeep-19.mat`.

    Raises:
        InputError: the file is missing, or not the file whose MD5 is `VGG19_MD5`.
    """
    if not path.is_file():
        raise InputError(f"the perceptual loss needs VGG-19 weights: fetch {VGG19_URL} and put it at {path}, {_OFF}")
    if fault := _vgg19_file().fault(path):
        raise InputError(f"{path}: {fault}: fetch it again from {VGG19_URL}, {_OFF}")
    return read_vgg19(path)


def read_vgg19(path: Path) -> dict[str, Tensor]:
    """Convolution weights of a MatConvNet VGG-19 file, laid out for torch (out, in, h, w)."""
    from scipy.io import loadmat  # slow to import and needed only here

    layers = loadmat(path)["layers"][0]
    weights: dict[str, Tensor] = {}
    for index in _CONVOLUTIONS:
        kernel, bias = layers[index][0][0][2][0]
        weights[f"{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        weights[f"{index}.bias"] = torch.from_numpy(bias.reshape(-1))
    return weights


def fetch_vgg19(path: Path) -> Path:
    """`path`, where the VGG-19 file is downloaded to if nothing is there; where it cannot be had, say so and go on."""
    try:
        _vgg19_file().fetch(path)
    except DownloadError as error:
        log.warning("cannot fetch %s: %s", VGG19_URL, error)
    return path

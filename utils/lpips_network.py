"""The network of LPIPS, from weights that are checked and never executed."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from utils.download import DownloadError, PublishedFile
from utils.errors import InputError
from utils.tensor_file import read_tensors
from utils.tensors import tensor_fault
from utils.text import one_line

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# How the SHA-256 of the file begins; its name says so, too.
VGG16_SHA256 = "397923af"
# Layers of torchvision's VGG-16 with which the package's slices of it end.
_SLICE_ENDS = (4, 9, 16, 23)
_CONVOLUTION = re.compile(r"features\.((\d{1,2})\.(?:weight|bias))")
_OFF = "or leave lpips out of inference.metrics (in training, set training.lpips_loss_weight=0)"


class Lpips(nn.Module):
    """LPIPS 0.1 with the VGG-16 backbone of the `lpips` package (Zhang et al., CVPR 2018).

    Raises:
        InputError: the backbone's weights are neither on disk nor to be had, or not what they should be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = build_lpips()
        self.requires_grad_(False).eval()

    def forward(self, render: Float[Tensor, "b 3 h w"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Distance per image, inputs in [0, 1]."""
        return self.network(render * 2 - 1, image * 2 - 1).flatten()


def build_lpips() -> nn.Module:
    """LPIPS 0.1 with the VGG-16 backbone of the `lpips` package (Zhang et al., CVPR 2018).

    The package and torchvision would unpickle their files as they are; so the network is built empty and the weights
    are read here.

    Raises:
        InputError: the backbone's weights are neither on disk nor to be had, or not what they should be.
    """
    import lpips  # slow to import and needed only here

    path = vgg16_path()
    try:
        state = _backbone(_read_vgg16(path)) | _read(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth")
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # the package asks torchvision for no weights in an old way
            network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        network.scaling_layer = lpips.ScalingLayer()
        _load(network, state)
    except (DownloadError, OSError, ValueError) as error:
        raise InputError(
            f"LPIPS needs VGG-16 weights ({one_line(error)}): fetch {VGG16_URL} and put it at {path}, {_OFF}"
        ) from None
    return network


def vgg16_path() -> Path:
    """Where torchvision keeps the backbone's file, too."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG16_URL.rsplit("/", 1)[1]


def _read_vgg16(path: Path) -> dict[str, Tensor]:
    """The file's tensors; fetched if it is missing.

    Raises:
        ValueError: it is not the file that torchvision published.
    """
    published = PublishedFile(VGG16_URL, VGG16_SHA256)
    published.fetch(path)
    if fault := published.fault(path):
        raise ValueError(f"the file there has {fault}...")
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict's tensors.

    Raises:
        ValueError: it holds anything else.
    """
    state = read_tensors(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    return dict(state)


def _backbone(state: dict[str, Any]) -> dict[str, Any]:
    """The convolutions of torchvision's VGG-16 under the names that the `lpips` package gives them."""
    renamed = {}
    for name, value in state.items():
        if match := _CONVOLUTION.fullmatch(str(name)):
            slice_number = 1 + sum(int(match[2]) >= end for end in _SLICE_ENDS)
            renamed[f"net.slice{slice_number}.{match[1]}"] = value
    return renamed


def _load(network: nn.Module, state: dict[str, Any]) -> None:
    """Give every parameter its value, once checked.

    Raises:
        ValueError: names the one that is missing or not as it should be.
    """
    for name, parameter in network.named_parameters():
        if fault := tensor_fault(state.get(name), parameter.shape):
            raise ValueError(f"{name} {fault}")
    # The linear layers stand in a list as well, under second names.
    values = {name: state[name] for name, _ in network.named_parameters()}
    network.load_state_dict(values, strict=False, assign=True)

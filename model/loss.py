"""The training loss: MSE, LPIPS and the perceptual loss, weighted (paper section 3.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.execution import ExecutionConfig, compile_model
from model.perceptual import PerceptualLoss, default_vgg19_path, fetch_vgg19, load_vgg19
from utils.fields import bounded, file_path
from utils.lpips_network import Lpips


@dataclass(frozen=True)
class LossConfig:
    """Loss weights; a term of weight 0 is not built, so it needs no network weights."""

    l2_loss_weight: float = bounded(1.0, 0, 1_000_000)
    lpips_loss_weight: float = bounded(0.0, 0, 1_000_000)
    perceptual_loss_weight: float = bounded(0.5, 0, 1_000_000)
    vgg19_path: str = file_path("")


# What builds each term but the MSE; its weight is the field of LossConfig that is called "<name>_loss_weight".
TERMS: dict[str, Callable[[LossConfig], nn.Module]] = {
    "lpips": lambda cfg: Lpips(),
    "perceptual": lambda cfg: PerceptualLoss(load_vgg19(fetch_vgg19(vgg19_path(cfg)))),
}


def term_weights(cfg: LossConfig) -> dict[str, float]:
    """The weights of all terms by name, the MSE ("l2") among them."""
    return {name: getattr(cfg, f"{name}_loss_weight") for name in ("l2", *TERMS)}


class Loss(nn.Module):
    """Weighted sum of terms. Holds frozen networks, so it is never part of a checkpoint.

    Args:
        terms: beside the MSE, by name: renders and images [b 3 h w] to values of any shape, of which the mean counts.
    """

    def __init__(self, cfg: LossConfig, terms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.weights = term_weights(cfg)
        self.terms = nn.ModuleDict(terms)

    def forward(
        self, renders: Float[Tensor, "b t 3 h w"], images: Float[Tensor, "b t 3 h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Loss terms by name, `loss` their weighted sum and `psnr` (dB, of the whole batch's MSE) without gradient."""
        renders = renders.flatten(0, 1)
        images = images.flatten(0, 1)
        l2 = F.mse_loss(renders.float(), images)
        numbers = {"loss": self.weights["l2"] * l2, "l2_loss": l2, "psnr": -10 * torch.log10(l2.detach())}
        for name, term in self.terms.items():
            value = term(renders, images).mean()
            numbers[f"{name}_loss"] = value
            numbers["loss"] = numbers["loss"] + self.weights[name] * value
        return numbers


def vgg19_path(cfg: LossConfig) -> Path:
    """The VGG-19 file that `cfg` means."""
    return Path(cfg.vgg19_path) if cfg.vgg19_path else default_vgg19_path()


def build_loss(cfg: LossConfig, execution: ExecutionConfig | None = None) -> Loss:
    """Build the loss with the networks that its weights call for, run as `execution` says.

    Raises:
        InputError: a needed network's weights cannot be had; the message says where to put them.
    """
    weights = term_weights(cfg)
    terms = {name: build(cfg) for name, build in TERMS.items() if weights[name]}
    return compile_model(Loss(cfg, terms), execution or ExecutionConfig())

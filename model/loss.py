"""The training loss: MSE, LPIPS and the perceptual loss, weighted (paper section 3.2)."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.execution import ExecutionConfig, compile_model
from model.perceptual import PerceptualLoss, default_vgg19_path, load_vgg19
from utils.fields import bounded, file_path
from utils.lpips_network import Lpips


@dataclass(frozen=True)
class LossConfig:
    """Loss weights; a term of weight 0 is not built, so it needs no network weights."""

    l2_loss_weight: float = bounded(1.0, 0, 1_000_000)
    lpips_loss_weight: float = bounded(0.0, 0, 1_000_000)
    perceptual_loss_weight: float = bounded(0.5, 0, 1_000_000)
    vgg19_path: str = file_path("")


class Loss(nn.Module):
    """Weighted sum of the configured terms. Holds frozen networks, so it is never part of a checkpoint.

    Args:
        lpips: the LPIPS network, needed if its weight is not 0.
        perceptual: likewise.
    """

    def __init__(self, cfg: LossConfig, lpips: nn.Module | None = None, perceptual: nn.Module | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.lpips = lpips
        self.perceptual = perceptual

    def forward(
        self, renders: Float[Tensor, "b t 3 h w"], images: Float[Tensor, "b t 3 h w"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Loss terms by name, `loss` their weighted sum and `psnr` (dB, of the whole batch's MSE) without gradient."""
        renders, images = renders.flatten(0, 1), images.flatten(0, 1)
        l2 = F.mse_loss(renders.float(), images)
        terms = {"loss": self.cfg.l2_loss_weight * l2, "l2_loss": l2, "psnr": -10 * torch.log10(l2.detach())}
        if self.lpips is not None:
            terms["lpips_loss"] = self.lpips(renders, images).mean()
            terms["loss"] = terms["loss"] + self.cfg.lpips_loss_weight * terms["lpips_loss"]
        if self.perceptual is not None:
            terms["perceptual_loss"] = self.perceptual(renders, images)
            terms["loss"] = terms["loss"] + self.cfg.perceptual_loss_weight * terms["perceptual_loss"]
        return terms


def vgg19_path(cfg: LossConfig) -> Path:
    """The VGG-19 file that `cfg` means."""
    return Path(cfg.vgg19_path) if cfg.vgg19_path else default_vgg19_path()


def build_loss(cfg: LossConfig, execution: ExecutionConfig | None = None) -> Loss:
    """Build the loss with the networks that its weights call for, run as `execution` says.

    Raises:
        InputError: a needed network's weights cannot be had; the message says where to put them.
    """
    lpips = Lpips() if cfg.lpips_loss_weight else None
    perceptual = PerceptualLoss(load_vgg19(vgg19_path(cfg))) if cfg.perceptual_loss_weight else None
    return compile_model(Loss(cfg, lpips, perceptual), execution or ExecutionConfig())

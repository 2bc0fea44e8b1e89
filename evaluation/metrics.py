"""Image metrics of the evaluation, per image and in full precision."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from geometry.image_size import ImageSize, sides, size_text
from utils.errors import InputError
from utils.lpips_network import Lpips

Metric = Callable[[Tensor, Tensor], Tensor]
# What `psnr_in_mask` is called in files, beside the metrics of `METRICS`.
PSNR_IN_MASK = "psnr_in_mask"

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2


def psnr(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB; both images are clamped to [0, 1].

    Equal images give 100 dB, so that averages stay finite; 8-bit images that differ at all stay below that.
    """
    error = prediction.float().clamp(0, 1) - target.float().clamp(0, 1)
    return -10 * torch.log10(error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10))


def psnr_in_mask(
    prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """PSNR in dB of what the mask covers: a pixel's squared error counts by its coverage, mask / 255.

    -10 log10(sum(mask * error^2) / (c * sum(mask))), as `psnr` clamped and finite; NaN where the mask covers nothing.
    """
    error = prediction.float().clamp(0, 1) - target.float().clamp(0, 1)
    weights = mask.double()
    mean = (weights * error.double().square().mean(1)).sum((1, 2)) / weights.sum((1, 2))
    return (-10 * torch.log10(mean.clamp_min(1e-10))).float()


def _gaussian_window(device: torch.device) -> Float[Tensor, " k"]:
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, device=device, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    return window / window.sum()


def _local_mean(images: Tensor, window: Tensor) -> Tensor:
    """Gaussian mean around every pixel whose window lies inside the image."""
    channels = images.shape[1]
    rows = F.conv2d(images, window.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
    return F.conv2d(rows, window.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)


def ssim(prediction: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Structural similarity (Wang et al. 2004): Gaussian window 11 taps, sigma 1.5, sample covariance.

    What scikit-image gives for `win_size=11, gaussian_weights=True, data_range=1, channel_axis=...`: its
    5-pixel border, where windows would leave the image, is left out, and the covariance factor is 121/120.
    Computed in float64, since variances are differences of nearly equal numbers.
    """
    x = prediction.double()
    y = target.double()
    window = _gaussian_window(x.device)
    mean_x = _local_mean(x, window)
    mean_y = _local_mean(y, window)
    taps = len(window) ** 2
    unbiased = taps / (taps - 1)
    var_x = unbiased * (_local_mean(x * x, window) - mean_x**2)
    var_y = unbiased * (_local_mean(y * y, window) - mean_y**2)
    cov = unbiased * (_local_mean(x * y, window) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * cov + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


# What builds each metric on a device, by the name that `inference.metrics` holds.
METRICS: dict[str, Callable[[torch.device], Metric]] = {
    "psnr": lambda device: psnr,
    "ssim": lambda device: ssim,
    "lpips": lambda device: Lpips().to(device),
}


def build_metrics(names: Sequence[str], device: torch.device, image_size: ImageSize | None = None) -> dict[str, Metric]:
    """The metrics of these names, each mapping two batches of images to a value an image.

    Args:
        image_size: of the images, if known.

    Raises:
        InputError: images that are too small for SSIM, or LPIPS without its weights.
    """
    least = 2 * _SSIM_RADIUS + 1
    if "ssim" in names and image_size is not None and min(sides(image_size)) < least:
        raise InputError(
            f"SSIM needs images of {least} pixels a side, and model.image_tokenizer.image_size is "
            f"{size_text(image_size)}: leave ssim out of inference.metrics (in training, set training.validate_every=0)"
        )
    return {name: METRICS[name](device) for name in names}


def score(
    metrics: Mapping[str, Metric], renders: Float[Tensor, "b t c h w"], images: Float[Tensor, "b t c h w"]
) -> dict[str, Float[Tensor, "b t"]]:
    """Every metric of every image, in true float32: neither autocast nor TF32 has a part in it."""
    flat = renders.float().flatten(0, 1).clamp(0, 1), images.float().flatten(0, 1)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.autocast(renders.device.type, enabled=False), exact:
        return {name: metric(*flat).view(renders.shape[:2]) for name, metric in metrics.items()}

"""Arithmetic of training, for the share of a card's peak that a run uses (model FLOP utilisation)."""

import torch

from model import VARIANTS
from model.lvsm import DecoderOnly, ModelConfig

# Dense bf16 rates in FLOP/s from the vendors' data sheets, by a part of the device's name; more specific ones first.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A40": 150e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a known GPU in FLOP/s; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def training_flops(cfg: ModelConfig, num_inputs: int, num_targets: int, tokens_per_view: int) -> float:
    """FLOP of forward and backward for one scene: what the formulas ask for, nothing recomputed, nothing saved."""
    sizes, inputs, target = cfg.transformer, num_inputs * tokens_per_view, tokens_per_view
    if VARIANTS[cfg.class_name] is DecoderOnly:
        return num_targets * _stack_flops(sizes.d, sizes.n_layer, inputs + target)
    latents = sizes.n_latent_vectors
    decoder = num_targets * _stack_flops(sizes.d, sizes.decoder_n_layer, latents + target)
    return _stack_flops(sizes.d, sizes.encoder_n_layer, latents + inputs) + decoder


def _stack_flops(d: int, n_layer: int, tokens: int) -> float:
    """Backward costs twice the forward for matrix products, 2.5 times for attention, which recomputes its scores."""
    products = 3 * 2 * 12 * d * d * tokens
    attention = 3.5 * 4 * tokens * tokens * d
    return n_layer * (products + attention)

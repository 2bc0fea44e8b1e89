"""Arithmetic of training and rendering, for the share of a card's peak that they use (model FLOP utilisation)."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Passes:
    """Costs of matrix products and of attention in units of one forward pass."""

    products: float = 1.0
    attention: float = 1.0


FORWARD = Passes()
# Backward costs twice the forward for matrix products, 2.5 times for attention, which recomputes its scores.
TRAINING = Passes(3.0, 3.5)


def training_flops(cfg: ModelConfig, num_inputs: int, num_targets: int) -> float:
    """FLOP of forward and backward for one scene of square images: nothing recomputed, nothing saved."""
    encoder = encoding_flops(cfg, num_inputs, TRAINING)
    return encoder + num_targets * decoding_flops(cfg, num_inputs, TRAINING)


def encoding_flops(cfg: ModelConfig, num_inputs: int, passes: Passes = FORWARD) -> float:
    """FLOP that a scene of square images costs once, whatever is rendered of it."""
    if VARIANTS[cfg.class_name] is DecoderOnly:
        return 0.0
    sizes = cfg.transformer
    tokens = sizes.n_latent_vectors + num_inputs * _tokens_per_view(cfg)
    return _stack_flops(sizes.d, sizes.encoder_n_layer, tokens, passes)


def decoding_flops(cfg: ModelConfig, num_inputs: int, passes: Passes = FORWARD) -> float:
    """FLOP of one square target."""
    sizes, target = cfg.transformer, _tokens_per_view(cfg)
    if VARIANTS[cfg.class_name] is DecoderOnly:
        return _stack_flops(sizes.d, sizes.n_layer, (num_inputs + 1) * target, passes)
    return _stack_flops(sizes.d, sizes.decoder_n_layer, sizes.n_latent_vectors + target, passes)


def _tokens_per_view(cfg: ModelConfig) -> int:
    return (cfg.image_tokenizer.image_size // cfg.image_tokenizer.patch_size) ** 2


def _stack_flops(d: int, n_layer: int, tokens: int, passes: Passes) -> float:
    products = passes.products * 2 * 12 * d * d * tokens
    attention = passes.attention * 4 * tokens * tokens * d
    return n_layer * (products + attention)

"""The two LVSM variants: a few tokenizers and a head around one transformer (paper section 3).

Both `encode` the input views of a scene once and `decode` any number of target cameras from that. Every target
is rendered on its own: the result does not depend on which other targets are asked for.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from geometry.cameras import Cameras, Views, plucker
from model.execution import ExecutionConfig, compiled
from model.transformer import LayerNorm, Transformer, TransformerConfig, init_linears
from utils.fields import bounded


@dataclass(frozen=True)
class TokenizerConfig:
    """Pixels to tokens: `image_size` is the shorter side in pixels, a token covers `patch_size`² pixels."""

    image_size: int = bounded(256, 1, 4096)
    patch_size: int = bounded(8, 1, 1024)
    in_channels: int = bounded(9, 1, 1024)


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section of a configuration file."""

    class_name: str = "model.LVSM_scene_decoder_only.Images2LatentScene"
    image_tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target_pose_tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(in_channels=6))
    transformer: TransformerConfig = field(default_factory=TransformerConfig)


class LVSM(nn.Module):
    """What both variants share: tokenizers, output head, and rendering in chunks of target views.

    Args:
        execution: how it runs; the numbers are the same but for rounding.
    """

    # Keys of `model.transformer` that the variant does not read.
    unread: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cfg: ModelConfig, execution: ExecutionConfig) -> None:
        super().__init__()
        d, p = cfg.transformer.d, cfg.image_tokenizer.patch_size
        self.patch_size = p
        self.image_tokenizer = nn.Linear(9 * p * p, d, bias=False)
        self.pose_tokenizer = nn.Linear(6 * p * p, d, bias=False)
        self.input_norm, self.head_norm = LayerNorm(d), LayerNorm(d)
        self.head = nn.Linear(d, 3 * p * p, bias=False)
        init_linears(self)
        self._build(cfg.transformer, execution)
        self._tokenize_inputs = compiled(self._tokenize_inputs, execution)  # type: ignore[method-assign]
        self._tokenize_targets = compiled(self._tokenize_targets, execution)  # type: ignore[method-assign]
        self._join = compiled(self._join, execution)  # type: ignore[method-assign]
        self._paint = compiled(self._paint, execution)  # type: ignore[method-assign]

    def _build(self, cfg: TransformerConfig, execution: ExecutionConfig) -> None:
        raise NotImplementedError

    def encode(self, inputs: Views) -> Float[Tensor, "b k d"]:
        """Turn input views [b, v] (float images in [0, 1]) into what `decode` keeps of a scene."""
        raise NotImplementedError

    def _transform(self, encoded: Tensor, target: Float[Tensor, "bt n d"]) -> Float[Tensor, "bt n d"]:
        raise NotImplementedError

    def decode(
        self, encoded: Float[Tensor, "b k d"], targets: Cameras, max_views: int | None = None
    ) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t]; `max_views` bounds the targets in memory at once, not the result."""
        chunk = max_views or targets.shape[1]
        starts = range(0, targets.shape[1], chunk)
        return torch.cat([self._decode(encoded, targets[:, s : s + chunk]) for s in starts], dim=1)

    def forward(self, inputs: Views, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t] from input views [b, v]."""
        return self.decode(self.encode(inputs), targets)

    def _decode(self, encoded: Tensor, targets: Cameras) -> Tensor:
        tokens = self._transform(encoded, self._tokenize_targets(targets))
        images = self._paint(tokens, targets.height, targets.width)
        return rearrange(images, "(b t) c h w -> b t c h w", t=targets.shape[1])

    def _join(self, encoded: Tensor, target: Tensor, target_first: bool) -> Float[Tensor, "bt n d"]:
        """Normalised sequences: a scene's tokens, repeated for each target, joined with the tokens of that target."""
        shared = repeat(encoded, "b k d -> (b t) k d", t=target.shape[0] // encoded.shape[0])
        return self.input_norm(torch.cat([target, shared] if target_first else [shared, target], dim=1))

    def _tokenize_targets(self, targets: Cameras) -> Float[Tensor, "bt n d"]:
        return rearrange(self.pose_tokenizer(self._patchify(plucker(targets))), "b t n d -> (b t) n d")

    def _paint(self, tokens: Float[Tensor, "b n d"], height: int, width: int) -> Float[Tensor, "b 3 h w"]:
        pixels = torch.sigmoid(self.head(self.head_norm(tokens)))
        grid = {"H": height // self.patch_size, "W": width // self.patch_size}
        return rearrange(pixels, "b (H W) (p q c) -> b c (H p) (W q)", p=self.patch_size, q=self.patch_size, **grid)

    def _tokenize_inputs(self, inputs: Views) -> Float[Tensor, "b vn d"]:
        channels = torch.cat([inputs.images * 2 - 1, plucker(inputs.cameras)], dim=2)
        return rearrange(self.image_tokenizer(self._patchify(channels)), "b v n d -> b (v n) d")

    def _patchify(self, maps: Float[Tensor, "b v c h w"]) -> Float[Tensor, "b v n k"]:
        """Row-major patches, channels last inside a patch."""
        p = self.patch_size
        return rearrange(maps, "b v c (H p) (W q) -> b v (H W) (p q c)", p=p, q=p)


class DecoderOnly(LVSM):
    """One stack over [all input tokens, the tokens of one target] (24 layers, 171 M parameters)."""

    unread = ("encoder_n_layer", "decoder_n_layer", "n_latent_vectors")

    def _build(self, cfg: TransformerConfig, execution: ExecutionConfig) -> None:
        self.transformer = Transformer(cfg, cfg.n_layer, execution)

    def encode(self, inputs: Views) -> Float[Tensor, "b k d"]:
        """The input tokens: inputs attend to the target too, so nothing deeper can be shared."""
        return self._tokenize_inputs(inputs)

    def _transform(self, encoded: Tensor, target: Tensor) -> Tensor:
        sequence = self._join(encoded, target, target_first=False)
        # Counted from the end, so that the number of inputs changes nothing about it.
        return self.transformer(sequence, keep=slice(-target.shape[1], None))


class EncoderDecoder(LVSM):
    """A scene becomes a fixed set of latents; a second stack renders from them (12 + 12 layers, 173 M)."""

    unread = ("n_layer",)

    def _build(self, cfg: TransformerConfig, execution: ExecutionConfig) -> None:
        self.encoder = Transformer(cfg, cfg.encoder_n_layer, execution)
        self.decoder = Transformer(cfg, cfg.decoder_n_layer, execution)
        self.latents = nn.Parameter(torch.empty(cfg.n_latent_vectors, cfg.d))
        nn.init.trunc_normal_(self.latents, std=0.02)

    def encode(self, inputs: Views) -> Float[Tensor, "b k d"]:
        """The latents after the encoder stack."""
        tokens = self._tokenize_inputs(inputs)
        sequence = torch.cat([repeat(self.latents, "k d -> b k d", b=len(tokens)), tokens], dim=1)
        return self.encoder(sequence, keep=slice(0, len(self.latents)))

    def _transform(self, encoded: Tensor, target: Tensor) -> Tensor:
        sequence = self._join(encoded, target, target_first=True)
        return self.decoder(sequence, keep=slice(0, target.shape[1]))

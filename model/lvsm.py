"""The LVSM variants: tokenizers and a head around stacks of transformer blocks (paper section 3).

All `encode` the input views of a scene once and `decode` any number of target cameras from that. Every target
is rendered on its own: the result does not depend on which other targets are asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from geometry.cameras import Cameras, Views, plucker
from model.compilation import Compilable
from model.encoded import Encoded
from model.flops import Flops, stack_flops
from model.tokens import Head, Tokenizer, TokenizerConfig, image_maps
from model.transformer import LayerNorm, Transformer, TransformerConfig, init_linears


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section of a configuration file."""

    class_name: str = "model.LVSM_scene_decoder_only.Images2LatentScene"
    image_tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target_pose_tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(in_channels=6))
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    @property
    def tokens_per_view(self) -> int:
        """Tokens of a square view."""
        return (self.image_tokenizer.image_size // self.image_tokenizer.patch_size) ** 2


class LVSM(Compilable, nn.Module):
    """What all variants share: tokenizers, output head, and rendering in chunks of target views."""

    # The published name of the class, which configuration files hold.
    published_class: ClassVar[str | None] = None
    # Parts that have other names in published checkpoints.
    published_parts: ClassVar[Mapping[str, str]] = {}
    # The keys of `model.transformer` that this variant reads beside those that all read, and the part whose length
    # each of them is.
    lengths: ClassVar[Mapping[str, str]] = {}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d = cfg.transformer.d
        p = cfg.image_tokenizer.patch_size
        self.image_tokenizer = Tokenizer(image_maps, 9, d, p)
        self.pose_tokenizer = Tokenizer(plucker, 6, d, p)
        self.input_norm = LayerNorm(d)
        self.head = Head(d, p)
        init_linears(self)

    def encode(self, inputs: Views) -> Encoded:
        """Turn input views [b, v] (float images in [0, 1]) into what `decode` needs of a scene."""
        raise NotImplementedError

    def target_tokens(self, encoded: Any, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The tokens that become the images of target cameras [b, t], from what this variant's `encode` gave."""
        raise NotImplementedError

    @staticmethod
    def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """Arithmetic of encoding a scene of square images; that of tokenizers is not counted."""
        return Flops()

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """Arithmetic of one square target."""
        raise NotImplementedError

    def decode(self, encoded: Encoded, targets: Cameras, max_views: int | None = None) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t]; `max_views` bounds the targets in memory at once, not the result."""
        chunk = max_views or targets.shape[1]
        starts = range(0, targets.shape[1], chunk)
        return torch.cat([self._decode(encoded, targets[:, s : s + chunk]) for s in starts], dim=1)

    def forward(self, inputs: Views, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t] from input views [b, v]."""
        return self.decode(self.encode(inputs), targets)

    def _decode(self, encoded: Encoded, targets: Cameras) -> Tensor:
        images = self.head(self.target_tokens(encoded, targets), targets.height, targets.width)
        return rearrange(images, "(b t) c h w -> b t c h w", t=targets.shape[1])


@dataclass(frozen=True)
class SceneTokens(Encoded):
    """Scenes as tokens."""

    tokens: Float[Tensor, "b k d"]


class DecoderOnly(LVSM):
    """One stack over [all input tokens, the tokens of one target] (24 layers, 171 M parameters)."""

    published_class = "model.LVSM_scene_decoder_only.Images2LatentScene"
    published_parts: ClassVar = {"input_norm": "transformer_input_layernorm", "transformer": "transformer_blocks"}
    lengths: ClassVar = {"n_layer": "transformer"}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.transformer = Transformer(cfg.transformer, cfg.transformer.n_layer)

    def encode(self, inputs: Views) -> SceneTokens:
        """The input tokens: inputs attend to the target too, so nothing deeper can be shared."""
        return SceneTokens(self.image_tokenizer(inputs).flatten(1, 2))

    def target_tokens(self, encoded: SceneTokens, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the stack."""
        target = self.pose_tokenizer(targets)
        sequence = self.run(_join_inputs_first, self.input_norm, encoded.tokens, target)
        # Counted from the end, so that the number of inputs changes nothing about it.
        return self.transformer(sequence, queries=slice(-target.shape[2], None))

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The stack over inputs and target."""
        sizes = cfg.transformer
        return stack_flops(sizes.d, sizes.n_layer, (num_inputs + 1) * cfg.tokens_per_view)


class EncoderDecoder(LVSM):
    """A scene becomes a fixed set of latents; a second stack renders from them (12 + 12 layers, 173 M)."""

    published_class = "model.LVSM_scene_encoder_decoder.Images2LatentScene"
    published_parts: ClassVar = {
        "input_norm": "transformer_input_layernorm_decoder",
        "encoder": "transformer_encoder",
        "decoder": "transformer_decoder",
        "latents": "n_light_field_latent",
    }
    lengths: ClassVar = {"encoder_n_layer": "encoder", "decoder_n_layer": "decoder", "n_latent_vectors": "latents"}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        sizes = cfg.transformer
        self.encoder = Transformer(sizes, sizes.encoder_n_layer)
        self.decoder = Transformer(sizes, sizes.decoder_n_layer)
        self.latents = nn.Parameter(torch.empty(sizes.n_latent_vectors, sizes.d))
        nn.init.trunc_normal_(self.latents, std=0.02)

    def encode(self, inputs: Views) -> SceneTokens:
        """The latents after the encoder stack."""
        tokens = self.image_tokenizer(inputs).flatten(1, 2)
        sequence = torch.cat([repeat(self.latents, "k d -> b k d", b=len(tokens)), tokens], dim=1)
        return SceneTokens(self.encoder(sequence, queries=slice(0, len(self.latents))))

    def target_tokens(self, encoded: SceneTokens, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the decoder stack, which sees the latents beside them."""
        target = self.pose_tokenizer(targets)
        sequence = self.run(_join_target_first, self.input_norm, encoded.tokens, target)
        return self.decoder(sequence, queries=slice(0, target.shape[2]))

    @staticmethod
    def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The encoder stack over latents and inputs."""
        sizes = cfg.transformer
        return stack_flops(sizes.d, sizes.encoder_n_layer, sizes.n_latent_vectors + num_inputs * cfg.tokens_per_view)

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The decoder stack over latents and target."""
        sizes = cfg.transformer
        return stack_flops(sizes.d, sizes.decoder_n_layer, sizes.n_latent_vectors + cfg.tokens_per_view)


def _join_inputs_first(norm: LayerNorm, scene: Tensor, target: Tensor) -> Float[Tensor, "bt n d"]:
    """Normalised sequences: a scene's tokens [b k d], repeated for each target, then the target's [b t n d]."""
    return norm(torch.cat([_repeat(scene, target), target.flatten(0, 1)], dim=1))


def _join_target_first(norm: LayerNorm, scene: Tensor, target: Tensor) -> Float[Tensor, "bt n d"]:
    """The same, the target's tokens first."""
    return norm(torch.cat([target.flatten(0, 1), _repeat(scene, target)], dim=1))


def _repeat(scene: Tensor, target: Tensor) -> Float[Tensor, "bt k d"]:
    return repeat(scene, "b k d -> (b t) k d", t=target.shape[1])

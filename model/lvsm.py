"""The LVSM variants: tokenizers and a head around stacks of transformer blocks (paper section 3).

All `encode` the input views of a scene once and `decode` any number of target cameras from that. Every target
is rendered on its own: the result does not depend on which other targets are asked for.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from geometry.cameras import Cameras, Views
from geometry.image_size import ImageSize, sides
from geometry.relative import token_cameras
from model.attention_kernel import OwnKernel, for_each_sequence
from model.compilation import Compilable
from model.encoded import Encoded
from model.flops import Flops, linear_flops, stack_flops
from model.prope import prope
from model.tokens import RAYS, Head, Rays, Tokenizer, TokenizerConfig, image_maps
from model.transformer import (
    NO_QUERIES,
    CameraEncoding,
    CrossBlock,
    KeysValues,
    KVCache,
    LayerNorm,
    Relative,
    Transformer,
    TransformerConfig,
    init_linears,
    kv_cache,
)

# Bytes of a scene's caches for frames after one another: those of 8 inputs of the published size.
_LARGEST_CACHE = 1_100_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section of a configuration file.

    `rays` is what tokenizers see of cameras: Plücker coordinates in the world, as published; directions in each
    camera's own frame ("camera"); or nothing. The latter two leave poses to `transformer.camera_encoding`. "auto" is
    what the weights were trained with, and "plucker" for new ones.
    """

    class_name: str = "model.LVSM_scene_decoder_only.Images2LatentScene"
    image_tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    target_pose_tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(in_channels=6))
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    rays: Literal["auto", Rays] = "auto"

    @property
    def tokens_per_view(self) -> int:
        """Tokens of a view of `image_size`."""
        height, width = sides(self.image_tokenizer.image_size)
        patch = self.image_tokenizer.patch_size
        return (height // patch) * (width // patch)

    def at_size(self, size: ImageSize) -> "ModelConfig":
        """The configuration of the same model for images of another size."""
        return replace(
            self,
            image_tokenizer=replace(self.image_tokenizer, image_size=size),
            target_pose_tokenizer=replace(self.target_pose_tokenizer, image_size=size),
        )


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
        self.cfg = cfg
        self.image_tokenizer = Tokenizer(9, d, p)
        self.pose_tokenizer = Tokenizer(6, d, p)
        encoding = cfg.transformer.camera_encoding
        self.camera_encoding: CameraEncoding = "none" if encoding == "auto" else encoding
        self.see("plucker" if cfg.rays == "auto" else cfg.rays)
        self.input_norm = LayerNorm(d)
        self.head = Head(d, p)
        init_linears(self)

    def see(self, rays: Rays) -> None:
        """Have the tokenizers see these rays from now on."""
        self.rays = rays
        self.image_tokenizer.maps = functools.partial(image_maps, RAYS[rays])
        self.pose_tokenizer.maps = RAYS[rays]

    def encode(self, inputs: Views) -> Encoded:
        """Turn input views [b, v] (float images in [0, 1]) into what `decode` needs of a scene."""
        raise NotImplementedError

    def target_tokens(self, encoded: Any, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The tokens that become the images of target cameras [b, t], from what this variant's `encode` gave."""
        raise NotImplementedError

    def prepare_frames(self, encoded: Any, targets: Cameras) -> Encoded:
        """What `decode` renders cameras like `targets` [b, t] from faster than from `encoded`, or that itself.

        For inference, and never for two calls at once: each may write to it.
        """
        return encoded

    @staticmethod
    def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """Arithmetic of encoding a scene of images of `image_size`; that of tokenizers is not counted."""
        return Flops()

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """Arithmetic of one target of that size."""
        raise NotImplementedError

    def decode(self, encoded: Encoded, targets: Cameras, max_views: int | None = None) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t]; `max_views` bounds the targets in memory at once, not the result."""
        chunk = max_views or targets.shape[1]
        starts = range(0, targets.shape[1], chunk)
        return torch.cat([self._decode(encoded, targets[:, s : s + chunk]) for s in starts], dim=1)

    def forward(self, inputs: Views, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t] from input views [b, v]."""
        return self.decode(self.encode(inputs), targets)

    def _relative(self, *parts: Cameras | int) -> Relative | None:
        """How the tokens of a sequence are turned, of its parts' cameras or of so many tokens without one."""
        if self.camera_encoding == "none":
            return None
        sizes = self.cfg.transformer
        return prope(self.run(token_cameras, parts, self.image_tokenizer.patch_size, sizes.d_head))

    def _decode(self, encoded: Encoded, targets: Cameras) -> Tensor:
        return self._paint(self.target_tokens(encoded, targets), targets)

    def _paint(self, tokens: Float[Tensor, "bt n d"], targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        images = self.head(tokens, targets.height, targets.width)
        return rearrange(images, "(b t) c h w -> b t c h w", t=targets.shape[1])


@dataclass(frozen=True)
class SceneTokens(Encoded):
    """Scenes as tokens."""

    tokens: Float[Tensor, "b k d"]


@dataclass(frozen=True)
class InputTokens(SceneTokens):
    """Scenes as tokens of their input views, with the cameras of these."""

    cameras: Cameras


@dataclass(frozen=True)
class SceneKeys(Encoded):
    """Scenes as keys and values for every layer that renders."""

    layers: tuple[KeysValues, ...]


@dataclass(frozen=True)
class SceneCache(Encoded):
    """A scene as caches for every layer that renders one target of so many tokens at a time, and writes there."""

    layers: tuple[KVCache, ...]
    tokens: int


class DecoderOnly(LVSM):
    """One stack over [all input tokens, the tokens of one target] (24 layers, 171 M parameters)."""

    published_class: ClassVar[str | None] = "model.LVSM_scene_decoder_only.Images2LatentScene"
    published_parts: ClassVar = {"input_norm": "transformer_input_layernorm", "transformer": "transformer_blocks"}
    lengths: ClassVar = {"n_layer": "transformer"}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.transformer = Transformer(cfg.transformer, cfg.transformer.n_layer)

    def encode(self, inputs: Views) -> Encoded:
        """The input tokens: inputs attend to the target too, so nothing deeper can be shared."""
        return InputTokens(self.image_tokenizer(inputs).flatten(1, 2), inputs.cameras)

    def target_tokens(self, encoded: Any, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the stack."""
        target = self.pose_tokenizer(targets)
        sequence = self.run(_join_inputs_first, self.input_norm, encoded.tokens, target)
        relative = self._relative(encoded.cameras, _one_by_one(targets))
        # Counted from the end, so that the number of inputs changes nothing about it.
        return self.transformer(sequence, queries=slice(-target.shape[2], None), relative=relative)

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The stack over inputs and target."""
        sizes = cfg.transformer
        return stack_flops(sizes.d, sizes.n_layer, (num_inputs + 1) * cfg.tokens_per_view)


class Prefix(DecoderOnly):
    """The decoder-only stack with inputs that do not attend to targets: encoded once, as keys and values.

    It has the weights of the decoder-only variant, and computes another function with them.
    """

    published_class: ClassVar[str | None] = None

    def encode(self, inputs: Views) -> SceneKeys:
        """The keys and values of the input tokens in every block."""
        relative = self._relative(inputs.cameras)
        _, layers = self.transformer(self._input_tokens(inputs), queries=NO_QUERIES, relative=relative, return_kv=True)
        return SceneKeys(layers)

    def prepare_frames(self, encoded: Any, targets: Cameras) -> Encoded:
        """Of a scene and one target at a time: caches, unless they would take more than `_LARGEST_CACHE`."""
        if targets.shape != (1, 1) or len(encoded) != 1 or not self._is_own():
            return encoded
        tokens = self._tokens_of(targets)
        known = encoded.layers[0].k.shape[2]
        if 1.5 * encoded.nbytes * (known + tokens) / known > _LARGEST_CACHE:
            return encoded
        return SceneCache(tuple(kv_cache(layer, tokens) for layer in encoded.layers), tokens)

    def target_tokens(self, encoded: SceneKeys | SceneCache, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the stack, which attend to themselves and to the inputs.

        Raises:
            ValueError: there are other targets than those that `encoded` was prepared for.
        """
        if isinstance(encoded, SceneCache) and (targets.shape, self._tokens_of(targets)) != ((1, 1), encoded.tokens):
            raise ValueError(f"prepared for one target of {encoded.tokens} tokens at a time")
        relative = self._relative(_one_by_one(targets))
        return self.transformer(self._first_tokens(targets), context=encoded.layers, relative=relative)

    def forward(self, inputs: Views, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Render target cameras [b, t] from input views [b, v].

        In training both kinds of tokens go through the stack side by side, where kernels take that.
        """
        kernel = self._side_by_side_kernel(inputs, targets)
        if kernel is None:
            return super().forward(inputs, targets)
        tokens = self.transformer.side_by_side(self._input_tokens(inputs), self._first_tokens(targets), kernel)
        return self._paint(tokens, targets)

    def _side_by_side_kernel(self, inputs: Views, targets: Cameras) -> OwnKernel | None:
        # A variant of one's own that encodes, decodes or turns heads otherwise trains as it renders.
        turns = self.camera_encoding != "none" or type(self)._relative is not LVSM._relative
        if turns or not self._is_own():
            return None
        scenes, views = inputs.images.shape[:2]
        known = views * self._tokens_of(inputs.cameras)
        sequences = (scenes * targets.shape[1], self._tokens_of(targets))
        like = inputs.images[:1, :1, :1, :1, :1].reshape(1, 1, 1, 1)
        return self.transformer.side_by_side_kernel(like, (scenes, known, *sequences))

    def _is_own(self) -> bool:
        """Whether what is encoded, and what becomes of it, is this variant's."""
        return type(self).encode is Prefix.encode and type(self).target_tokens is Prefix.target_tokens

    def _tokens_of(self, cameras: Cameras) -> int:
        """Those of one view."""
        return cameras.height * cameras.width // self.image_tokenizer.patch_size**2

    def _input_tokens(self, inputs: Views) -> Float[Tensor, "b n d"]:
        return self.input_norm(self.image_tokenizer(inputs).flatten(1, 2))

    def _first_tokens(self, targets: Cameras) -> Float[Tensor, "bt n d"]:
        return self.input_norm(self.pose_tokenizer(targets).flatten(0, 1))

    @staticmethod
    def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The stack over the inputs, of whose last block only keys and values are computed."""
        sizes = cfg.transformer
        tokens = num_inputs * cfg.tokens_per_view
        return stack_flops(sizes.d, sizes.n_layer - 1, tokens) + linear_flops(sizes.d, 2 * sizes.d, tokens)

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The stack over the target, with the inputs as context."""
        sizes = cfg.transformer
        return stack_flops(sizes.d, sizes.n_layer, cfg.tokens_per_view, context=num_inputs * cfg.tokens_per_view)


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
        relative = self._relative(len(self.latents), inputs.cameras)
        return SceneTokens(self.encoder(sequence, queries=slice(0, len(self.latents)), relative=relative))

    def target_tokens(self, encoded: SceneTokens, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the decoder stack, which sees the latents beside them."""
        target = self.pose_tokenizer(targets)
        queries = slice(0, target.shape[2])
        relative = self._relative(_one_by_one(targets), len(self.latents))
        if relative is None and self.decoder.takes_known(target.flatten(0, 1), encoded.tokens):
            known, x = self.run(_normalize_each, self.input_norm, encoded.tokens, target)
            return self.decoder.with_known(x, known, queries)
        sequence = self.run(_join_target_first, self.input_norm, encoded.tokens, target)
        return self.decoder(sequence, queries=queries, relative=relative)

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


class Cross(LVSM):
    """A stack over the input tokens, and one over each target's that attends to what the first gave.

    SVSM, "Scaling View Synthesis Transformers" (CVPR 2026): all linear layers are drawn alike, and each of the L
    decoder layers adds 1/√L of what it computes.
    """

    lengths: ClassVar = {"encoder_n_layer": "encoder", "decoder_n_layer": "decoder"}

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        sizes = replace(cfg.transformer, special_init=False)
        scale = 1 / math.sqrt(sizes.decoder_n_layer)
        self.encoder = Transformer(sizes, sizes.encoder_n_layer)
        self.decoder = Transformer(sizes, sizes.decoder_n_layer, functools.partial(CrossBlock, scale=scale))

    def encode(self, inputs: Views) -> SceneKeys:
        """The keys and values that each decoder layer makes of the input tokens after the encoder stack."""
        relative = self._relative(inputs.cameras)
        tokens = self.encoder(self.input_norm(self.image_tokenizer(inputs).flatten(1, 2)), relative=relative)
        return SceneKeys(tuple(self.run(CrossBlock.context_of, block, tokens, relative) for block in self.decoder))

    def target_tokens(self, encoded: SceneKeys, targets: Cameras) -> Float[Tensor, "bt n d"]:
        """The target's tokens after the decoder stack."""
        tokens = self.input_norm(self.pose_tokenizer(targets).flatten(0, 1))
        return self.decoder(tokens, context=encoded.layers, relative=self._relative(_one_by_one(targets)))

    @staticmethod
    def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The encoder stack over the inputs, and the projections of the decoder layers."""
        sizes = cfg.transformer
        tokens = num_inputs * cfg.tokens_per_view
        context = linear_flops(sizes.d, 2 * sizes.d, tokens) * sizes.decoder_n_layer
        return stack_flops(sizes.d, sizes.encoder_n_layer, tokens) + context

    @staticmethod
    def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
        """The decoder stack over the target: blocks with two more projections, and the context's scores."""
        sizes = cfg.transformer
        tokens = cfg.tokens_per_view
        stack = stack_flops(sizes.d, sizes.decoder_n_layer, tokens, context=num_inputs * tokens)
        return stack + linear_flops(sizes.d, 2 * sizes.d, tokens) * sizes.decoder_n_layer


def _one_by_one(targets: Cameras) -> Cameras:
    """Every target camera [b, t] as a sequence of its own [bt, 1]."""
    return targets.flatten()[:, None]


def _join_inputs_first(norm: LayerNorm, scene: Tensor, target: Tensor) -> Float[Tensor, "bt n d"]:
    """Normalised sequences: a scene's tokens [b k d], repeated for each target, then the target's [b t n d]."""
    sequences = target.flatten(0, 1)
    return norm(torch.cat([for_each_sequence(scene, sequences), sequences], dim=1))


def _join_target_first(norm: LayerNorm, scene: Tensor, target: Tensor) -> Float[Tensor, "bt n d"]:
    """The same, the target's tokens first."""
    sequences = target.flatten(0, 1)
    return norm(torch.cat([sequences, for_each_sequence(scene, sequences)], dim=1))


def _normalize_each(norm: LayerNorm, scene: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A scene's tokens [b k d] and its targets' [b t n d], the latter as sequences [bt n d]."""
    return norm(scene), norm(target.flatten(0, 1))

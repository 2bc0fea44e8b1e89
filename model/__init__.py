"""The LVSM models. `build_model` is the only way in that a configuration needs."""

from model.execution import ExecutionConfig
from model.lvsm import LVSM, DecoderOnly, EncoderDecoder, ModelConfig
from model.transformer import TransformerConfig
from utils.errors import InputError
from utils.sections import check_fields
from utils.text import shown

VARIANTS: dict[str, type[LVSM]] = {
    "model.LVSM_scene_decoder_only.Images2LatentScene": DecoderOnly,
    "model.LVSM_scene_encoder_decoder.Images2LatentScene": EncoderDecoder,
}


def check_model_config(cfg: ModelConfig) -> None:
    """Raises InputError, its first word the field, where the values of `cfg` do not go together."""
    image, pose, transformer = cfg.image_tokenizer, cfg.target_pose_tokenizer, cfg.transformer
    if cfg.class_name not in VARIANTS:
        raise InputError(f"class_name is {shown(cfg.class_name)}; known: {', '.join(VARIANTS)}")
    for tokenizer, name, channels in [(image, "image_tokenizer", 9), (pose, "target_pose_tokenizer", 6)]:
        if tokenizer.in_channels != channels:
            raise InputError(f"{name}.in_channels is {tokenizer.in_channels}; it can only be {channels}")
    for key in ("image_size", "patch_size"):
        a, b = getattr(image, key), getattr(pose, key)
        if a != b:
            raise InputError(f"target_pose_tokenizer.{key} ({b}) differs from image_tokenizer.{key} ({a})")
    if image.image_size % image.patch_size:
        raise InputError(
            f"image_tokenizer.image_size ({image.image_size}) must be a multiple of patch_size ({image.patch_size})"
        )
    if transformer.d % transformer.d_head:
        raise InputError(f"transformer.d ({transformer.d}) must be a multiple of d_head ({transformer.d_head})")


def unread_keys(cfg: ModelConfig) -> list[str]:
    """Keys that differ from their defaults although the variant of `cfg` does not read them."""
    unread = VARIANTS[cfg.class_name].unread
    changed = [key for key in unread if getattr(cfg.transformer, key) != getattr(TransformerConfig, key)]
    return [f"model.transformer.{key}" for key in changed]


def build_model(cfg: ModelConfig, execution: ExecutionConfig | None = None) -> LVSM:
    """Build the variant that `cfg.class_name` names, freshly initialised on the current default device.

    Args:
        execution: how it runs; as the defaults say if None.

    Raises:
        InputError: the configuration contradicts itself.
    """
    check_fields(cfg)
    check_model_config(cfg)
    return VARIANTS[cfg.class_name](cfg, execution or ExecutionConfig())

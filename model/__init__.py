"""The LVSM models. `build_model` is the only way in that a configuration needs."""

from geometry.image_size import size_fault, size_text
from geometry.relative import PARTS
from model.encoded import Encoded
from model.execution import ExecutionConfig, apply_execution
from model.flops import Flops
from model.lvsm import LVSM, Cross, DecoderOnly, EncoderDecoder, ModelConfig, Prefix
from model.transformer import TransformerConfig
from utils.errors import InputError
from utils.sections import check_fields
from utils.text import shown

__all__ = [
    "LVSM",
    "VARIANTS",
    "Encoded",
    "ModelConfig",
    "build_model",
    "check_model_config",
    "decoding_flops",
    "encoding_flops",
    "find_variant",
    "training_flops",
    "unread_keys",
]

# By the short name that `model.class_name` may hold in place of the published one.
VARIANTS: dict[str, type[LVSM]] = {
    "decoder_only": DecoderOnly,
    "encoder_decoder": EncoderDecoder,
    "prefix": Prefix,
    "cross": Cross,
}


def find_variant(class_name: str) -> type[LVSM]:
    """The variant of a short or a published name.

    Raises:
        InputError: there is none; the message lists the short names.
    """
    published = {variant.published_class: variant for variant in VARIANTS.values()}
    variant = VARIANTS.get(class_name) or published.get(class_name)
    if variant is None:
        raise InputError(f"class_name is {shown(class_name)}; known: {', '.join(VARIANTS)}")
    return variant


def check_model_config(cfg: ModelConfig) -> None:
    """Raises InputError, its first word the field, for a value that cannot be or values that do not go together."""
    check_fields(cfg)
    find_variant(cfg.class_name)
    image = cfg.image_tokenizer
    pose = cfg.target_pose_tokenizer
    transformer = cfg.transformer
    for tokenizer, name, channels in [(image, "image_tokenizer", 9), (pose, "target_pose_tokenizer", 6)]:
        if tokenizer.in_channels != channels:
            raise InputError(f"{name}.in_channels is {tokenizer.in_channels}; it can only be {channels}")
        if fault := size_fault(tokenizer.image_size, tokenizer.patch_size):
            raise InputError(f"{name}.image_size {fault}")
    sizes = (size_text(image.image_size), size_text(pose.image_size))
    patches = (image.patch_size, pose.patch_size)
    for key, (a, b) in {"image_size": sizes, "patch_size": patches}.items():
        if a != b:
            raise InputError(f"target_pose_tokenizer.{key} ({b}) differs from image_tokenizer.{key} ({a})")
    if transformer.d % transformer.d_head:
        raise InputError(f"transformer.d ({transformer.d}) must be a multiple of d_head ({transformer.d_head})")
    if transformer.camera_encoding == "prope" and transformer.d_head % PARTS:
        raise InputError(
            f"transformer.d_head ({transformer.d_head}) must be a multiple of {PARTS} with camera_encoding=prope"
        )
    if transformer.camera_encoding != "prope" and cfg.rays in ("camera", "none"):
        raise InputError(f"rays is {cfg.rays}, which tells of no pose: set transformer.camera_encoding=prope, too")


def unread_keys(cfg: ModelConfig) -> list[str]:
    """Keys that differ from their defaults although other variants than that of `cfg` read them."""
    lengths = [key for variant in VARIANTS.values() for key in variant.lengths]
    others = [key for key in dict.fromkeys(lengths) if key not in find_variant(cfg.class_name).lengths]
    changed = [key for key in others if getattr(cfg.transformer, key) != getattr(TransformerConfig, key)]
    return [f"model.transformer.{key}" for key in changed]


def build_model(cfg: ModelConfig, execution: ExecutionConfig | None = None) -> LVSM:
    """Build the variant that `cfg.class_name` names, freshly initialised on the current default device.

    Args:
        execution: how it runs; as the defaults say if None.

    Raises:
        InputError: the configuration contradicts itself.
    """
    check_model_config(cfg)
    model = find_variant(cfg.class_name)(cfg)
    return apply_execution(model, execution or ExecutionConfig())


def encoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
    """What a scene of images of `image_size` costs once, whatever is rendered of it."""
    return find_variant(cfg.class_name).encoding_flops(cfg, num_inputs)


def decoding_flops(cfg: ModelConfig, num_inputs: int) -> Flops:
    """What one target of that size costs."""
    return find_variant(cfg.class_name).decoding_flops(cfg, num_inputs)


def training_flops(cfg: ModelConfig, num_inputs: int, num_targets: int) -> float:
    """FLOP of forward and backward for one scene of images of `image_size`: nothing recomputed, nothing saved."""
    scene = encoding_flops(cfg, num_inputs) + decoding_flops(cfg, num_inputs) * num_targets
    return scene.training

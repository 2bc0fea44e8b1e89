from dataclasses import replace

import pytest
import torch

from model import build_model
from model.lvsm import TokenizerConfig
from model.weights import load_published, published_names, published_state, read_sizes
from tests.helpers import VARIANTS, small_config, small_model
from tests.messages import check_names, refused
from utils.errors import InputError

# Names of published checkpoints, spelled out.
_BLOCK = [
    "norm1.weight",
    "attn.to_qkv.weight",
    "attn.q_norm.weight",
    "attn.k_norm.weight",
    "attn.fc.weight",
    "norm2.weight",
    "mlp.mlp.0.weight",
    "mlp.mlp.2.weight",
]
_CROSS = ["cross.q.weight", "cross.kv.weight", "cross.out.weight", "cross.q_norm.weight", "cross.k_norm.weight"]
_ENDS = [
    "image_tokenizer.1.weight",
    "target_pose_tokenizer.1.weight",
    "image_token_decoder.0.weight",
    "image_token_decoder.1.weight",
]
NAMES = {
    "decoder_only": {
        *_ENDS,
        "transformer_input_layernorm.weight",
        *(f"transformer_blocks.{i}.{name}" for i in range(3) for name in _BLOCK),
    },
    "encoder_decoder": {
        *_ENDS,
        "transformer_input_layernorm_decoder.weight",
        "n_light_field_latent",
        *(f"transformer_{stack}.{i}.{name}" for stack in ("encoder", "decoder") for i in range(2) for name in _BLOCK),
    },
}
# Ours alone: the prefix variant's are those of the decoder-only one.
NAMES["prefix"] = NAMES["decoder_only"]
NAMES["cross"] = {
    *_ENDS,
    "input_norm.weight",
    *(f"encoder.{i}.{name}" for i in range(2) for name in _BLOCK),
    *(f"decoder.{i}.{name}" for i in range(2) for name in [*_BLOCK, *_CROSS] if not name.startswith("norm")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_are_the_published_ones(variant):
    assert set(published_names(small_model(variant)).values()) == NAMES[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_survive_a_round_trip_with_prefix_and_loss_network(variant):
    source, target = small_model(variant, seed=0), small_model(variant, seed=1)
    state = {f"module.{name}": value for name, value in published_state(source).items()}
    state["module.loss_computer.vgg.0.weight"] = torch.zeros(3)
    load_published(target, state, "file.pt")
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_mismatch_is_named_and_changes_nothing():
    model = small_model("decoder_only")
    before = [p.clone() for p in model.parameters()]
    state = published_state(small_model("decoder_only", seed=1))
    del state["transformer_blocks.1.norm1.weight"]
    state["surprise.weight"] = torch.zeros(1)
    state["image_tokenizer.1.weight"] = torch.zeros(2, 2)
    with pytest.raises(InputError) as caught:
        load_published(model, state, "file.pt")
    for part in (
        "file.pt",
        "1 missing (transformer_blocks.1.norm1.weight)",
        "1 unknown (surprise.weight)",
        "image_tokenizer.1.weight is (2, 2), expected (64, 144)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_weights_of_the_other_variant_are_recognised():
    with refused("encoder_decoder", "model.class_name=encoder_decoder"):
        load_published(small_model("decoder_only"), published_state(small_model("encoder_decoder")), "file.pt")
    with refused("decoder_only", "model.class_name=decoder_only"):
        load_published(small_model("encoder_decoder"), published_state(small_model("decoder_only")), "file.pt")


@pytest.mark.parametrize(
    ("variant", "key", "value", "theirs", "ours"),
    [
        ("decoder_only", "n_layer", 5, "5 layers", 3),
        ("encoder_decoder", "encoder_n_layer", 1, "1 layer", 2),
        ("encoder_decoder", "decoder_n_layer", 3, "3 layers", 2),
        ("encoder_decoder", "n_latent_vectors", 7, "7 latents", 12),
        ("decoder_only", "d", 96, "96 channels", 64),
        ("decoder_only", "d_head", 16, "16 channels", 32),
        ("decoder_only", "use_qk_norm", False, "no query and key norms", True),
    ],
)
def test_another_size_is_refused_with_both_numbers(variant, key, value, theirs, ours):
    state = published_state(small_model(variant, **{key: value}))
    with pytest.raises(InputError) as caught:
        load_published(small_model(variant), state, "file.pt")
    check_names(str(caught.value), "file.pt", f"{key}: the weights have {theirs}", f"model.transformer.{key} is {ours}")
    assert "misshapen" not in str(caught.value) and "missing" not in str(caught.value)
    with refused("file.pt", f"model.transformer.{key} is {value}"):
        load_published(small_model(variant, **{key: value}), published_state(small_model(variant)), "file.pt")


def test_several_sizes_and_the_patch_size_come_in_one_line():
    tokenizers = (TokenizerConfig(16, 2, 9), TokenizerConfig(16, 2, 6))
    cfg = small_config("decoder_only", n_layer=1, d=96)
    other = build_model(replace(cfg, image_tokenizer=tokenizers[0], target_pose_tokenizer=tokenizers[1]))
    channels = ("96 channels", "model.transformer.d is 64")
    layers = ("1 layer", "model.transformer.n_layer is 3")
    patches = ("2 pixels", "model.image_tokenizer.patch_size is 4")
    with refused("file.pt", *channels, *layers, *patches):
        load_published(small_model("decoder_only"), published_state(other), "file.pt")


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_are_read_from_weights(variant):
    one = variant in ("decoder_only", "prefix")
    layers = {"n_layer": 3} if one else {"encoder_n_layer": 2, "decoder_n_layer": 2}
    latents = {"n_latent_vectors": 12} if variant == "encoder_decoder" else {}
    # Names that two variants share are those of the published one.
    named = "decoder_only" if one else variant
    sizes = {"class_name": named, "d": 64, "patch_size": 4, "use_qk_norm": True, "d_head": 32}
    assert read_sizes(published_state(small_model(variant))) == sizes | layers | latents
    assert read_sizes({"surprise": torch.zeros(3), "step": 4}) == {}

import pytest
import torch

from model.weights import load_published, published_names, published_state
from tests.helpers import VARIANTS, small_model
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
_ENDS = [
    "image_tokenizer.1.weight",
    "target_pose_tokenizer.1.weight",
    "image_token_decoder.0.weight",
    "image_token_decoder.1.weight",
]
PUBLISHED = {
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_are_the_published_ones(variant):
    assert set(published_names(small_model(variant)).values()) == PUBLISHED[variant]


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
    with pytest.raises(InputError, match="weights of the encoder-decoder variant"):
        load_published(small_model("decoder_only"), published_state(small_model("encoder_decoder")), "file.pt")
    with pytest.raises(InputError, match="weights of the decoder-only variant"):
        load_published(small_model("encoder_decoder"), published_state(small_model("decoder_only")), "file.pt")

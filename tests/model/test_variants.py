"""A variant is one class and one row of a table; its short name does what the published one does."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

import model
import train
from model import (
    VARIANTS,
    build_model,
    check_model_config,
    decoding_flops,
    encoding_flops,
    find_variant,
    training_flops,
    unread_keys,
)
from model.flops import stack_flops
from model.lvsm import LVSM, SceneTokens
from model.transformer import Transformer
from model.weights import load_published, published_state, read_sizes
from tests.helpers import PUBLISHED, class_name, random_cameras, random_views, small_config
from tests.messages import refused
from tests.runs import training_command, weights


# Eighteen lines are all that a variant needs.
class Toy(LVSM):
    lengths: ClassVar = {"n_layer": "blocks"}
    published_parts: ClassVar = {"blocks": "toy_blocks"}

    def __init__(self, cfg):
        super().__init__(cfg)
        self.blocks = Transformer(cfg.transformer, cfg.transformer.n_layer)

    def encode(self, inputs):
        return SceneTokens(self.image_tokenizer(inputs).mean(1))

    def target_tokens(self, encoded, targets):
        tokens = self.pose_tokenizer(targets) + encoded.tokens[:, None]
        return self.blocks(self.input_norm(tokens.flatten(0, 1)))

    @staticmethod
    def decoding_flops(cfg, num_inputs):
        return stack_flops(cfg.transformer.d, cfg.transformer.n_layer, cfg.tokens_per_view)


def config_of(name, **sizes):
    return replace(small_config("decoder_only", **sizes), class_name=name)


@pytest.fixture
def toy(monkeypatch):
    """The configuration of a variant that the table has a row for."""
    monkeypatch.setitem(model.VARIANTS, "toy", Toy)
    return config_of("toy")


@pytest.mark.parametrize("name", VARIANTS)
def test_arithmetic_counts_the_tokens_of_wide_images(name):
    square, wide = (small_config(name, image_size=size) for size in (32, [16, 64]))
    assert square.tokens_per_view == wide.tokens_per_view == 64
    assert training_flops(square, 2, 3) == training_flops(wide, 2, 3)
    assert training_flops(wide, 2, 3) > training_flops(small_config(name, image_size=[16, 48]), 2, 3) > 0


def test_a_new_variant_is_built_by_its_name_and_renders(toy):
    built = build_model(toy)
    assert type(built) is Toy and len(built.blocks) == 3
    with torch.no_grad():
        assert built(random_views(2, 2), random_cameras(2, 3, seed=1)).shape == (2, 3, 3, 16, 24)


def test_weights_of_a_new_variant_are_saved_and_loaded(toy):
    source, target = build_model(toy), build_model(toy)
    state = published_state(source)
    assert {"image_tokenizer.1.weight", "input_norm.weight", "toy_blocks.2.attn.to_qkv.weight"} < state.keys()
    sizes = read_sizes(state)
    assert sizes["class_name"] == "toy" and sizes["n_layer"] == 3 and sizes["d"] == 64
    load_published(target, state, "file.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    with refused("toy", "model.class_name=toy"):
        load_published(build_model(small_config("decoder_only")), state, "file.pt")
    shallow = build_model(config_of("toy", n_layer=2))
    with refused("n_layer", "3 layers", "model.transformer.n_layer is 2"):
        load_published(shallow, state, "file.pt")


def test_arithmetic_of_a_new_variant_is_counted(toy):
    # Three layers of 12 d² weights over 16 tokens.
    matmuls, attention = 3 * 2 * 12 * 64**2 * 16, 3 * 4 * 16**2 * 64
    assert encoding_flops(toy, 2).forward == 0
    assert decoding_flops(toy, 2).forward == matmuls + attention
    assert training_flops(toy, 2, 5) == 5 * (3 * matmuls + 3.5 * attention)


def test_a_new_variant_trains(toy, scenes, tmp_path):
    train.main(training_command(scenes, tmp_path / "run", "model.class_name=toy"))
    first, second = ((tmp_path / "run" / "metrics.jsonl").read_text()).splitlines()
    assert json.loads(first)["step"] == 1 and json.loads(second)["step"] == 2
    assert "toy_blocks.1.norm1.weight" in weights(tmp_path / "run", 2)


def test_keys_that_only_other_variants_read_are_named(toy):
    changed = config_of("toy", n_layer=5, encoder_n_layer=5, n_latent_vectors=5)
    assert unread_keys(changed) == [
        "model.transformer.encoder_n_layer",
        "model.transformer.decoder_n_layer",
        "model.transformer.n_latent_vectors",
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_short_name_is_as_good_as_the_published_one(name):
    assert find_variant(name) is find_variant(class_name(name)) is VARIANTS[name]
    assert VARIANTS[name].published_class == class_name(name)
    models = []
    for written in (name, class_name(name)):
        torch.manual_seed(0)
        models.append(build_model(replace(small_config(name), class_name=written)))
    for ours, theirs in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_names_are_refused_with_the_short_ones():
    with refused("class_name", "'model.Nope'", "decoder_only", "encoder_decoder"):
        check_model_config(config_of("model.Nope"))

"""Weights are converted to safetensors and back; what no model could load is refused."""

import math
from dataclasses import asdict

import pytest
import torch

from model import build_model
from model.convert import main
from model.function import Function, function_of, load_weights, stored_function
from model.weights import published_state
from tests.helpers import MODELS, PUBLISHED, small_config, small_model
from tests.messages import check_told, refused
from utils.checkpoint import read_checkpoint, write_checkpoint

NORM = "transformer_blocks.1.norm2.weight"
CONFIG = "training: {scene_scale_factor: 1.5}\n"


def checkpoint(folder, model, **more):
    """A checkpoint as a training run leaves it."""
    content = {"model": published_state(model), "function": asdict(function_of(model)), "config": CONFIG}
    return write_checkpoint(folder, 7, content | {"optimizer": {"state": {}}, "step": 7, "samples": 7} | more)


def convert(*arguments):
    main([str(argument) for argument in arguments])


def check_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_gives_every_bit_back(tmp_path, name, caplog):
    caplog.set_level("INFO", "lvsm")
    model = small_model(name, rays="camera" if "prope" in name else "plucker")
    source = checkpoint(tmp_path / "run", model)
    convert(source, tmp_path / "x.safetensors", "--dtype", "float32")
    convert(tmp_path / "x.safetensors", tmp_path / "y.pt")
    for path in (tmp_path / "x.safetensors", tmp_path / "y.pt"):
        found = read_checkpoint(path)
        assert found.keys() == {"model", "function", "config"} and found["config"] == CONFIG
        assert stored_function(found, path) == function_of(model)
        check_equal(found["model"], published_state(model))
        assert any(str(path) in line and f"{path.stat().st_size:,} bytes" in line for line in caplog.messages)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_taken_as_the_type_of_the_model(tmp_path, dtype):
    source = small_model("prefix+prope")
    convert(checkpoint(tmp_path, source), tmp_path / "x.safetensors", "--dtype", dtype)
    content = read_checkpoint(tmp_path / "x.safetensors")
    kind = getattr(torch, dtype)
    assert {value.dtype for value in content["model"].values()} == {kind}
    target = build_model(small_config("prefix", camera_encoding="auto"))
    load_weights(target, content, "x.safetensors")
    assert function_of(target) == function_of(source)
    check_equal(
        published_state(target), {name: value.to(kind).float() for name, value in published_state(source).items()}
    )


def test_the_type_follows_from_the_suffix(tmp_path):
    source = checkpoint(tmp_path / "run", small_model("decoder_only"))
    for name, dtype in (("x.safetensors", torch.float16), ("y.pt", torch.float32)):
        convert(tmp_path / "run", tmp_path / name)
        assert {value.dtype for value in read_checkpoint(tmp_path / name)["model"].values()} == {dtype}
    assert read_checkpoint(source)["step"] == 7


@pytest.mark.parametrize(("choice", "name"), [("auto", "ema"), ("ema", "ema"), ("trained", "model")])
def test_of_weights_and_their_average_one_is_kept(tmp_path, choice, name, caplog):
    caplog.set_level("INFO", "lvsm")
    average = {name: 2 * value for name, value in published_state(small_model("prefix")).items()}
    source = checkpoint(tmp_path, small_model("prefix"), ema=average)
    convert(source, tmp_path / "x.safetensors", "--dtype", "float32", "--weights", choice)
    check_told(caplog.messages, source, f"--weights={choice}")
    check_equal(read_checkpoint(tmp_path / "x.safetensors")["model"], read_checkpoint(source)[name])


def test_an_average_that_is_not_there_is_named(tmp_path):
    source = checkpoint(tmp_path, small_model("prefix"))
    with refused(source, "--weights=ema"):
        convert(source, tmp_path / "x.safetensors", "--weights", "ema")


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("form", ["{}", "module.{}", "_orig_mod.{}"])
def test_a_published_file_converts_and_loads(tmp_path, variant, form):
    source = small_model(variant)
    weights = {form.format(name): value for name, value in published_state(source).items()}
    torch.save({"model": weights | {"loss_computer.vgg.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / "x.safetensors", "--dtype", "float32")
    content = read_checkpoint(tmp_path / "x.safetensors")
    assert content["function"] == asdict(Function(variant))
    target = small_model(variant, seed=1)
    load_weights(target, content, "x.safetensors")
    check_equal(published_state(target), published_state(source))


def write_published(path, **changes):
    state = published_state(small_model("decoder_only")) | changes
    torch.save({"model": {name: value for name, value in state.items() if value is not None}}, path)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({NORM: None}, NORM),
        ({"more.weight": torch.ones(2)}, "more.weight"),
        ({NORM: torch.ones(3)}, NORM),
        ({NORM: torch.full((64,), math.nan)}, NORM),
        ({NORM: torch.ones(64, dtype=torch.int64)}, NORM),
        ({f"transformer_blocks.{10**9}.norm1.weight": torch.ones(64)}, "transformer.n_layer"),
    ],
)
def test_what_is_not_just_the_weights_of_a_model_is_not_written(tmp_path, change, culprit):
    write_published(tmp_path / "in.pt", **change)
    with refused(tmp_path / "in.pt", culprit):
        convert(tmp_path / "in.pt", tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_weights_of_no_known_variant_are_named(tmp_path):
    torch.save({"model": {"backbone.weight": torch.ones(2)}}, tmp_path / "in.pt")
    with refused(tmp_path / "in.pt", "decoder_only"):
        convert(tmp_path / "in.pt", tmp_path / "x.safetensors")


def test_numbers_beyond_a_type_are_named_with_the_types_to_choose(tmp_path):
    write_published(tmp_path / "in.pt", **{NORM: torch.full((64,), 1e5)})
    with refused(tmp_path / "in.pt", NORM, "float16", "bfloat16"):
        convert(tmp_path / "in.pt", tmp_path / "x.safetensors")
    convert(tmp_path / "in.pt", tmp_path / "x.safetensors", "--dtype", "bfloat16")
    write_published(tmp_path / "in.pt", **{NORM: torch.full((64,), 1e300, dtype=torch.float64)})
    with refused(tmp_path / "in.pt", NORM):
        convert(tmp_path / "in.pt", tmp_path / "y.safetensors", "--dtype", "float32")


def test_nothing_is_replaced_unasked(tmp_path):
    source = checkpoint(tmp_path, small_model("decoder_only"))
    before = source.read_bytes()
    for target in (source, tmp_path / "x.bin"):
        with refused(target):
            convert(source, target)
    assert source.read_bytes() == before and not (tmp_path / "x.bin").exists()
    convert(source, source, "--overwrite")
    assert read_checkpoint(source).keys() == {"model", "function", "config"}


@pytest.mark.parametrize("named", ["{}/nothing.pt", "{}", "hf://../x"])
def test_what_is_not_there_is_named(tmp_path, named):
    with refused("IN"):
        convert(named.format(tmp_path), tmp_path / "x.safetensors")

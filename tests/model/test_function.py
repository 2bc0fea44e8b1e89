"""A checkpoint says what its weights compute; models take it from there, or refuse to compute something else."""

import json
from dataclasses import asdict

import pytest
import torch

import inference
import train
from model import build_model, convert
from model.function import Function, function_of, load_weights, stored_function, with_function
from model.weights import published_state
from tests.helpers import MODELS, VARIANTS, random_cameras, random_views, small_config, small_model
from tests.messages import check_names, check_told, refused
from tests.runs import evaluation_command, save_model, training_command
from utils.checkpoint import checkpoint_name, read_checkpoint, write_checkpoint
from utils.errors import MisfitError


def content_of(model, **changes):
    return {"model": published_state(model), "function": asdict(function_of(model)) | changes}


def fresh(name, rays="auto", encoding="auto"):
    return build_model(small_config(name, rays, camera_encoding=encoding)).eval()


def render(model):
    with torch.no_grad():
        return model(random_views(1, 2), random_cameras(1, 2, seed=1))


@pytest.mark.parametrize("name", MODELS)
def test_what_a_configuration_leaves_open_is_taken_from_the_checkpoint(name):
    rays = "camera" if "prope" in name else "plucker"
    source = small_model(name, rays=rays)
    variant, _, encoding = name.partition("+")
    target = fresh(variant)
    load_weights(target, content_of(source), "file.pt")
    assert function_of(target) == function_of(source) == Function(variant, encoding or "none", rays)
    assert torch.equal(render(target), render(source))
    assert build_model(with_function(target.cfg, function_of(target))).camera_encoding == source.camera_encoding


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_that_does_not_say_it_is_faithful(variant):
    content = {"model": published_state(small_model(variant))}
    named = "decoder_only" if variant == "prefix" else variant
    assert stored_function(content, "file.pt") == Function(named, "none", "plucker")


@pytest.mark.parametrize(
    ("source", "target", "key", "trained", "here"),
    [
        ("decoder_only", ("prefix",), "class_name", "decoder_only", "prefix"),
        ("prefix", ("decoder_only",), "class_name", "prefix", "decoder_only"),
        ("prefix+prope", ("prefix", "auto", "none"), "transformer.camera_encoding", "prope", "none"),
        ("cross", ("cross", "auto", "prope"), "transformer.camera_encoding", "none", "prope"),
        ("prefix+prope", ("prefix", "camera", "prope"), "rays", "plucker", "camera"),
    ],
)
def test_a_contradiction_is_refused_in_one_line_unless_it_is_allowed(source, target, key, trained, here, caplog):
    content = content_of(small_model(source))
    culprits = ["file.pt", f"model.{key}={trained}", here]
    with refused(*culprits, "training.allow_other_function=true", error=MisfitError):
        load_weights(fresh(*target), content, "file.pt")
    model = fresh(*target)
    load_weights(model, content, "file.pt", allow_other=True)
    assert here in asdict(function_of(model)).values()
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    check_names(told, *culprits)


@pytest.mark.parametrize(
    "function", [None, 7, {}, {"variant": "prefix"}, {"variant": "prefix", "camera_encoding": "none"}]
)
def test_a_damaged_function_is_named(function):
    with refused("file.pt", "function"):
        stored_function({"model": {}, "function": function}, "file.pt")


@pytest.mark.parametrize(("part", "value"), [("variant", "nope"), ("camera_encoding", 3), ("rays", ["camera"])])
def test_an_unknown_part_is_named(part, value):
    content = content_of(small_model("prefix"), **{part: value})
    with refused("file.pt", f"function.{part}"):
        stored_function(content, "file.pt")


def stored(folder, step):
    return read_checkpoint(folder / checkpoint_name(step))


def test_a_run_keeps_its_function_without_being_told_again(scenes, tmp_path):
    run = tmp_path / "run"
    prope = ["model.transformer.camera_encoding=prope", "model.rays=camera"]
    train.main(training_command(scenes, run, *prope, "training.train_steps=1", variant="prefix"))
    train.main(training_command(scenes, run, variant="prefix"))
    for step in (1, 2):
        content = stored(run, step)
        assert content["function"] == {"variant": "prefix", "camera_encoding": "prope", "rays": "camera"}
        assert "camera_encoding: prope" in content["config"] and "rays: camera" in content["config"]
    with refused("model.transformer.camera_encoding=prope", error=MisfitError):
        train.main(training_command(scenes, run, "model.transformer.camera_encoding=none", variant="prefix"))
    with refused("model.class_name=prefix", error=MisfitError):
        train.main(training_command(scenes, run))


def test_training_anew_from_other_weights_says_what_changes(scenes, tmp_path, caplog):
    train.main(training_command(scenes, tmp_path / "first", "training.train_steps=1"))
    start = [f"training.resume_ckpt={tmp_path / 'first'}"]
    with refused("model.class_name=decoder_only", error=MisfitError):
        train.main(training_command(scenes, tmp_path / "second", *start, variant="prefix"))
    anew = [*start, "training.reset_training_state=true"]
    train.main(training_command(scenes, tmp_path / "third", *anew, variant="prefix"))
    assert stored(tmp_path / "third", 2)["function"]["variant"] == "prefix"
    check_told(caplog.messages, "model.class_name=decoder_only")


def test_an_evaluation_takes_the_function_from_the_checkpoint(place):
    save_model(place, "prefix")
    content = stored(place / "checkpoints", 1)
    write_checkpoint(
        place / "checkpoints", 1, content | {"function": content["function"] | {"camera_encoding": "prope"}}
    )
    inference.main(evaluation_command(place, variant="prefix", out="auto"))
    told = evaluation_command(place, "model.transformer.camera_encoding=prope", variant="prefix", out="told")
    inference.main(told)
    results = [json.loads((place / out / "results.json").read_text()) for out in ("auto", "told")]
    assert results[0]["averages"] == results[1]["averages"]
    assert {run["provenance"]["config"]["model"]["transformer"]["camera_encoding"] for run in results} == {"prope"}
    other = evaluation_command(place, "model.transformer.camera_encoding=none", variant="prefix", out="other")
    with refused("model.transformer.camera_encoding=prope", error=MisfitError):
        inference.main(other)
    with refused("model.class_name=prefix", error=MisfitError):
        inference.main(evaluation_command(place, out="other"))
    inference.main([*other, "training.allow_other_function=true"])


def test_an_evaluation_reads_safetensors_as_it_reads_checkpoints(place):
    run = place / "checkpoints"
    save_model(place, "prefix")
    content = stored(run, 1)
    write_checkpoint(run, 1, content | {"function": content["function"] | {"camera_encoding": "prope"}})
    (place / "weights").mkdir()
    convert.main([str(run), str(place / "weights" / "x.safetensors"), "--dtype", "float32"])
    named = [("run", run), ("folder", place / "weights"), ("file", place / "weights" / "x.safetensors")]
    for out, path in named:
        inference.main(evaluation_command(place, f"training.checkpoint_dir={path}", variant="prefix", out=out))
    results = [json.loads((place / out / "results.json").read_text()) for out, _ in named]
    assert results[0]["averages"] == results[1]["averages"] == results[2]["averages"]
    assert {run["provenance"]["config"]["model"]["transformer"]["camera_encoding"] for run in results} == {"prope"}

"""The benchmarks run and say what they promise, at the size of a test."""

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import (
    agreement,
    attention,
    loader,
    loss_curve,
    mlp,
    preprocess,
    quality,
    recipes,
    render,
    restart,
    shapes,
    train_step,
    viewer,
    views,
)
from evaluation.metrics import psnr
from setup import read_config
from tests import flash4, quack
from tests.helpers import ROOT, small_overrides
from tests.messages import check_names, refused
from tests.processes import QUIET, ForkedSooner
from tests.runs import save_model
from utils.cli import run_main

CONFIG = ROOT / "configs" / "LVSM_scene_decoder_only.yaml"
# Each builds models and measures them.
pytestmark = pytest.mark.slow


@pytest.fixture
def measured(tmp_path, capsys):
    """Runs a benchmark with arguments and gives its rows back, those of its table checked against its JSON."""

    def run(benchmark, *arguments):
        path = tmp_path / "numbers.json"
        benchmark.main([*map(str, arguments), "--json", str(path)])
        written = json.loads(path.read_text())
        printed = capsys.readouterr().out
        assert written["device"] in printed and "torch" in written["packages"]
        assert all(name in printed for row in written["rows"] for name in row)
        return written["rows"]

    return run


def test_training_steps(measured):
    shares = ["--vary", "training.keep_activations=0", "--vary", "training.keep_activations=1 training.ema_decay=0.99"]
    few = ["--calls", 1, "--warmup", 0]
    rows = measured(train_step, "--config", CONFIG, *small_overrides("decoder_only"), *shares, *few, "--bare")
    assert [row["with"] for row in rows] == ["keep_activations=0", "keep_activations=1 ema_decay=0.99"]
    for row in rows:
        assert row["scenes"] == 2 and row["scenes/s"] == pytest.approx(2 / row["s/update"])
        assert row["bare s"] > 0 and row["watching"].endswith("%") and 0 < row["first update s"] < row["since start s"]


def test_what_has_no_room_on_the_card_leaves_the_other_rows(measured, monkeypatch):
    measure = train_step.measure

    def on_a_full_card(config, *args):
        if config.training.execution.grad_checkpoint_every == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(config, *args)

    monkeypatch.setattr(train_step, "measure", on_a_full_card)
    vary = [part for every in (0, 1) for part in ("--vary", f"training.grad_checkpoint_every={every}")]
    few = ["--calls", 1, "--warmup", 0]
    full, row = measured(train_step, "--config", CONFIG, *small_overrides("decoder_only"), *vary, *few)
    assert full == {"config": "decoder_only", "with": "grad_checkpoint_every=0", "s/update": "out of memory"}
    assert row["s/update"] > 0


def test_fast_and_plain_agree(measured, monkeypatch):
    config = ["--config", CONFIG, *small_overrides("decoder_only"), "training.use_amp=true"]
    config += ["training.num_views=4", "training.num_target_views=2"]
    plain, fast = measured(agreement, *config, "training.perceptual_loss_weight=0.5")
    assert all(0 < row[name] < 0.01 for row in (plain, fast) for name in ("renders", "rendered", "frames"))
    assert 0 < plain["worst"] < 0.2
    # Something wrong in one place of the fast path is found and named.
    results = agreement.results

    def broken(config, process, **training):
        found = results(config, process, **training)
        return found if training else found | {"transformer.1.mlp.up.weight": torch.zeros(256, 64)}

    monkeypatch.setattr(agreement, "results", broken)
    with refused("1 tensor", "transformer.1.mlp.up.weight by 1", "plain", error=SystemExit):
        measured(agreement, *config)


@pytest.mark.parametrize("installed", [True, False])
def test_attention(measured, monkeypatch, installed):
    flash4.install(monkeypatch)
    monkeypatch.setattr(attention, "why_no_fa4", lambda: None if installed else "the card is older than Hopper")
    rows = measured(attention, "--shape", "2 3 8 12", "--channels", 16, "--calls", 1)
    own = ["fa4", "cudnn, own operator"] if installed else []
    assert [row["kernel"] for row in rows] == ["flash", *own]
    assert all((row["queries"], row["keys"]) == (8, 12) and row["difference"] < 1e-5 for row in rows)
    assert all(row["forward ms"] > 0 and row["backward ms"] > 0 for row in rows)


def test_attention_to_a_context(measured, monkeypatch):
    flash4.install(monkeypatch)
    monkeypatch.setattr(attention, "why_no_fa4", lambda: None)
    monkeypatch.setattr(attention, "SHAPES", ())
    monkeypatch.setattr(attention, "CONTEXTS", [attention.Context("small", 2, 3, 2, 5, 7)])
    rows = measured(attention, "--channels", 8, "--calls", 1)
    ways = ["torch's fastest, joined", "cudnn, apart", "fa4, joined", "fa4, apart"]
    assert [row["kernel"] for row in rows] == ways
    assert all((row["batch x heads"], row["keys"]) == ("6 x 2", 12) and row["difference"] < 1e-5 for row in rows)


def test_attention_says_when_a_kernel_fails(measured, monkeypatch):
    flash4.install(monkeypatch).errors["backward"] = RuntimeError("no compiler")
    monkeypatch.setattr(attention, "why_no_fa4", lambda: None)
    with refused("fa4", "no compiler", error=SystemExit):
        measured(attention, "--shape", "1 1 4 4", "--channels", 8, "--calls", 1)


@pytest.mark.parametrize("installed", [True, False])
def test_mlp(measured, monkeypatch, installed):
    package = quack.install(monkeypatch)
    monkeypatch.setattr(mlp, "why_no_quack", lambda: None if installed else "the card is older than Hopper")
    rows = measured(mlp, "--tokens", 6, 10, "--channels", 16, "--calls", 1)
    kernels = ["torch", "quack", "quack, slopes saved"] if installed else ["torch"]
    assert [(row["tokens"], row["kernel"]) for row in rows] == [(n, kernel) for n in (6, 10) for kernel in kernels]
    assert all(row["difference"] < 1e-5 and row["rendering ms"] > 0 and row["update ms"] > 0 for row in rows)
    assert (package.calls["slope_backward_epilogue"] == package.calls["gelu_backward_epilogue"] > 0) == installed


def test_mlp_says_when_a_kernel_fails(measured, monkeypatch):
    quack.install(monkeypatch).errors["gelu_backward_epilogue"] = RuntimeError("no compiler")
    monkeypatch.setattr(mlp, "why_no_quack", lambda: None)
    with refused("quack", "no compiler", error=SystemExit):
        measured(mlp, "--tokens", 4, "--channels", 8, "--calls", 1)


def test_recipes(measured, tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text("model: {transformer: {d: 64, d_head: 32, n_layer: 1}}\ntraining: {perceptual_loss_weight: 0}\n")
    text = small.read_text().replace("model: {", "model: {image_tokenizer: {image_size: 16}, ")
    small.write_text(text.replace("model: {", "model: {target_pose_tokenizer: {image_size: 16, in_channels: 6}, "))
    (row,) = measured(recipes, small)
    assert row["config"] == "small" and row["scenes"] == 8


def test_rendering(measured, monkeypatch):
    monkeypatch.setattr(render, "FRAMES", 9)
    rows = measured(render, "--config", CONFIG, *small_overrides("decoder_only"), "--calls", 1, "--inputs", 2, 3)
    encoded = [f"encoded, {n} inputs, {what}" for n in (2, 3) for what in ("8 targets", "one frame")]
    assert [row["work"] for row in rows][2:] == ["video, 9 frames", *encoded]
    for row in rows:
        assert row["images/s"] == pytest.approx(1000 / row["ms/image"])
    # The film encodes its scene, the others are encoded: of the decoder-only variant all cost the same an image.
    film, several, frame = (row["TFLOP/s"] / row["images/s"] for row in rows[2:5])
    assert film == pytest.approx(frame) == pytest.approx(several) and frame > 0
    # Four tokens of 64 numbers a view, and cameras of 16 and 4.
    assert [row["encoded MB/view"] for row in rows[3:]] == pytest.approx([4 * (4 * 64 + 20) / 1e6] * 4)


def test_shapes(measured, place):
    save_model(place)
    paths = [f"training.dataset_path={place}/scenes/full_list.txt", f"inference.view_idx_file_path={place}/index.json"]
    weights = ["--weights", place / "checkpoints", "--size", "16", "--size", "16,32"]
    square, wide = measured(shapes, "--config", CONFIG, *weights, *small_overrides("decoder_only"), *paths)
    assert (square["size"], wide["size"]) == ("16", "[16, 32]")
    assert square["psnr"] == square["psnr in the middle"] and wide["psnr"] != wide["psnr in the middle"]
    assert square["scenes"] == wide["scenes"] == 3 and square["middle"] == wide["middle"] == "16x16"
    renders, images = torch.rand(2, 5, 3, 16, 32).unbind(0)
    assert torch.equal(shapes.psnr_in_middle((16, 16), renders, images), psnr(renders[..., 8:24], images[..., 8:24]))


def test_from_pose_to_picture(measured, monkeypatch):
    # However busy the machine is, the model is not too slow for pictures of full size.
    monkeypatch.setattr("viewer.session._SLOW", 1e9)
    config = ["--config", CONFIG, *small_overrides("decoder_only"), "training.background=random"]
    (row,) = measured(viewer, *config, "--poses", 5)
    assert 0 < row["model ms"] < row["median ms"] <= row["p95 ms"]
    assert row["pictures/s"] > 0 and row["while moving"] == "full size"


@pytest.mark.parametrize(("length", "step"), [(19.7, 2), (20.1, 5), (8, 2), (4, 1), (0.13, 0.02), (3999, 500)])
def test_ticks_are_round_numbers(length, step):
    assert quality.tick_step(length) == pytest.approx(step)


def test_quality(measured, place):
    held_out = ["--validation", place / "scenes" / "full_list.txt", "--index", place / "index.json"]
    settings = ["--setting", "first:", "--setting", "other: model.class_name=prefix", "--as_long", "other"]
    common = [*small_overrides("decoder_only"), f"training.dataset_path={place}/scenes/full_list.txt"]
    run = ["--config", CONFIG, "--output_dir", place / "q", *held_out, *common, "training.train_steps=3"]
    rows = measured(quality, *run, *settings, "--seeds", 0, 1)
    assert [(row["setting"], row["equal"]) for row in rows] == [
        ("first", "updates"),
        ("other", "updates"),
        ("other", "GPU seconds"),
    ]
    first, other, as_long = rows
    assert first["updates"] == other["updates"] == 3 and all(row["seeds"] == 2 for row in rows)
    assert abs(as_long["GPU s"] - first["GPU s"]) <= as_long["GPU s/update"]
    curves = json.loads((place / "q" / "quality.json").read_text())["curves"]
    assert [curve["seed"] for curve in curves] == [0, 1] * 3
    of_first = [curve["psnr"][-1] for curve in curves[:2]]
    assert first["psnr"] == pytest.approx(sum(of_first) / 2) and first["spread"] == pytest.approx(
        abs(np.diff(of_first)[0])
    )
    lines = ElementTree.parse(place / "q" / "quality.svg").getroot().findall("{*}polyline")
    assert len(lines) == 6
    # What is finished is read, not done again.
    before = {path: path.stat().st_mtime_ns for path in (place / "q").rglob("ckpt_*.pt")}
    assert measured(quality, *run, *settings, "--seeds", 0, 1) == rows and before
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with refused("settings.json", "other"):
        measured(quality, *run, *settings[:2], "--setting", "other: model.class_name=cross")
    with refused("--as_long", "nobody", "first, other"):
        measured(quality, *run, *settings, "nobody")


def test_more_views(measured, place):
    (place / "index.json").rename(place / "index_2.json")
    drawn = ["training.num_input_views=[2, 3]", "training.num_target_views=4", "training.view_sampler=spread"]
    data = [f"training.dataset_path={place}/scenes/full_list.txt", "training.background=random"]
    run = ["--config", CONFIG, "--output_dir", place / "views", *small_overrides("decoder_only"), *drawn, *data]
    small = ["--inputs", 2, 3, "--calls", 1]
    held_out = ["--validation", place / "scenes" / "full_list.txt", "--index", place / "index.json"]
    copied, *rows = measured(views, *run, *small, *held_out)
    assert copied["variant"] == "nearest input" and float(copied["PSNR"]) > 10
    names = ["decoder_only", "encoder_decoder", "cross", "prefix", "prefix_prope"]
    assert [(row["variant"], row["inputs"]) for row in rows] == [(name, count) for name in names for count in (2, 3)]
    assert all(float(row["PSNR"]) > 5 if row["inputs"] == 2 else row["PSNR"] == "" for row in rows)
    assert all(row["encode ms"] > 0 and row["frame ms"] > 0 for row in rows)
    # Twelve latents stay as many; keys and values of every layer grow with the inputs.
    growth = [b["scene MB"] / a["scene MB"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert growth == pytest.approx([1.5, 1, 1.5, 1.5, 1.5])
    written = (place / "views" / "views.md").read_text().splitlines()
    assert (
        len(written) == 13 and written[0].startswith("| variant | inputs | PSNR |") and written[2].startswith("| near")
    )
    (_, *again) = measured(views, *run, "training.num_threads=2", *small, *held_out, "--variants", "prefix")
    assert [row["PSNR"] for row in again] == [row["PSNR"] for row in rows if row["variant"] == "prefix"]
    with refused(place / "views" / "cross", "training.lr", "--output_dir"):
        measured(views, *run, "training.lr=1e-3", *small, *held_out, "--variants", "cross")
    (row, _) = measured(views, *run, *small, "--variants", "prefix")
    assert row["variant"] == "prefix" and "PSNR" not in row
    with refused("--variants", "'nobody'", "prefix_prope"):
        measured(views, *run, "--variants", "nobody")
    with refused("--index", place / "none_2.json"):
        measured(views, *run, *held_out, "--index", place / "none.json")


def test_loading(measured, monkeypatch):
    monkeypatch.setattr(loader, "FRAMES", 2)
    rows = measured(loader)
    assert len(rows) == 8 and all(row["images/s a core"] > 0 for row in rows)
    assert sum("packed" in row["way"] for row in rows) == 3
    assert rows[-1]["ms to open 10,000 clips"] > 0


def test_preprocessing(measured, monkeypatch):
    monkeypatch.setattr(loader, "FRAMES", 2)
    monkeypatch.setattr(preprocess, "CLIPS", 1)
    png, jpeg, *others = measured(preprocess)
    assert png["bytes written per byte read"] > 2 > 1.3 > jpeg["bytes written per byte read"]
    assert len(others) == 2 and all(row["clips/s a core"] > 0 for row in others)
    assert jpeg["times PNG"] == pytest.approx(jpeg["clips/s a core"] / png["clips/s a core"])


def test_loss_curves(measured, scenes, tmp_path, capsys):
    settings = ["--setting", "plain:", "--setting", "no warmup: training.lr=1e-3"]
    places = ["--output_dir", tmp_path / "curves", f"training.dataset_path={scenes}", "training.train_steps=3"]
    rows = measured(loss_curve, "--config", CONFIG, *small_overrides("decoder_only"), *places, *settings)
    assert [row["run"] for row in rows] == ["plain", "no warmup"]
    first, last = ([row[name] for row in rows] for name in ("loss@1", "loss@3"))
    assert first[0] == first[1] and last[0] != last[1]
    with pytest.raises(SystemExit) as ended:
        run_main(lambda _: measured(loss_curve, "--config", CONFIG, *places, *settings))
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1 and said.startswith("error: ")
    check_names(said, re.compile(r"/plain\b"), "earlier run")


def fork_torchrun(command, **output):
    """What subprocess.Popen does, sooner."""
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    return ForkedSooner(["-m", "tests.programs.run_torchrun", *command[3:]], os.environ | QUIET, **output)


@pytest.mark.long
def test_a_killed_process_costs_nothing(measured, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "subprocess", SimpleNamespace(Popen=fork_torchrun))
    small = [*small_overrides("decoder_only"), "model.transformer.n_layer=1", "training.batch_size_per_gpu=1"]
    run = ["training.train_steps=60", "training.checkpoint_every=5", f"training.dataset_path={scenes}"]
    places = ["--config", CONFIG, "--output_dir", tmp_path / "runs"]
    (row,) = measured(restart, *places, "--one_gpu", "--processes", 1, *small, *run)
    assert row["exit codes"] == [0, 0] and row["starts"] == 2 and row["largest weight difference"] == 0


@pytest.mark.parametrize("benchmark", [attention, mlp, render, restart, train_step, viewer, views])
def test_numbers_that_measure_nothing_are_refused(benchmark, capsys):
    """Every number that must be 1 or more, where it is read."""
    taken = re.findall(r'"(--\w+)", type=positive', Path(benchmark.__file__).read_text("utf-8"))
    assert taken
    for name, value in itertools.product(taken, ("0", "-3", "1.5", "x")):
        with pytest.raises(SystemExit):
            benchmark.main([f"{name}={value}"])
        assert name in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("script", ["speed", "scaling"])
def test_scripts_say_what_they_want(script):
    result = subprocess.run([ROOT / "benchmarks" / f"{script}.sh"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith(f"usage: benchmarks/{script}.sh ")


def speeds_by(python, folder):
    """benchmarks/speed.sh with such a script for a Python."""
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\n{python}\n")
    stand_in.chmod(0o755)
    command = [ROOT / "benchmarks" / "speed.sh", folder / "out", "training.warmup=1"]
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)


def test_a_table_that_failed_is_no_success(tmp_path):
    result = speeds_by("echo broken\nexit 3", tmp_path)
    assert result.returncode == 1 and result.stdout.count("failed with 3") == result.stdout.count("broken") == 13


class Begun(Exception):
    """What a benchmark was given."""


def begin(given):
    raise Begun(given)


def test_the_table_of_speeds_asks_for_what_there_is(tmp_path, monkeypatch):
    """Commands that benchmarks/speed.sh gives a Python that only writes them down."""
    result = speeds_by(f'echo "$@" >>{tmp_path}/commands\necho a table', tmp_path)
    assert result.returncode == 0, result.stderr
    commands = [line.split() for line in (tmp_path / "commands").read_text().splitlines()]
    assert len(commands) == len(list((tmp_path / "out").iterdir())) == result.stdout.count("a table") == 13
    parse = ArgumentParser.parse_intermixed_args
    for _, module, *arguments in commands:
        # Those that it understands, up to where it would begin.
        with monkeypatch.context() as patch, pytest.raises(Begun) as begun:
            patch.setattr(ArgumentParser, "parse_intermixed_args", lambda *given: begin(parse(*given)))
            importlib.import_module(module).main(arguments)
        (given,) = begun.value.args
        (config,) = given.config if isinstance(given.config, list) else [given.config]
        assert "training.warmup=1" in given.overrides
        for own in getattr(given, "vary", None) or [""]:
            read_config(ROOT / config, [*given.overrides, *own.split()])

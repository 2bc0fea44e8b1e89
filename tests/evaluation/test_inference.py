import csv
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import time
import weakref
from pathlib import Path
from typing import get_args
from unittest.mock import MagicMock

import av
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import inference
from data import loader, packing
from data.views import Selection
from evaluation import evaluator
from evaluation.copying import NearestInput
from evaluation.evaluator import Evaluator
from evaluation.identity import identify_run
from evaluation.metrics import psnr, ssim
from evaluation.renderer import Renderer, round_matmul_weights
from evaluation.scoring import nearest_input_psnr
from geometry.normalization import PoseNormalization
from model.weights import published_state
from setup import build_config, load_config, load_renderer, owners, warn_of_other_values, with_pose_normalization
from tests.helpers import INDEX, VARIANTS, random_cameras, random_views, small_model, write_toy_scene, write_toy_set
from tests.lanes import ONE_FAST_VARIANT
from tests.messages import check_names, check_told, refused
from tests.processes import run
from tests.runs import evaluation_command as command
from tests.runs import keep_frames, save_model, scores
from utils.checkpoint import checkpoint_name, write_checkpoint
from utils.config_file import read_kept_yaml
from utils.distributed import process_group
from utils.files import temporary_path
from utils.precision import PrecisionConfig


@pytest.mark.fast
@pytest.mark.parametrize("variant", ONE_FAST_VARIANT)
def test_a_run_writes_every_file_with_the_right_content(variant, place):
    save_model(place, variant)
    extras = [
        "inference.render_video=true",
        "inference.render_video_config.num_frames=3",
        "inference.nearest_input=true",
    ]
    inference.main(command(place, *extras, variant=variant))
    out = place / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html",
        "results.json",
        "scene0",
        "scene1",
        "scene2",
        "summary.csv",
    ]
    for scene in ("scene0", "scene1", "scene2"):
        assert sorted(p.name for p in (out / scene).iterdir()) == [
            "gt_vs_pred.png",
            "input.png",
            "metrics.json",
            "rendered_video.mp4",
        ]
        metrics = json.loads((out / scene / "metrics.json").read_text())
        assert [view["view"] for view in metrics["per_view"]] == INDEX[scene]["target"]
        mean = np.mean([view["psnr"] for view in metrics["per_view"]])
        assert metrics["summary"]["scene_name"] == scene
        assert metrics["summary"]["psnr"] == pytest.approx(mean)
    assert Image.open(out / "scene0" / "input.png").size == (2 * 16, 16)
    picture = np.asarray(Image.open(out / "scene0" / "gt_vs_pred.png")) / 255
    assert picture.shape == (32, 48, 3)
    # The picture's own pixels give the numbers, but for rounding to 8 bits.
    truth, prediction = (torch.tensor(half).permute(2, 0, 1).float() for half in np.split(picture, 2))
    views = [(t[None], p[None]) for t, p in zip(truth.split(16, 2), prediction.split(16, 2), strict=True)]
    metrics = json.loads((out / "scene0" / "metrics.json").read_text())["per_view"]
    for (image, render), view in zip(views, metrics, strict=True):
        assert view["psnr"] == pytest.approx(psnr(render, image).item(), abs=0.05)
        assert view["ssim"] == pytest.approx(ssim(render, image).item(), abs=0.01)
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["scene_name"] for row in rows] == ["scene0", "scene1", "scene2"]
    averages = json.loads((out / "results.json").read_text())["averages"]
    assert averages["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))


@pytest.mark.parametrize("variant", ["decoder_only", "cross"])
def test_wide_images_are_evaluated_and_filmed(variant, place):
    save_model(place, variant)
    wide = [f"model.{tokenizer}.image_size=[16,32]" for tokenizer in ("image_tokenizer", "target_pose_tokenizer")]
    film = ["inference.render_video=true", "inference.render_video_config.num_frames=3"]
    inference.main(command(place, *wide, *film, variant=variant))
    folder = place / "out" / "scene0"
    assert Image.open(folder / "input.png").size == (2 * 32, 16)
    assert Image.open(folder / "gt_vs_pred.png").size == (3 * 32, 2 * 16)
    with av.open(str(folder / "rendered_video.mp4")) as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == (32, 16)
    # The ground truth is the frame, scaled to 32 x 24, whole patches that cover the size, less 4 rows above and below.
    frame = Image.open(place / "scenes" / "images" / "scene0" / "00004.jpg").resize((32, 24), Image.Resampling.LANCZOS)
    truth = np.asarray(Image.open(folder / "gt_vs_pred.png"))[:16, :32]
    np.testing.assert_array_equal(truth, np.asarray(frame)[4:20])


def test_results_say_what_they_came_from(place):
    save_model(place)
    inference.main(command(place))
    results = json.loads((place / "out" / "results.json").read_text())
    run = results["provenance"]
    for key, path in (("checkpoint", place / "checkpoints" / checkpoint_name(1)), ("index", place / "index.json")):
        assert run[key] == str(path)
        assert run[f"{key}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run["scenes"] == 3 and run["dtype"] == "fp32" and run["packages"]["torch"] == torch.__version__.split("+")[0]
    assert run["config"]["training"]["batch_size_per_gpu"] == 2
    psnrs = [scene["psnr"] for scene in results["scenes"].values()]
    assert results["spread"]["psnr"] == pytest.approx(np.std(psnrs))
    # Frame 12 of scene0 is both input and target; it is left out here.
    views = json.loads((place / "out" / "scene0" / "metrics.json").read_text())["per_view"]
    without = np.mean([view["psnr"] for view in views if view["view"] != 12])
    expected = np.mean([without, *psnrs[1:]])
    assert results["averages_without_input_frames"]["psnr"] == pytest.approx(expected)
    page = (place / "out" / "index.html").read_text()
    assert run["checkpoint_sha256"] in page and run["index_sha256"] in page
    assert f'"withoutInputs":[["psnr",{results["averages_without_input_frames"]["psnr"]:.6g}' in page


def states(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("scene*/*")}


def test_an_interrupted_evaluation_goes_on(place, monkeypatch, caplog):
    save_model(place)
    video = ["inference.render_video=true", "inference.render_video_config.num_frames=3"]
    one_by_one = command(place, "training.batch_size_per_gpu=1", *video)
    inference.main([*one_by_one, f"inference_out_dir={place}/whole"])
    evaluate, calls = Evaluator.evaluate_batch, []

    def interrupted(self, batch):
        calls.append(batch.scenes)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, batch)

    monkeypatch.setattr(Evaluator, "evaluate_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inference.main(one_by_one)
    before = states(place / "out")
    assert not (place / "out" / "summary.csv").exists()
    with caplog.at_level("INFO", "lvsm"):
        inference.main(one_by_one)
    check_told(caplog.messages, "2 of 3 scenes")
    assert calls[3:] == [["scene2"]]
    assert before.items() <= states(place / "out").items()
    for name in ("summary.csv", "scene1/metrics.json"):
        assert (place / "out" / name).read_text() == (place / "whole" / name).read_text()


def edit(change):
    """A function that changes the metrics.json of a scene."""

    def apply(place, scene):
        path = place / "out" / scene / "metrics.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def write(name, content):
    return lambda place, scene: (place / "out" / scene / name).write_bytes(content)


def cut(name):
    def apply(place, scene):
        path = place / "out" / scene / name
        path.write_bytes(path.read_bytes()[:-20])

    return apply


def flip(name):
    """A function that changes one bit of a file of a scene, not its size or times."""

    def apply(place, scene):
        path = place / "out" / scene / name
        content, state = bytearray(path.read_bytes()), path.stat()
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    return apply


def touch(place, scene):
    os.utime(place / f"scenes/images/{scene}/00004.jpg", ns=(1, 1))


# What may become of a scene's inputs or of what an evaluation wrote of it.
CHANGES = [
    touch,
    lambda place, scene: write_toy_scene(place / "scenes", scene, 14, seed=99),
    lambda place, scene: os.utime(place / f"scenes/metadata/{scene}.json", ns=(1, 1)),
    lambda place, scene: (place / "out" / scene / "input.png").unlink(),
    lambda place, scene: (place / "out" / scene / "rendered_video.mp4").unlink(),
    write("gt_vs_pred.png", b""),
    write("gt_vs_pred.png", b"notanimage"),
    cut("gt_vs_pred.png"),
    cut("rendered_video.mp4"),
    flip("input.png"),
    flip("rendered_video.mp4"),
    lambda place, scene: shutil.copy(place / "out/scene0/gt_vs_pred.png", place / "out" / scene / "gt_vs_pred.png"),
    edit(lambda content: content["summary"].update(psnr=99.0)),
    edit(lambda content: content["per_view"][0].update(psnr=99.0)),
    edit(lambda content: content.pop("files")),
    edit(lambda content: content["files"].pop("input.png")),
    edit(lambda content: content["files"].update({"../../index.json": [1, 2]})),
    edit(lambda content: content.update(files=3)),
    write("metrics.json", b""),
    write("metrics.json", b"[" * 5000),
    write("metrics.json", b"[1]"),
    edit(lambda content: content.pop("summary")),
    edit(lambda content: content.update(summary=3)),
    edit(lambda content: content["summary"].update(psnr="high")),
    edit(lambda content: content["summary"].update(psnr=10**20)),
    edit(lambda content: content["summary"].update(psnr=float("nan"))),
    edit(lambda content: content["summary"].pop("psnr")),
    edit(lambda content: content["summary"].pop("scene_name")),
    edit(lambda content: content["summary"].update(scene_name="x" * 100_000)),
    edit(lambda content: content.update(per_view={})),
    edit(lambda content: content["per_view"].pop()),
    edit(lambda content: content["per_view"][0].pop("psnr")),
    edit(lambda content: content["per_view"].reverse()),
    edit(lambda content: content.update(context=[0])),
    edit(lambda content: content.update(run=None)),
]


@pytest.mark.slow
def test_scenes_that_are_not_as_they_were_are_evaluated_anew(tmp_path, monkeypatch, caplog):
    names = [f"scene{number}" for number in range(1 + len(CHANGES))]
    write_toy_set(tmp_path / "scenes", scenes=len(names))
    (tmp_path / "index.json").write_text(json.dumps({name: {"context": [0, 12], "target": [4, 9]} for name in names}))
    save_model(tmp_path)
    filmed = ["inference.render_video=true", "inference.render_video_config.num_frames=2"]
    arguments = command(tmp_path, *filmed, "training.batch_size_per_gpu=6")
    inference.main(arguments)
    for scene, change in zip(names[1:], CHANGES, strict=True):
        change(tmp_path, scene)
    evaluate, anew = Evaluator.evaluate_batch, []
    monkeypatch.setattr(Evaluator, "evaluate_batch", lambda self, b: anew.extend(b.scenes) or evaluate(self, b))
    with caplog.at_level("INFO", "lvsm"):
        inference.main(arguments)
    assert sorted(anew) == sorted(names[1:])
    check_told(caplog.messages, f"1 of {len(names)} scenes")
    with caplog.at_level("INFO", "lvsm"):
        inference.main(arguments)
    check_told(caplog.messages, f"{len(names)} of {len(names)} scenes")
    assert len(anew) == len(CHANGES)


def test_what_another_run_left_is_evaluated_anew(place, caplog):
    model = save_model(place)
    inference.main(command(place))
    before = scores(place, "out")
    with torch.no_grad():
        model.head.linear.weight.mul_(-1)
    write_checkpoint(place / "checkpoints", 2, {"model": published_state(model)})
    (place / "out" / "stale").mkdir()
    (place / "out" / "stale" / "metrics.json").write_text('{"summary": {"psnr": 99}}')
    with caplog.at_level("INFO", "lvsm"):
        inference.main(command(place))
    assert "evaluated before" not in caplog.text
    assert scores(place, "out").keys() == before.keys() and scores(place, "out") != pytest.approx(before)


def test_files_that_a_run_does_not_make_are_not_left_beside_its_pictures(place):
    save_model(place)
    inference.main(command(place, "inference.render_video=true", "inference.render_video_config.num_frames=2"))
    scene = place / "out" / "scene0"
    assert {"rendered_video.mp4", "metrics.json"} <= {path.name for path in scene.iterdir()}
    inference.main(command(place, "inference.compute_metrics=false"))
    assert {path.name for path in scene.iterdir()} == {"input.png", "gt_vs_pred.png"}


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Seven scenes, not all with as many targets, and `results(out)` of evaluations of them; `alone` is one by one."""
    folder = tmp_path_factory.mktemp("seven")
    write_toy_set(folder / "scenes", scenes=7)
    index = {f"scene{i}": {"context": [0, 12], "target": [4, 12 - i, 9][: 3 - i % 2]} for i in range(7)}
    (folder / "index.json").write_text(json.dumps(index))
    save_model(folder)
    inference.main(command(folder, "training.batch_size_per_gpu=1", out="alone"))
    return folder


def results(folder, out):
    content = json.loads((folder / out / "results.json").read_text())
    return {key: content[key] for key in ("averages", "spread", "averages_without_input_frames", "scenes")}


def check_same(folder, out):
    """Every scene once, with the numbers that it has when evaluated alone."""
    expected, found = results(folder, "alone"), results(folder, out)
    assert list(found["scenes"]) == list(expected["scenes"]) == [f"scene{i}" for i in range(7)]
    for name, numbers in expected["scenes"].items():
        assert found["scenes"][name] == pytest.approx(numbers, abs=1e-4)
    for kind in ("averages", "spread", "averages_without_input_frames"):
        assert found[kind] == pytest.approx(expected[kind], abs=1e-4)
    assert [row["scene_name"] for row in csv.DictReader((folder / out / "summary.csv").open())] == list(found["scenes"])


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_and_processes_change_no_number(processes, seven):
    commands = {f"{processes}x{batch}": f"training.batch_size_per_gpu={batch}" for batch in (1, 4)}
    arguments = [command(seven, override, out=out) for out, override in commands.items()]
    if processes == 1:
        inference.main(arguments[1])
        check_same(seven, "1x4")
        return
    done = run("-m", "tests.programs.run_evaluations", *map(json.dumps, arguments), processes=processes)
    assert done.returncode == 0, done.stderr
    for out in commands:
        check_same(seven, out)


def test_an_evaluation_that_was_killed_ends_with_the_same_numbers(seven, caplog):
    one_by_one = command(seven, "training.batch_size_per_gpu=1", out="killed")
    assert run("-m", "tests.programs.run_killed_evaluation", *one_by_one).returncode == -signal.SIGKILL
    assert not (seven / "killed" / "results.json").exists()
    # The pictures of the fourth scene are there, its numbers are not; a scene of some other run is, too.
    assert (seven / "killed" / "scene3" / "input.png").exists()
    temporary_path(seven / "killed" / "scene3" / "rendered_video.mp4").touch()
    stale = seven / "killed" / "scene5" / "metrics.json"
    stale.parent.mkdir()
    stale.write_text(json.dumps({"summary": {"scene_name": "scene5", "psnr": 99}, "per_view": [], "run": "another"}))
    (seven / "killed" / "left_over").mkdir()
    (seven / "killed" / "left_over" / "metrics.json").write_text(stale.read_text())
    with caplog.at_level("INFO", "lvsm"):
        inference.main(one_by_one)
    check_told(caplog.messages, "3 of 7 scenes")
    assert results(seven, "killed") == results(seven, "alone")
    files = {path.name for path in (seven / "killed" / "scene3").iterdir()}
    assert files == {"input.png", "gt_vs_pred.png", "metrics.json"}


@pytest.mark.parametrize("change", ["use_amp=true", "amp_dtype=fp16", "residual_dtype=amp", "square_crop=false"])
def test_scenes_of_other_numbers_are_not_taken_for_finished(change):
    given = ["--config", "configs/demo.yaml"]
    (config, _), (changed, _) = load_config(given), load_config([*given, f"training.{change}"])
    identity = identify_run(owners(config), {})
    assert identity != identify_run(owners(changed), {})
    assert identity != identify_run(owners(config), {"checkpoint": "another"})


def test_a_scene_that_was_removed_is_named(seven, tmp_path):
    root = tmp_path / "seven"
    shutil.copytree(seven, root)
    shutil.rmtree(root / "scenes" / "images" / "scene4")
    with refused("scene scene4, frame 0", re.compile(r"/images/scene4/00000\.jpg\b")):
        inference.main(command(root))
    (root / "scenes" / "metadata" / "scene4.json").unlink()
    with refused(root / "scenes" / "metadata" / "scene4.json"):
        inference.main(command(root))
    assert not (root / "out" / "results.json").exists()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut off"])
def test_a_scene_that_cannot_be_read_costs_that_scene(place, content, caplog):
    save_model(place)
    (place / "scenes" / "images" / "scene1" / "00004.jpg").write_bytes(content)
    with refused("scene scene1, frame 4", "inference.allow_missing=true"):
        inference.main(command(place))
    (place / "index.json").write_text(json.dumps(INDEX | {"ghost": INDEX["scene0"]}))
    with caplog.at_level("WARNING", "lvsm"):
        inference.main(command(place, "inference.allow_missing=true"))
    results = json.loads((place / "out" / "results.json").read_text())
    assert list(results["scenes"]) == ["scene0", "scene2"] and results["provenance"]["scenes"] == 2
    assert list(results["provenance"]["missing"]) == ["ghost", "scene1"]
    check_told(caplog.messages, "scene scene1", "frame 4")
    assert "00004.jpg" in (place / "out" / "index.html").read_text()


def test_results_say_how_fast_and_where_time_went(seven, monkeypatch):
    write = evaluator.write_metrics
    # Slow enough that writing is waited for.
    monkeypatch.setattr(evaluator, "write_metrics", lambda *given: time.sleep(0.1) or write(*given))
    inference.main(command(seven, "training.batch_size_per_gpu=7", out="slow"))
    run = json.loads((seven / "slow" / "results.json").read_text())["provenance"]
    stages = run["seconds_by_stage"]
    assert list(stages) == list(evaluator.STAGES)
    assert stages["render"] > 0 and stages["video"] == 0 and stages["writing"] > 0
    # 18 targets in no more than all the seconds, in no less than those that were counted, but for rounding.
    assert sum(stages.values()) - 0.05 < 18 / run["images_per_second"] < run["seconds"] + 0.05
    page = (seven / "slow" / "index.html").read_text()
    assert "images_per_second" in page and "seconds_by_stage" in page
    inference.main(command(seven, "training.batch_size_per_gpu=7", out="slow"))
    run = json.loads((seven / "slow" / "results.json").read_text())["provenance"]
    assert "images_per_second" not in run  # nothing was left to render


def test_the_speed_is_that_of_all_processes():
    parts = [
        evaluator.Part([], {}, 30, 4.0, {"render": 3.0}),
        evaluator.Part([], {}, 20, 5.0, {"render": 1.0, "data": 2.0}),
    ]
    assert evaluator.describe_speed(parts) == {
        "images_per_second": 10.0,
        "seconds_by_stage": {"data": 1.0, "render": 2.0, "metrics": 0.0, "pictures": 0.0, "video": 0.0, "writing": 0.0},
    }


def test_nobody_watching_sees_no_bar(seven, capfd):
    inference.main(command(seven, "inference.metrics=[psnr]", out="quiet"))
    assert "scene" not in capfd.readouterr().err


def test_the_bar_shows_images_per_second(seven, monkeypatch):
    shown = []
    monkeypatch.setattr(evaluator.tqdm, "set_postfix_str", lambda _, text, **__: shown.append(text))
    inference.main(command(seven, "training.batch_size_per_gpu=4", "inference.metrics=[ssim]", out="watched"))
    assert shown and all(re.fullmatch(r"[\d.]+ images/s", text) for text in shown)


def test_pictures_alone_without_metrics(place):
    save_model(place)
    inference.main(command(place, "inference.compute_metrics=false", "inference.generate_website=false"))
    assert not (place / "out" / "scene0" / "metrics.json").exists()
    assert (place / "out" / "scene0" / "gt_vs_pred.png").exists()
    assert not (place / "out" / "index.html").exists()


def test_view_counts_follow_the_index(place):
    save_model(place)
    agreeing = ["training.num_views=5", "training.num_input_views=2", "training.num_target_views=3"]
    inference.main(command(place, *agreeing, "training.target_has_input=false"))
    for contradicting in ("training.num_views=8", "training.num_input_views=3", "training.num_target_views=6"):
        with refused(contradicting, place / "index.json", "scene scene0"):
            inference.main(command(place, contradicting))


@pytest.mark.parametrize("normalization", ["all_views", "input_views"])
def test_with_poses_normalised_by_the_inputs_a_render_depends_on_no_other_target(normalization, place):
    save_model(place)
    views = []
    for number, other in enumerate((9, 3, 13)):
        selection = {"context": [2, 10], "target": [4, other]}
        (place / "index.json").write_text(json.dumps({"scene0": selection}))
        inference.main(command(place, f"training.pose_normalization={normalization}", out=f"out{number}"))
        metrics = json.loads((place / f"out{number}" / "scene0" / "metrics.json").read_text())
        views.append(metrics["per_view"][0])
    same = [view == pytest.approx(views[0], abs=1e-6) for view in views]
    assert all(same) if normalization == "input_views" else not same[2]


TRAINED = "training:\n  pose_normalization: input_views\n  scene_scale_factor: 2.0\n  square_crop: true\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "keys"),
    [
        (TRAINED, ["training.pose_normalization", "training.scene_scale_factor"]),
        ("model: {image_tokenizer: {image_size: 32}}", ["model.image_tokenizer.image_size"]),
        ("model: {image_tokenizer: {image_size: [16, 24]}}", ["model.image_tokenizer.image_size"]),
        ("model: {image_tokenizer: {image_size: [16, 16]}}", []),
        ("model: {image_tokenizer: {image_size: [16]}}", []),
        ("model: {image_tokenizer: {image_size: [[16, 24], true]}}", []),
        ("training: {scene_scale_factor: 1.35, pose_normalization: all_views, square_crop: 1}", []),
        ("training: {square_crop: [1], pose_normalization: null}", []),
        ("!!python/object/apply:os.mkdir [x]", []),
        ("{", []),
        ("a: !!bool maybe", []),
        ("a: !!timestamp soon", []),
        ("[" * 5000, []),
        ("- 3", []),
        ("", []),
        (None, []),
        (torch.zeros(1), []),
    ],
)
def test_other_values_than_those_of_training_are_said(place, stored, keys, caplog):
    config, _ = load_config(command(place, "training.pose_normalization=all_views"))
    caplog.clear()
    warn_of_other_values(config, read_kept_yaml(stored), place / "x.pt")
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == keys
    assert all(str(place / "x.pt") in record.getMessage() for record in caplog.records)


def test_an_evaluation_says_what_differs_from_training(place, caplog):
    model = save_model(place)
    stored = {"model": published_state(model), "config": TRAINED}
    write_checkpoint(place / "checkpoints", 2, stored)
    inference.main(command(place))
    check_told(caplog.messages, "training.scene_scale_factor", 1.35, 2.0, place / "checkpoints" / checkpoint_name(2))


def test_the_configuration_of_a_checkpoint_is_read_once(place, monkeypatch):
    stored = {"model": published_state(save_model(place)), "config": TRAINED}
    write_checkpoint(place / "checkpoints", 2, stored)
    config, _ = load_config(command(place))
    read = MagicMock(side_effect=read_kept_yaml)
    monkeypatch.setattr("setup.read_kept_yaml", read)
    with process_group() as process:
        load_renderer(config, process)
    read.assert_called_once_with(TRAINED)


NORMALIZED = "training: {{pose_normalization: {}}}"


@pytest.mark.parametrize(
    ("stored", "chosen", "used", "said"),
    [
        *((NORMALIZED.format(value), None, value, []) for value in get_args(PoseNormalization)),
        *((text, None, "all_views", []) for text in (NORMALIZED.format("auto"), "training: {lr: 1.0}", "{", "", None)),
        (NORMALIZED.format("median"), "auto", "median", []),
        (NORMALIZED.format("median"), "median", "median", []),
        (NORMALIZED.format("median"), "none", "none", ["'none'", "'median'"]),
        (NORMALIZED.format("none"), "all_views", "all_views", ["'all_views'", "'none'"]),
        (NORMALIZED.format("newest"), "median", "median", ["'median'", "'newest'"]),
        (None, "median", "median", ["'median'", "'all_views'"]),
    ],
)
def test_poses_are_normalised_as_in_training_unless_told_otherwise(stored, chosen, used, said, caplog):
    key = "training.pose_normalization"
    in_a_file = yaml.safe_load(NORMALIZED.format(chosen)) if chosen else {}
    on_the_command_line = {key: chosen} if chosen else {}
    trained = read_kept_yaml(stored)
    for config in (build_config(in_a_file), build_config({}, on_the_command_line)):
        caplog.clear()
        config = with_pose_normalization(config, trained, Path("x.pt"))
        assert config.training.data.pose_normalization == used
        warn_of_other_values(config, trained, Path("x.pt"))
        assert len(caplog.messages) == bool(said)
        for message in caplog.messages:
            check_names(message, key, "x.pt", *said)


SCALED = "training: {{pose_normalization: {}, pose_scale: {}}}"


@pytest.mark.parametrize(
    ("stored", "given", "used"),
    [
        (SCALED.format("none", 0.5), {}, 0.5),
        (SCALED.format("none", 2), {"pose_normalization": "auto"}, 2.0),
        (SCALED.format("none", 0.5), {"pose_scale": "0.25"}, 0.25),
        (SCALED.format("none", 0.5), {"pose_normalization": "none"}, 1.0),
        (SCALED.format("all_views", 0.5), {}, 1.0),
        (NORMALIZED.format("none"), {}, 1.0),
        (None, {}, 1.0),
    ],
)
def test_positions_have_the_scale_of_training_unless_told_otherwise(stored, given, used):
    config = build_config({}, {f"training.{key}": value for key, value in given.items()})
    config = with_pose_normalization(config, read_kept_yaml(stored), Path("x.pt"))
    assert config.training.data.pose_scale == used


@pytest.mark.parametrize("scale", ["0", "-1", "2" * 400, ".nan", "true", "half", "[1]"])
def test_a_scale_of_training_that_cannot_be_is_named(scale):
    with refused("x.pt", "training.pose_scale"):
        with_pose_normalization(build_config({}), read_kept_yaml(SCALED.format("none", scale)), Path("x.pt"))


@pytest.mark.parametrize("stored", ["newest", "[none]", "3", "{a: none}"])
def test_a_normalisation_of_training_that_is_not_known_is_named(stored):
    with refused("x.pt", "training.pose_normalization", "median"):
        with_pose_normalization(build_config({}), yaml.safe_load(NORMALIZED.format(stored)), Path("x.pt"))


def test_an_evaluation_takes_the_normalisation_from_the_checkpoint(place):
    model = save_model(place)
    write_checkpoint(place / "checkpoints", 1, {"model": published_state(model), "config": NORMALIZED.format("median")})
    key = "training.pose_normalization"
    results = {}
    for out, chosen in (("auto", "auto"), ("told", "median"), ("other", "none")):
        inference.main(command(place, f"{key}={chosen}", out=out))
        results[out] = json.loads((place / out / "results.json").read_text())
    used = {out: run["provenance"]["config"]["training"]["pose_normalization"] for out, run in results.items()}
    assert used == {"auto": "median", "told": "median", "other": "none"}
    assert results["auto"]["averages"] == results["told"]["averages"] != results["other"]["averages"]
    finished = {out: json.loads((place / out / "scene0" / "metrics.json").read_text())["run"] for out in results}
    assert finished["auto"] == finished["told"] != finished["other"]


def test_a_misspelled_normalisation_is_refused(place):
    with refused("training.pose_normalization", "'input_veiws'", "input_views"):
        inference.main(command(place, "training.pose_normalization=input_veiws"))


@pytest.mark.parametrize(
    ("value", "culprits"),
    [
        (float("nan"), [checkpoint_name(2), "image_tokenizer.1.weight", "not finite"]),
        (float("inf"), [checkpoint_name(2), "image_tokenizer.1.weight", "not finite"]),
        (3e38, ["scene scene0", "NaN"]),
    ],
)
def test_broken_weights_are_named(place, value, culprits):
    model = save_model(place)
    torch.nn.init.constant_(model.image_tokenizer.linear.weight, value)
    write_checkpoint(place / "checkpoints", 2, {"model": published_state(model)})
    with refused(*culprits):
        inference.main(command(place))
    assert not (place / "out" / "summary.csv").exists()


def test_copying_the_nearest_input_never_copies_the_target():
    views = random_views(1, 3)
    targets = views[:, 2:]
    same = torch.tensor([[[False, False]]])
    distances = (views.cameras.c2w[0, :2, :3, 3] - views.cameras.c2w[0, 2, :3, 3]).norm(dim=1)
    nearest = int(distances.argmin())
    expected = psnr(views.images[0, nearest][None], views.images[0, 2][None])
    torch.testing.assert_close(nearest_input_psnr(views[:, :2], targets, same)[0], expected)
    same = torch.tensor([[[nearest == 0, nearest == 1]]])
    expected = psnr(views.images[0, 1 - nearest][None], views.images[0, 2][None])
    torch.testing.assert_close(nearest_input_psnr(views[:, :2], targets, same)[0], expected)


def test_copying_is_evaluated_like_a_model_without_weights(place):
    extras = ["inference.predictor=nearest_input", "inference.nearest_input=true", "inference.render_video=true"]
    nowhere = f"training.checkpoint_dir={place}/nothing"
    inference.main(command(place, nowhere, *extras, "inference.render_video_config.num_frames=3"))
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["averages"]["psnr"] == pytest.approx(results["averages"]["psnr_nearest_input"])
    assert "checkpoint" not in results["provenance"] and results["averages"]["psnr"] < 50
    for scene in ("scene0", "scene1", "scene2"):
        inputs = np.asarray(Image.open(place / "out" / scene / "input.png"))
        picture = np.asarray(Image.open(place / "out" / scene / "gt_vs_pred.png"))
        copies = np.split(picture[picture.shape[0] // 2 :], 3, axis=1)
        # Frames 0 and 12 of a camera that slides evenly; frame 12 of scene0 is an input itself.
        chosen = [int(frame > 6 and (scene, frame) != ("scene0", 12)) for frame in INDEX[scene]["target"]]
        for copy, number in zip(copies, chosen, strict=True):
            assert np.array_equal(copy, np.split(inputs, 2, axis=1)[number])


def test_a_film_of_copies_shows_the_nearer_input():
    inputs = random_views(1, 2)
    copying = NearestInput(torch.device("cpu"))
    encoded = copying.encode(inputs)
    frames = torch.cat(list(copying.stream(encoded, inputs.cameras)), 1)
    assert torch.equal(frames, inputs.images)
    assert torch.equal(copying.render(encoded, inputs.cameras), inputs.images.flip(1))
    assert next(copying.film(encoded[0], inputs.cameras)).shape == (1, 16, 24, 3)


def test_selections_are_plain(place):
    items, _ = inference.choose_items(load_config(command(place))[0], set())
    assert [selection for _, selection in items] == [Selection([0, 12], INDEX[f"scene{i}"]["target"]) for i in range(3)]


def test_recorded_kernels_keep_what_they_read(no_graphs):
    renderer = Renderer(small_model("decoder_only"), PrecisionConfig(use_amp=False), torch.device("cuda"))
    encoded, targets = renderer.encode(random_views(1, 2)), random_cameras(1, 3, seed=1)
    play, kept, model = renderer.record(encoded, targets), weakref.ref(encoded), weakref.ref(renderer.model)
    del encoded, renderer
    gc.collect()
    assert kept() is not None and model() is not None
    assert play(targets).shape == (1, 3, 3, 16, 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_rounded_once_give_the_numbers_of_autocast(variant):
    cfg, inputs, targets = PrecisionConfig(), random_views(1, 2), random_cameras(1, 3, seed=1)
    renders = []
    for prepare in (lambda model, _: model, round_matmul_weights):
        renderer = Renderer(prepare(small_model(variant), cfg), cfg, torch.device("cpu"))
        encoded = renderer.encode(inputs)
        renders.append(renderer.render(encoded, targets))
        torch.testing.assert_close(renderer.record(encoded, targets)(targets), renders[-1], rtol=0, atol=0)
    assert torch.equal(*renders)


AUTO = "inference.view_idx_file_path=auto"
FILM = ("inference.render_video=true", "inference.render_video_config.num_frames=3")


def views_of(out, scene="scene0"):
    metrics = json.loads((out / scene / "metrics.json").read_text())
    return metrics["context"], [view["view"] for view in metrics["per_view"]]


def test_scenes_without_an_index_are_evaluated_on_all_other_frames(place, monkeypatch, caplog):
    save_model(place)
    monkeypatch.setattr(loader, "_said", set())
    inference.main(command(place, out="indexed"))
    assert loader._said == set()
    (place / "index.json").unlink()
    inference.main(command(place, AUTO, "training.num_input_views=[2, 3]"))
    check_told(caplog.messages, "scene0", "48x32", "training.square_crop")
    assert sum("training.square_crop" in message for message in caplog.messages) == 1
    context, targets = views_of(place / "out")
    assert len(context) == 3 and {0, 13} < set(context)
    assert sorted([*context, *targets]) == list(range(14))
    results = json.loads((place / "out" / "results.json").read_text())
    assert "index_sha256" not in results["provenance"] and len(results["scenes"]) == 3
    # Other inputs are another evaluation, into the same folder.
    inference.main(command(place, "inference.input_frames=[5,2]"))
    assert views_of(place / "out") == ([5, 2], [frame for frame in range(14) if frame not in (5, 2)])


def test_a_scene_without_truth_is_filmed(place):
    save_model(place)
    list_file = write_toy_set(place / "photos", scenes=1, frames=2)
    photos = [AUTO, f"training.dataset_path={list_file}"]
    with refused("inference.render_video=true", list_file):
        inference.main(command(place, *photos))
    inference.main(command(place, *photos, *FILM))
    out = place / "out"
    assert sorted(path.name for path in (out / "scene0").iterdir()) == [
        "input.png",
        "metrics.json",
        "rendered_video.mp4",
    ]
    assert views_of(out) == ([0, 1], [])
    assert json.loads((out / "results.json").read_text())["averages"] == {}


def test_scenes_with_and_without_truth_are_one_evaluation(place, caplog):
    save_model(place)
    write_toy_scene(place / "scenes", "photos", 2, seed=9)
    with (place / "scenes" / "full_list.txt").open("a") as names:
        names.write("metadata/photos.json\n")
    extras = [AUTO, *FILM, "inference.nearest_input=true", "training.batch_size_per_gpu=2"]
    inference.main(command(place, *extras))
    results = json.loads((place / "out" / "results.json").read_text())
    scored = [values["psnr"] for values in results["scenes"].values() if values]
    assert len(scored) == 3 and results["scenes"]["photos"] == {}
    assert results["averages"]["psnr"] == pytest.approx(np.mean(scored))
    with caplog.at_level("INFO", "lvsm"):
        inference.main(command(place, *extras))
    check_told(caplog.messages, "evaluated before", "4 of 4 scenes")


def test_packed_scenes_are_evaluated_as_loose_ones(place, monkeypatch):
    save_model(place)
    videos = keep_frames(monkeypatch)
    packing.main([f"{place}/scenes/full_list.txt", "--output_dir", f"{place}/packed", "--num_processes", "1"])
    inference.main(command(place, *FILM))
    inference.main(command(place, *FILM, f"training.dataset_path={place}/packed/full_list.txt", out="of_packed"))
    for path in (place / "out").glob("*/*.png"):
        assert path.read_bytes() == (place / "of_packed" / path.parent.name / path.name).read_bytes()
    assert len(videos) == 2 * 3
    for path in (place / "out").glob("*/*.mp4"):
        assert np.array_equal(videos[path], videos[place / "of_packed" / path.parent.name / path.name])
    assert scores(place, "out") == scores(place, "of_packed")
    assert len(views_of(place / "of_packed")[1]) == 3 and (place / "of_packed" / "index.html").is_file()


def test_frames_that_a_scene_does_not_have_are_refused(place):
    save_model(place)
    with refused("scene0", 14):
        inference.main(command(place, "inference.input_frames=[0,14]"))

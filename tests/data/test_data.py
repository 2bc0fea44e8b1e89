import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from data import evaluation_index
from data.dataset import (
    DataConfig,
    EvaluationDataset,
    TrainingDataset,
    ViewLoader,
    collate_by_shape,
    size_of_update,
)
from data.evaluation_index import fetch_evaluation_index, match_scenes, read_evaluation_index
from data.loader import LoaderConfig, TrainingLoader, evaluation_batches
from data.scene import read_cameras, read_scene, read_scene_list, write_scene
from data.views import Selection, ViewSelectorConfig, check_view_config, spread_over
from geometry.normalization import (
    PoseNormalization,
    median_normalization,
    no_normalization,
    pose_normalization,
)
from tests.helpers import write_toy_scene, write_toy_set
from tests.messages import check_names, refused
from utils import download
from utils.files import read_json
from utils.sections import check_values, distribute, flatten

SELECTOR = ViewSelectorConfig(8, 13)


def view_loader(path="", **changes):
    cfg = {"view_selector": SELECTOR, "dataset_path": str(path)} | changes
    return ViewLoader(DataConfig(**cfg), image_size=16, patch_size=4)


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        ({"num_views": 5}, ["num_target_views", 6, "num_views (5)", "num_views=6"]),
        ({"target_has_input": False, "num_target_views": 7}, ["num_target_views", 7, "num_views=9"]),
        ({"num_input_views": 9}, ["num_input_views", 9]),
        ({"num_input_views": [2, 9]}, ["num_input_views", 9]),
        ({"num_input_views": [4, 2]}, ["num_input_views", "[4, 2]"]),
        ({"num_input_views": [1, 8], "num_target_views": 1}, ["num_input_views", "[1, 8]", "num_views"]),
        ({"num_input_views": [4]}, ["num_input_views", "[4]"]),
        ({"num_input_views": [0, 2]}, ["num_input_views", 0, "at least 1"]),
        ({"num_input_views": [2, "many"]}, ["num_input_views", "'many'"]),
        ({"num_input_views": [2, 6]}, ["num_target_views", 6, "2 inputs", "num_views=10"]),
        ({"num_input_views": [2, 6], "target_has_input": False}, ["num_target_views", 6, "6 inputs", "num_views=12"]),
        ({"num_input_views": [2, 4], "dynamic_input_view_num": True}, ["dynamic_input_view_num", "num_input_views"]),
        ({"num_views": 3, "num_target_views": 3, "dynamic_input_view_num": True}, ["num_input_views", 4, 3]),
        ({"pose_normalization": "all"}, ["pose_normalization", "'all'", "auto, all_views, input_views, median, none"]),
        ({"view_selector": {"min_frame_dist": 9, "max_frame_dist": 8}}, ["view_selector", "min_frame_dist", 9, 8]),
        ({"view_sampler": "all"}, ["view_sampler", "'all'", "window, spread, any"]),
        ({"scene_scale_factor": 0.0}, ["scene_scale_factor", 0.0]),
    ],
)
def test_contradicting_settings_are_named(change, culprits):
    with refused(*culprits):
        check_values(DataConfig, flatten(DataConfig()) | change)
        check_view_config(distribute(DataConfig, flatten(DataConfig()) | change))


def test_a_sample_is_a_function_of_its_number(tmp_path):
    path = write_toy_set(tmp_path)
    one, two = (TrainingDataset(view_loader(path), seed=3)[7] for _ in range(2))
    assert one.scenes == two.scenes and torch.equal(one.frames, two.frames)
    assert torch.equal(one.views.images, two.views.images)
    assert torch.equal(one.targets, two.targets)
    other_seed = TrainingDataset(view_loader(path), seed=4)
    assert any(
        other_seed[n].frames.tolist() != TrainingDataset(view_loader(path), 3)[n].frames.tolist() for n in range(4)
    )


def test_every_epoch_visits_every_scene_once(tmp_path):
    dataset = TrainingDataset(view_loader(write_toy_set(tmp_path, scenes=4)), seed=0)
    names = [dataset[n].scenes[0] for n in range(12)]
    epochs = [names[i : i + 4] for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def selection_of(sample):
    frames = sample.frames.tolist()
    return Selection(frames[: sample.num_inputs], [frames[n] for n in sample.targets], frames)


def test_a_sample_holds_the_frames_it_names(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    sample = TrainingDataset(view_loader(path), seed=0)[0]
    scene = read_scene(read_scene_list(path)[0])
    again = view_loader(path)(scene, selection_of(sample))
    assert torch.equal(sample.views.images, again.views.images)
    centres = sample.views.cameras.c2w[:, 0, 3]
    order = torch.argsort(sample.frames)
    assert torch.equal(order, torch.argsort(centres))
    assert centres.abs().max().item() == pytest.approx(1 / 1.35, rel=1e-5)


def test_short_scenes_give_their_place_to_others(tmp_path):
    path = write_toy_set(tmp_path, scenes=3)
    write_toy_scene(tmp_path, "short", 4)
    path.write_text(path.read_text() + "metadata/short.json\n")
    dataset = TrainingDataset(view_loader(path), seed=0)
    assert {dataset[n].scenes[0] for n in range(16)} == {"scene0", "scene1", "scene2"}


@pytest.mark.parametrize("sampler", ["window", "spread", "any"])
def test_no_scene_long_enough_for_the_most_inputs_is_found_at_once(tmp_path, sampler):
    path = write_toy_set(tmp_path, scenes=2, frames=10)
    names = ["long", "damaged", "lost"]
    path.write_text(path.read_text() + "".join(f"metadata/{name}.json\n" for name in names))
    long, _, lost = (write_toy_scene(tmp_path, name, frames) for name, frames in zip(names, (11, 1, 14), strict=True))
    long.with_name("damaged.json").write_text("{")
    record = json.loads(lost.read_text())
    for frame in record["frames"][3:]:
        frame["image_path"] = None
    lost.write_text(json.dumps(record))
    views = {"num_views": 12, "num_target_views": 2, "view_sampler": sampler}
    with refused(path, "training.num_input_views", "[2, 8]", "12 usable frames", "training.num_views=12", "long", 11):
        TrainingDataset(view_loader(path, num_input_views=[2, 8], **views), seed=0)
    assert TrainingDataset(view_loader(path, num_input_views=[2, 7], **views | {"num_views": 11}), seed=0)
    write_toy_scene(tmp_path, "long", 12)
    assert TrainingDataset(view_loader(path, num_input_views=[2, 8], **views), seed=0)


def test_a_scene_with_a_lost_frame_in_most_windows_may_have_the_most_inputs(tmp_path):
    path = write_toy_set(tmp_path, scenes=1, frames=30)
    scene = next(tmp_path.rglob("scene0.json"))
    record = json.loads(scene.read_text())
    for lost in (5, 11, 17, 23):
        record["frames"][lost]["image_path"] = None
    scene.write_text(json.dumps(record))
    views = {"num_views": 12, "num_target_views": 2, "num_input_views": [2, 8]}
    assert TrainingDataset(view_loader(path, view_selector=ViewSelectorConfig(11, 14), **views), seed=0)


def test_no_scene_long_enough_is_an_error(tmp_path):
    path = write_toy_set(tmp_path, frames=5)
    with refused(path, "9 usable frames", "training.view_selector.min_frame_dist=8"):
        TrainingDataset(view_loader(path), seed=0)[0]


def batches(path, count, rank=0, world=1, batch=2, position=0, workers=0, update=0, **views):
    dataset = TrainingDataset(view_loader(path, **views), seed=0)
    loader = TrainingLoader(dataset, LoaderConfig(workers, 2), batch, rank, world, position, update=update)
    return [next(loader) for _ in range(count)], loader


# A number of inputs and a size for all updates, and one for each.
INPUTS = {"num_input_views": [1, 5], "num_target_views": 4, "view_sampler": "spread"}
SIZES = {"image_sizes": [16, [16, 32]]}
DRAWN = [{}, INPUTS, SIZES]


@pytest.mark.parametrize("views", DRAWN)
def test_ranks_share_the_samples_of_one_process(tmp_path, views):
    path = write_toy_set(tmp_path)
    alone, loader = batches(path, 4, batch=4, **views)
    ranks = [batches(path, 4, rank=r, world=2, batch=2, **views)[0] for r in range(2)]
    for step in range(4):
        together = torch.cat([ranks[r][step].views.images for r in range(2)])
        assert torch.equal(together, alone[step].views.images)
        assert ranks[0][step].num_inputs == ranks[1][step].num_inputs == alone[step].num_inputs
    assert loader.position == 16
    assert len({batch.num_inputs for batch in alone}) == (3 if views is INPUTS else 1)
    widths = [batch.views.cameras.width for batch in alone]
    assert sorted(widths[:2]) == sorted(widths[2:]) == ([16, 32] if views is SIZES else [16, 16])


@pytest.mark.parametrize("sizes", [[128], [128, [128, 224]], [64, 128, [96, 256], 512]])
def test_sizes_are_drawn_evenly(sizes):
    turns = 600
    drawn = [size_of_update(sizes, 7, update) for update in range(turns * len(sizes))]
    rounds = [drawn[start : start + len(sizes)] for start in range(0, len(drawn), len(sizes))]
    # Every size once a round, and every place in a round as often as any other.
    assert all(sorted(map(str, one)) == sorted(map(str, sizes)) for one in rounds)
    for size in sizes:
        for place in range(len(sizes)):
            share = sum(one[place] == size for one in rounds) / turns
            assert abs(share - 1 / len(sizes)) < 4 * (0.25 / turns) ** 0.5
    assert drawn == [size_of_update(sizes, 7, update) for update in range(len(drawn))]
    assert len(sizes) == 1 or drawn != [size_of_update(sizes, 8, update) for update in range(len(drawn))]


@pytest.mark.slow
@pytest.mark.parametrize("views", DRAWN)
def test_workers_change_nothing_and_a_position_resumes(tmp_path, views):
    path = write_toy_set(tmp_path)
    plain, loader = batches(path, 4, **views)
    with_workers, _ = batches(path, 4, workers=2, **views)
    resumed, _ = batches(path, 2, position=4, update=2, **views)
    for a, b in zip(plain, with_workers, strict=True):
        assert torch.equal(a.views.images, b.views.images)
    for a, b in zip(plain[2:], resumed, strict=True):
        assert torch.equal(a.views.images, b.views.images) and a.scenes == b.scenes
    assert loader.position == 8


@pytest.mark.slow
def test_a_worker_names_the_bad_frame_in_one_line(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    for image in (tmp_path / "images" / "scene0").iterdir():
        image.unlink()
    with refused(re.compile(r"scene scene0, frame \d+")):
        batches(path, 1, workers=1)


def test_batches_split_into_inputs_and_targets(tmp_path):
    (batch,), _ = batches(write_toy_set(tmp_path), 1)
    assert batch.views.images.dtype == torch.uint8
    inputs, targets = batch.to(torch.device("cpu")).split()
    assert inputs.images.shape == (2, 2, 3, 16, 16) and targets.images.shape == (2, 6, 3, 16, 16)
    for scene in range(2):
        for i, view in enumerate(batch.targets[scene].tolist()):
            torch.testing.assert_close(targets.images[scene, i], batch.views.images[scene, view] / 255)
            assert torch.equal(targets.cameras.c2w[scene, i], batch.views.cameras.c2w[scene, view])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_covers_every_scene_once(tmp_path, world, size):
    paths = read_scene_list(write_toy_set(tmp_path, scenes=7))
    items = [(path, Selection([0, 9], [3, 5])) for path in paths]
    # One scene of another shape and one with more inputs travel in batches of their own.
    items[2] = (write_toy_scene(tmp_path, "wide", 10, size=(64, 32)), Selection([0, 9], [3, 5]))
    items[4] = (items[4][0], Selection([0, 9, 4], [3, 5]))
    dataset = EvaluationDataset(view_loader(square_crop=False), items)
    seen = []
    for rank in range(world):
        for batch in evaluation_batches(dataset, LoaderConfig(0, 2), size, rank, world):
            assert len(batch.scenes) <= size
            seen += zip(batch.scenes, batch.frames.tolist(), strict=True)
    expected = [(path.stem, s.context + s.target) for path, s in items]
    assert sorted(seen) == sorted(expected)


def test_another_number_of_inputs_takes_the_first_views(tmp_path):
    (batch,), _ = batches(write_toy_set(tmp_path), 1)
    batch = batch.to(torch.device("cpu"))
    inputs, targets = replace(batch, num_inputs=4).split()
    assert torch.equal(inputs.images, batch.views.images[:, :4])
    assert torch.equal(targets.images, batch.split()[1].images)


def test_collating_by_shape_keeps_the_order(tmp_path):
    path = write_toy_scene(tmp_path, "a", 12)
    dataset = EvaluationDataset(view_loader(), [(path, Selection([0, k], [3] * (1 + k % 2))) for k in range(4, 8)])
    groups = collate_by_shape([dataset[i] for i in range(4)])
    assert [group.frames[:, 1].tolist() for group in groups] == [[4, 6], [5, 7]]


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def all_frames(**fields):
    return lambda record: [frame.update(fields) for frame in record["frames"]]


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        (lambda r: r.pop("frames"), ["frames"]),
        (lambda r: r.update(frames=[]), ["frames"]),
        (lambda r: r.update(frames={"0": r["frames"][0]}), ["frames"]),
        (lambda r: r.update(frames=[1, None, []]), ["frame 0", "image_path"]),
        (lambda r: r.pop("scene_name"), ["scene_name", None]),
        (lambda r: r.update(scene_name=["a"]), ["scene_name", "list"]),
        (all_frames(w2c=None), ["frame 0", "w2c"]),
        (all_frames(image_path=7), ["frame 0", "image_path"]),
        (all_frames(image_path=None), ["preprocessing"]),
        (all_frames(fxfycxcy=[1e-9, 1, 2, 3]), ["frame 0", "fx is 1e-09"]),
    ],
)
def test_bad_metadata_is_named(tmp_path, change, culprits):
    path = write_toy_scene(tmp_path, "a", 3)
    edit(path, change)
    with refused(path, *culprits):
        read_scene(path)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '"text"'])
def test_what_is_no_scene_at_all_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with refused(path, "scene metadata"):
        read_scene(path)


MIRRORED = np.diag([1.0, 1, -1, 1]).tolist()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda f: f.pop("w2c"), "no w2c"),
        (lambda f: f.update(fxfycxcy=None), "no fxfycxcy"),
        (lambda f: f.update(fxfycxcy=[1, 2, 3]), "fxfycxcy"),
        (lambda f: f.update(fxfycxcy="wide"), "fxfycxcy"),
        (lambda f: f.update(fxfycxcy={"fx": 40}), "fxfycxcy"),
        (lambda f: f.update(w2c=[[1, 0], [0, 1]]), "w2c"),
        (lambda f: f.update(w2c=[[1, 0, 0, 0], [0]]), "w2c"),
        (lambda f: f.update(fxfycxcy=[0, 1, 2, 3]), "focal length"),
        (lambda f: f.update(w2c=[[0.0] * 4] * 4), "last row"),
        (lambda f: f.update(w2c=MIRRORED), "mirrored"),
        (lambda f: f.update(w2c=[[float("nan")] * 4] * 4), "finite"),
        (lambda f: f.update(fxfycxcy=[40, float("inf"), 24, 16]), "finite"),
        (lambda f: f.update(fxfycxcy=[0.8, 0.8, 0.5, 0.5]), "normalized"),
        (lambda f: f.update(image_path=["a.jpg"]), "image_path"),
        (lambda f: f.update(image_path=""), "image_path"),
        (lambda f: f.update(image_path="../images/a/.."), "image_path"),
        (lambda f: f.update(image_path="../images/a/\0.jpg"), "image_path"),
        (lambda f: f.update(image_path="../images/a/\ud800.jpg"), "image_path"),
    ],
)
def test_a_frame_that_cannot_be_used_keeps_its_place_and_has_a_reason(tmp_path, change, fault):
    path = write_toy_scene(tmp_path, "a", 3)
    edit(path, lambda record: change(record["frames"][1]))
    scene = read_scene(path)
    assert len(scene) == 3 and scene.fault(0) is None and scene.fault(2) is None
    check_names(scene.fault(1), fault)
    with refused("scene a, frame 1", fault, path):
        scene.image_path(1)
    check_names(scene.notes["faults"], "scene a, frame 1")
    assert np.isfinite(scene.w2c[[0, 2]]).all() and scene.w2c[2, 0, 3] == -0.2


def test_a_frame_without_image_and_camera_keeps_its_place(tmp_path):
    path = write_toy_scene(tmp_path, "a", 4)
    lost = {"image_path": None, "fxfycxcy": None, "w2c": None}
    edit(path, lambda record: record["frames"][2].update(lost))
    scene = read_scene(path)
    assert scene.image_paths[2] is None and np.isnan(scene.w2c[2]).all() and np.isnan(scene.fxfycxcy[2]).all()
    assert "lost in preprocessing" in scene.fault(2) and not scene.notes
    write_scene(scene)
    assert json.loads(path.read_text())["frames"][2] == lost
    assert len(read_cameras(path)[0]) == 3


def test_training_names_the_frames_that_it_leaves_out(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    edit(tmp_path / "metadata" / "scene0.json", lambda record: record["frames"][7].update(w2c=MIRRORED))
    samples = [TrainingDataset(view_loader(path), seed=0)[n] for n in range(8)]
    assert not any(7 in sample.frames for sample in samples)
    assert all("scene scene0, frame 7: its pose is mirrored" in sample.notes["faults"] for sample in samples)


def test_a_scene_with_too_few_good_cameras_is_named_in_training(tmp_path):
    path = write_toy_set(tmp_path, scenes=2)

    def mirror(record):
        for frame in record["frames"][1:13]:
            frame["w2c"] = MIRRORED

    edit(tmp_path / "metadata" / "scene0.json", mirror)
    samples = [TrainingDataset(view_loader(path), seed=0)[n] for n in range(8)]
    assert {sample.scenes[0] for sample in samples} == {"scene1"}
    failures = {failure for sample in samples for failure in sample.failures}
    assert failures and all("scene scene0, frame 1: its pose is mirrored" in failure for failure in failures)


def test_cameras_are_checked_with_the_size_of_the_image(tmp_path):
    path = write_toy_scene(tmp_path, "a", 14)
    edit(path, lambda record: record["frames"][3].update(fxfycxcy=[40, 40, 24, 33]))
    dataset = EvaluationDataset(view_loader(), [(path, Selection([0, 9], [3])), (path, Selection([0, 9], [4]))])
    assert dataset[0].scene == "a" and "frame 3, of 48x32 pixels: its principal point" in dataset[0].reason
    assert dataset[1].scenes == ["a"]


def test_lists_take_relative_and_absolute_paths(tmp_path):
    for name in "ab":
        scene = write_toy_scene(tmp_path / "set", name, 3)
    path = tmp_path / "set" / "full_list.txt"
    path.write_text(f"metadata/a.json\n{scene}\n\n")
    assert [read_scene(p).name for p in read_scene_list(path)] == ["a", "b"]
    path.write_text("\n")
    with refused(path, "preprocess_data.py"):
        read_scene_list(path)
    with refused(tmp_path / "no.txt", "preprocess_data.py", "training.dataset_path"):
        read_scene_list(tmp_path / "no.txt")


@pytest.mark.parametrize("first", ["sets/mine/metadata/b.json", "sets\\mine\\metadata\\b.json"])
def test_a_list_may_be_relative_to_the_working_directory(tmp_path, monkeypatch, caplog, first):
    scenes = [write_toy_scene(tmp_path / "sets" / "mine", name, 3) for name in "ab"]
    path = tmp_path / "sets" / "mine" / "full_list.txt"
    path.write_text(f"# all\n{first}\nsets/mine/metadata/a.json\nsets/mine/metadata/gone.json\n")
    monkeypatch.chdir(tmp_path)
    assert read_scene_list(Path("sets/mine/full_list.txt"))[:2] == [scenes[1], scenes[0]]
    assert [str(path.relative_to(tmp_path)) in record.getMessage() for record in caplog.records] == [True]
    path.write_text("metadata/b.json\nsets/mine/metadata/a.json\n")
    assert read_scene_list(path) == [scenes[1], path.parent / "sets/mine/metadata/a.json"]
    path.write_text("x" * 300 + "\n")
    assert read_scene_list(path) == [path.parent / ("x" * 300)]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffmetadata/a.json\nmetadata/b.json\n",
        "# my scenes\nmetadata/a.json\n\n  # and\nmetadata/b.json",
        "metadata/a.json\r\nmetadata/b.json\r\n",
        "metadata\\a.json\nmetadata\\b.json\n",
        "\t metadata/a.json  \n./metadata/../metadata/b.json\n",
    ],
    ids=["byte order mark", "comments", "Windows lines", "backslashes", "spaces and dots"],
)
def test_lists_as_people_and_editors_write_them(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content.encode())
    assert read_scene_list(path) == [tmp_path / "metadata" / "a.json", tmp_path / "metadata" / "b.json"]


@pytest.mark.parametrize("second", ["metadata/a.json", "./metadata/a.json", "metadata\\a.json", "{absolute}"])
def test_a_list_that_names_a_file_twice_is_refused(tmp_path, second):
    path = tmp_path / "list.txt"
    second = second.format(absolute=tmp_path / "metadata" / "a.json")
    path.write_text(f"metadata/a.json\nmetadata/b.json\n{second}\n")
    with refused(path, "a.json", "lines 1 and 3"):
        read_scene_list(path)


def test_a_list_is_a_regular_text_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0m")
    for name in ("pipe", "binary"):
        with refused(tmp_path / name):
            read_scene_list(tmp_path / name)


def test_two_files_of_one_scene_are_refused_where_an_index_names_it(tmp_path):
    files = [write_toy_scene(tmp_path / folder, "a", 3) for folder in ("one", "two")]
    with refused("scene a", *files):
        match_scenes({"a": Selection([0, 2], [1])}, files)
    other = write_toy_scene(tmp_path, "b", 3)
    assert match_scenes({"b": Selection([0, 2], [1])}, [*files, other])[1] == {}


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ('{"a": {"context": [0, 2], "target": [1]}, "a": null}', ["'a'", "twice"]),
        ('{"a": {"context": [0, 2], "context": [0, 3], "target": [1]}}', ["'context'", "twice"]),
        ('{"a": {"context": [0, 2], "target": [1, 3, 1]}}', ["'a'", "frame 1", "twice in target"]),
        ('{"a": {"context": [2, 2], "target": [1]}}', ["'a'", "frame 2", "twice in context"]),
        ('{"a": {"context": [3], "target": [3]}}', ["'a'", "frame 3", "only context frame"]),
        ('{"a": {"context": [3], "target": [1, 3]}}', ["'a'", "frame 3", "only context frame"]),
        ('{"a": {"context": [true, 2], "target": [1]}}', ["'a'", "context holds True"]),
        ('{"a": {"context": [0.0, 2], "target": [1]}}', ["'a'", "context holds 0.0"]),
        ('{"a": {"context": ["0", 2], "target": [1]}}', ["'a'", "context holds '0'"]),
        ('{"a": {"context": [0, 2], "target": [-1]}}', ["'a'", "target holds -1"]),
        ('{"a": {"context": [0, 2], "target": [1e400]}}', ["'a'", "target holds inf"]),
        ('{"a": {"context": [0, 2], "target": [NaN]}}', ["'a'", "target holds nan"]),
        ('{"a": {"context": [0, 2], "target": "1\\u2028"}}', ["'a'", r"target is '1\u2028'"]),
        ('{"a": {"context": [0, [2]], "target": [1]}}', ["'a'", "context holds list"]),
        ('{"a": {"context": [0, 2]}}', ["'a'", "target is None"]),
        ('{"a": {"context": [0, 2], "target": []}}', ["'a'", "target is empty"]),
        ('{"a": "b"}', ["'a'", "'b'"]),
        ('{"a": {"context": [0, 2], "target": [%s]}}' % ("9" * 400), ["400 digits"]),
        ('{"\\u001b[31m": {"context": [0, 2]}}', [r"'\x1b[31m'"]),
        ('{"a": %s}' % ("[" * 5000 + "]" * 5000), ["nested"]),
    ],
)
def test_an_index_that_cannot_be_meant_is_refused(tmp_path, text, culprits):
    path = tmp_path / "index.json"
    path.write_text(text)
    with refused(path, *culprits):
        read_evaluation_index(path)


def test_an_index_may_have_a_byte_order_mark_and_targets_that_are_inputs(tmp_path):
    path = tmp_path / "index.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": {"context": [0, 2], "target": [2, 1]}}')
    assert read_evaluation_index(path) == {"a": Selection([0, 2], [2, 1])}


def test_an_index_leaves_out_null_and_names_what_is_wrong(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"a": {"context": [0, 2], "target": [1]}, "b": None}))
    index = read_evaluation_index(path)
    assert index == {"a": Selection([0, 2], [1])}
    scene = write_toy_scene(tmp_path, "a", 3)
    assert match_scenes(index | {"c": index["a"]}, [scene]) == ([(scene, index["a"])], {"c": "not in the scene list"})
    path.write_text(json.dumps({"a": {"context": [0, 3], "target": [1]}}))
    found, missing = match_scenes(read_evaluation_index(path), [scene])
    assert not found
    check_names(missing["a"], "frame 3", "0 to 2", scene)
    for bad in ({"context": [0, -1], "target": [1]}, {"context": []}, 3, {"context": [0.5], "target": [1]}):
        path.write_text(json.dumps({"a": bad}))
        with refused(path, "scene 'a'", "context", "target"):
            read_evaluation_index(path)


def test_a_missing_index_says_where_to_get_it(tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(download, "urlopen", offline)
    path = tmp_path / "evaluation_index_re10k.json"
    with refused(path, "no network", evaluation_index.INDEX_URL):
        fetch_evaluation_index(path)
    with refused(tmp_path / "other.json", "inference.view_idx_file_path"):
        read_evaluation_index(tmp_path / "other.json")


def test_a_downloaded_index_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_receive", lambda _url, _limit: [b"{}"])
    with refused("SHA-256", evaluation_index.INDEX_URL):
        fetch_evaluation_index(tmp_path / "evaluation_index_re10k.json")
    assert not list(tmp_path.iterdir())


def test_lost_frames_are_named(tmp_path):
    path = write_toy_scene(tmp_path, "a", 3)
    record = read_json(path, "scene")
    record["frames"][1]["image_path"] = None
    path.write_text(json.dumps(record))
    with refused("scene a, frame 1", path, "preprocessing"):
        read_scene(path).image_path(1)


def lose(path, frames):
    record = read_json(path, "scene")
    for frame in frames:
        record["frames"][frame]["image_path"] = None
    path.write_text(json.dumps(record))


def test_training_draws_around_lost_frames(tmp_path):
    path = write_toy_set(tmp_path)
    scenes = read_scene_list(path)
    lose(scenes[0], [0, 7])
    lose(scenes[1], range(2, 14))
    dataset = TrainingDataset(view_loader(path), seed=0)
    samples = [dataset[n] for n in range(30)]
    assert {sample.scenes[0] for sample in samples} == {"scene0", "scene2"}
    assert not any({0, 7} & set(s.frames.tolist()) for s in samples if s.scenes == ["scene0"])


def test_scenes_with_lost_frames_count_as_missing(tmp_path):
    path = write_toy_scene(tmp_path, "a", 3)
    lose(path, [1])
    found, missing = match_scenes({"a": Selection([0, 2], [1])}, [path])
    assert not found
    check_names(missing["a"], "frame 1", "preprocessing")


@pytest.mark.parametrize("kind", ["missing", "cut", "nested", "surrogate", "pipe", "mirrored", "renamed", "outside"])
def test_every_way_in_which_metadata_are_unusable_counts_as_missing(tmp_path, kind):
    path = write_toy_scene(tmp_path / "set", "a", 3)
    good = write_toy_scene(tmp_path / "set", "b", 3)
    if kind in ("missing", "pipe"):
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "cut":
        path.write_text(path.read_text()[:100])
    if kind == "nested":
        path.write_text("[" * 5000)
    if kind == "surrogate":
        edit(path, lambda record: record["frames"][1].update(image_path="\ud800"))
    if kind == "mirrored":
        edit(path, lambda record: record["frames"][1].update(w2c=MIRRORED))
    if kind == "renamed":
        edit(path, lambda record: record.update(scene_name="c"))
    if kind == "outside":
        edit(path, lambda record: record["frames"][1].update(image_path="../../secret.png"))
    index = dict.fromkeys("ab", Selection([0, 2], [1]))
    found, missing = match_scenes(index, [path, good])
    assert found == [(good, index["b"])] and list(missing) == ["a"]
    check_names(missing["a"], path)


@pytest.mark.parametrize("name", ["../../escaped", "<b>", ""])
def test_scene_names_that_could_escape_are_refused(tmp_path, name):
    path = write_toy_scene(tmp_path, "a", 3)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"scene_name": name}))
    with refused(path, "scene_name", f"'{name}'"):
        read_scene(path)


def test_a_scene_under_another_name_is_refused(tmp_path):
    path = write_toy_scene(tmp_path, "a", 3)
    path.write_text(path.read_text().replace('"scene_name": "a"', '"scene_name": "b"'))
    check_names(match_scenes({"a": Selection([0, 2], [1])}, [path])[1]["a"], path, "scene_name is b")


def test_training_on_scenes_of_different_sizes_names_them(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    write_toy_scene(tmp_path, "wide", 14, size=(64, 32))
    path.write_text(path.read_text() + "metadata/wide.json\n")
    with refused("scene0 24x16", "wide 32x16", "training.square_crop=true"):
        dataset = TrainingDataset(view_loader(path, square_crop=False), seed=0)
        next(TrainingLoader(dataset, LoaderConfig(0, 2), 2, 0, 1, 0))


@pytest.mark.parametrize("context", [2, 3, 8])
def test_an_index_can_be_made_for_any_set(tmp_path, context):
    path = write_toy_set(tmp_path, frames=30)
    write_toy_scene(tmp_path, "short", 4)
    path.write_text(path.read_text() + "metadata/short.json\n")
    lose(tmp_path / "metadata" / "scene0.json", [3])
    arguments = ["--scenes", str(path), "--context", str(context), "--targets", "4"]
    arguments += ["--min_frame_dist", "14", "--max_frame_dist", "20"]
    for name in ("one", "two"):
        evaluation_index.main([*arguments, "--output", str(tmp_path / f"{name}.json")])
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert json.loads((tmp_path / "one.json").read_text())["short"] is None
    index = read_evaluation_index(tmp_path / "one.json")
    assert list(index) == ["scene0", "scene1", "scene2"]
    for selection in index.values():
        first, last = selection.context[0], selection.context[-1]
        assert len(set(selection.context)) == context and 14 <= last - first <= 20
        assert len(set(selection.target) - set(selection.context)) == 4
        assert all(first < frame < last for frame in selection.target)
    evaluation_index.main([*arguments, "--seed", "1", "--output", str(tmp_path / "other.json")])
    assert read_evaluation_index(tmp_path / "other.json") != index
    assert match_scenes(index, read_scene_list(path))[1] == {}


def test_indices_of_several_numbers_of_inputs_share_windows_and_targets(tmp_path):
    path = write_toy_set(tmp_path, frames=40)
    write_toy_scene(tmp_path, "short", 20)
    path.write_text(path.read_text() + "metadata/short.json\n")
    arguments = ["--scenes", str(path), "--output", str(tmp_path / "index.json"), "--targets", "3"]
    distances = ["--min_frame_dist", "8", "--max_frame_dist", "36"]
    evaluation_index.main([*arguments, *distances, "--context", "2", "4", "8", "16"])
    counts = (2, 4, 8, 16)
    found = [read_evaluation_index(tmp_path / f"index_{count}.json") for count in counts]
    assert [list(index) for index in found] == [["scene0", "scene1", "scene2"]] * 4
    for name in found[0]:
        assert [len(set(index[name].context)) for index in found] == list(counts)
        (first, last), *spread = (index[name].context for index in found)
        assert all(inputs == spread_over(first, last, len(inputs)) for inputs in spread)
        (targets,) = {tuple(index[name].target) for index in found}
        assert len(targets) == 3 and not set(targets) & {frame for index in found for frame in index[name].context}
    for given, culprit in (("1", 1), ("2 257", 257), ("2 4 2", 2)):
        with refused("--context", culprit):
            evaluation_index.main([*arguments, "--context", *given.split()])
    with refused("--max_frame_dist=36", "--context=2 32", "--targets=6"):
        evaluation_index.main([*arguments, *distances, "--context", "2", "32", "--targets", "6"])
    for folder in (str(tmp_path), "/", "."):
        with refused("--output", folder):
            evaluation_index.main([*arguments, "--context", "2", "4", "--output", folder])


@pytest.mark.parametrize("targets", [0, 5])
def test_an_index_of_objects_has_inputs_that_lie_apart_and_others_as_targets(tmp_path, targets):
    path = write_toy_set(tmp_path, frames=16)
    write_toy_scene(tmp_path, "short", 4)
    path.write_text(path.read_text() + "metadata/short.json\n")
    lose(tmp_path / "metadata" / "scene0.json", [3])
    (tmp_path / "images" / "scene1" / "00005.jpg").unlink()
    given = ["--scenes", str(path), "--any_order", "--context", "2", "4", "--targets", str(targets), "--output"]
    evaluation_index.main([*given, str(tmp_path / "index.json")])
    indices = {count: read_evaluation_index(tmp_path / f"index_{count}.json") for count in (2, 4)}
    for count, index in indices.items():
        assert list(index) == ["scene0", "scene1", "scene2"]
        for name, lost in (("scene0", {3}), ("scene1", {5}), ("scene2", set())):
            # The toy cameras slide along a line.
            assert index[name].context[0] == 0 and index[name].context[-1] == 15 and len(index[name].context) == count
            assert index[name].target == indices[2][name].target and len(set(index[name].target)) == len(
                index[name].target
            )
            others = set(range(16)) - lost - set(indices[4][name].context)
            assert set(index[name].target) == others if targets == 0 else set(index[name].target) < others
            assert not targets or len(index[name].target) == targets
    if targets:
        evaluation_index.main([*given, str(tmp_path / "other.json"), "--seed", "1"])
        assert (tmp_path / "index_4.json").read_text() != (tmp_path / "other_4.json").read_text()


def test_an_index_of_objects_says_what_they_lack(tmp_path):
    path = write_toy_set(tmp_path, frames=6)
    given = ["--scenes", str(path), "--any_order", "--output", str(tmp_path / "index.json")]
    with refused(path, "--context=4", "--targets=3"):
        evaluation_index.main([*given, "--context", "4"])
    with refused(path, "--min_frame_dist=25", "--any_order"):
        evaluation_index.main(["--scenes", str(path), "--output", str(tmp_path / "index.json")])
    with refused("--targets", "-1", "0"):
        evaluation_index.main([*given, "--context", "4", "--targets", "-1"])
    with refused("--targets", "0", "1"):
        evaluation_index.main(["--scenes", str(path), "--output", str(tmp_path / "index.json"), "--targets", "0"])


def make_an_index(path, output):
    distances = ["--targets", "2", "--min_frame_dist", "8", "--max_frame_dist", "13"]
    evaluation_index.main(["--scenes", str(path), "--output", str(output), *distances])
    return json.loads(output.read_text())


def test_damaged_scenes_are_null_in_an_index_and_named(tmp_path, caplog):
    path = write_toy_set(tmp_path, scenes=6)
    files = read_scene_list(path)
    files[0].write_text("[" * 5000)
    files[1].unlink()
    edit(files[2], lambda record: record.update(scene_name="other"))
    for image in (tmp_path / "images" / "scene3").iterdir():
        image.unlink()
    (tmp_path / "images" / "scene4" / "00005.jpg").unlink()
    os.mkfifo(tmp_path / "images" / "scene4" / "00005.jpg")
    edit(files[4], lambda record: record["frames"][4].update(image_path="../images/" + "x" * 300))
    with caplog.at_level(logging.INFO, "lvsm"):
        index = make_an_index(path, tmp_path / "index.json")
    assert [name for name, entry in index.items() if entry is None] == ["scene0", "scene1", "scene2", "scene3"]
    assert not {4, 5} & set(index["scene4"]["context"] + index["scene4"]["target"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5
    for line, file in zip(said[:3], files[:3], strict=True):
        check_names(line, file)
    check_names(said[3], re.compile(r"scene scene3, frame \d+"), f"{tmp_path}/images/scene3/")
    check_names(said[4], tmp_path / "index.json", "2 of 6 scenes")


def test_many_damaged_scenes_are_counted(tmp_path, caplog):
    path = write_toy_set(tmp_path, scenes=1)
    path.write_text(path.read_text() + "".join(f"metadata/no{n}.json\n" for n in range(30)))
    with caplog.at_level(logging.INFO, "lvsm"):
        make_an_index(path, tmp_path / "index.json")
    assert len(caplog.records) == 12
    check_names(caplog.records[10].getMessage(), "30 damaged scenes")


def test_an_index_of_damaged_scenes_alone_is_an_error(tmp_path):
    path = write_toy_set(tmp_path, scenes=2)
    for file in read_scene_list(path):
        file.write_text("{}")
    with refused(path, file.parent / "scene0.json"):
        make_an_index(path, tmp_path / "index.json")


@pytest.mark.parametrize("name", ["full_list.txt", "metadata/scene1.json", "images/scene1/00000.jpg", "images", "pipe"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_index_replaces_an_index_alone(tmp_path, name, linked):
    path, output = write_toy_set(tmp_path), tmp_path / name
    os.mkfifo(tmp_path / "pipe")
    before = output.lstat()
    if linked:
        output = tmp_path / "link"
        output.symlink_to(tmp_path / name)
    read_scene_list(path)[0].unlink()
    with refused("--output", output):
        make_an_index(path, output)
    assert os.path.samestat(before, (tmp_path / name).lstat()) and output.is_symlink() == linked
    for _ in range(2):
        assert make_an_index(path, tmp_path / "index.json")["scene0"] is None


def test_an_index_of_nothing_is_an_error(tmp_path):
    path = write_toy_set(tmp_path)
    with refused(path, "--min_frame_dist=25"):
        evaluation_index.main(["--scenes", str(path), "--output", str(tmp_path / "index.json")])
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("normalization", ["auto", *get_args(PoseNormalization)])
def test_what_sets_the_frame_and_scale_of_a_sample(normalization, tmp_path):
    path = write_toy_scene(tmp_path, "scene", 14)
    load = view_loader(pose_normalization=normalization)
    scene = read_scene(path)
    c2w = np.linalg.inv(scene.w2c)
    samples = [load(scene, Selection([2, 10], [4, other])) for other in (9, 13)]
    inputs = [sample.views.cameras.c2w[:2] for sample in samples]
    assert torch.equal(*inputs) == (normalization in ("input_views", "none"))
    frames = samples[0].frames.numpy()
    expected = {
        "input_views": lambda: pose_normalization(c2w[frames[:2]], 1.35),
        "median": lambda: median_normalization(c2w[frames], 1.35),
        "none": no_normalization,
    }.get(normalization, lambda: pose_normalization(c2w[frames], 1.35))()
    placed = torch.from_numpy(expected(c2w[frames])).float()
    assert torch.equal(samples[0].views.cameras.c2w, placed)
    if normalization == "none":
        assert torch.equal(placed, torch.from_numpy(c2w[frames]).float())
        halved = view_loader(pose_normalization="none", pose_scale=0.5)(scene, Selection([2, 10], [4]))
        assert torch.equal(halved.views.cameras.c2w[:3, :3, 3], placed[:3, :3, 3] / 2)

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import evaluation_index
from data.dataset import (
    DataConfig,
    EvaluationDataset,
    TrainingDataset,
    ViewLoader,
    check_image_config,
    check_view_config,
    collate_by_shape,
)
from data.evaluation_index import Selection, fetch_evaluation_index, match_scenes, read_evaluation_index
from data.loader import LoaderConfig, TrainingLoader, evaluation_batches
from data.scene import read_scene, read_scene_list
from data.views import ViewSelectorConfig, choose_targets, choose_window
from tests.helpers import write_toy_scene, write_toy_set
from utils import download
from utils.errors import InputError
from utils.files import read_json

SELECTOR = ViewSelectorConfig(8, 13)


def view_loader(path="", **changes):
    cfg = {"view_selector": SELECTOR, "dataset_path": str(path)} | changes
    return ViewLoader(DataConfig(**cfg), image_size=16, patch_size=4)


@given(st.integers(0, 2**32 - 1), st.integers(9, 60), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_a_window_has_its_ends_first_and_the_rest_between(seed, num_frames, num_views):
    cfg = ViewSelectorConfig(8, 20)
    frames = choose_window(num_frames, num_views, cfg, np.random.default_rng(seed))
    first, last, between = frames[0], frames[1], frames[2:]
    assert first >= 0 and last < num_frames
    assert 8 <= last - first <= min(20, num_frames - 1)
    assert len(set(between)) == num_views - 2
    assert all(first < frame < last for frame in between)


def test_every_distance_and_start_occurs():
    rng = np.random.default_rng(0)
    windows = [choose_window(12, 2, ViewSelectorConfig(8, 20), rng) for _ in range(3000)]
    distances = [int(b - a) for a, b in windows]
    counts = np.bincount(distances)[8:]
    assert len(counts) == 4 and counts.min() > 650
    assert {int(a) for a, b in windows if b - a == 8} == {0, 1, 2, 3}


def test_a_short_clip_has_no_window():
    assert choose_window(8, 2, ViewSelectorConfig(8, 20), np.random.default_rng(0)) is None
    assert choose_window(5, 6, ViewSelectorConfig(1, 20), np.random.default_rng(0)) is None


def test_targets_among_all_views_or_the_last_ones():
    rng = np.random.default_rng(0)
    drawn = [choose_targets(8, 6, True, rng) for _ in range(200)]
    assert all(len(set(t)) == 6 for t in drawn)
    assert {int(i) for t in drawn for i in t} == set(range(8))
    np.testing.assert_array_equal(choose_targets(5, 3, False, rng), [2, 3, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_views": 5}, "num_target_views is 6; num_views leaves 1 to 5"),
        ({"target_has_input": False, "num_target_views": 7}, "num_views leaves 1 to 6"),
        ({"num_input_views": 9}, "num_input_views"),
        ({"pose_normalization": "none"}, "pose_normalization is 'none'; known: all_views, input_views"),
        ({"view_selector": ViewSelectorConfig(9, 8)}, "view_selector"),
        ({"scene_scale_factor": 0.0}, "scene_scale_factor"),
    ],
)
def test_contradicting_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        check_image_config(DataConfig(**change))
        check_view_config(DataConfig(**change))


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


def test_a_sample_holds_the_frames_it_names(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    sample = TrainingDataset(view_loader(path), seed=0)[0]
    scene = read_scene(read_scene_list(path)[0])
    again = view_loader(path)(scene, sample.frames.numpy(), 2, sample.targets.numpy())
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


def test_no_scene_long_enough_is_an_error(tmp_path):
    path = write_toy_set(tmp_path, frames=5)
    with pytest.raises(InputError, match="none of the 3 scenes .* 9 whole frames .*min_frame_dist=8"):
        TrainingDataset(view_loader(path), seed=0)[0]


def batches(path, count, rank=0, world=1, batch=2, position=0, workers=0):
    dataset = TrainingDataset(view_loader(path), seed=0)
    loader = TrainingLoader(dataset, LoaderConfig(workers, 2), batch, rank, world, position)
    return [next(loader) for _ in range(count)], loader


def test_ranks_share_the_samples_of_one_process(tmp_path):
    path = write_toy_set(tmp_path)
    alone, loader = batches(path, 2, batch=4)
    ranks = [batches(path, 2, rank=r, world=2, batch=2)[0] for r in range(2)]
    for step in range(2):
        together = torch.cat([ranks[r][step].views.images for r in range(2)])
        assert torch.equal(together, alone[step].views.images)
    assert loader.position == 8


def test_workers_change_nothing_and_a_position_resumes(tmp_path):
    path = write_toy_set(tmp_path)
    plain, loader = batches(path, 4)
    with_workers, _ = batches(path, 4, workers=2)
    resumed, _ = batches(path, 2, position=4)
    for a, b in zip(plain, with_workers, strict=True):
        assert torch.equal(a.views.images, b.views.images)
    for a, b in zip(plain[2:], resumed, strict=True):
        assert torch.equal(a.views.images, b.views.images) and a.scenes == b.scenes
    assert loader.position == 8


def test_a_worker_names_the_bad_frame_in_one_line(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    for image in (tmp_path / "images" / "scene0").iterdir():
        image.unlink()
    with pytest.raises(InputError) as caught:
        batches(path, 1, workers=1)
    assert str(caught.value).startswith("scene scene0, frame ") and "\n" not in str(caught.value)


def test_batches_split_into_inputs_and_targets(tmp_path):
    (batch,), _ = batches(write_toy_set(tmp_path), 1)
    assert batch.views.images.dtype == torch.uint8
    inputs, targets = batch.to(torch.device("cpu")).split(2)
    assert inputs.images.shape == (2, 2, 3, 16, 16) and targets.images.shape == (2, 6, 3, 16, 16)
    for scene in range(2):
        for i, view in enumerate(batch.targets[scene].tolist()):
            torch.testing.assert_close(targets.images[scene, i], batch.views.images[scene, view] / 255)
            assert torch.equal(targets.cameras.c2w[scene, i], batch.views.cameras.c2w[scene, view])


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


def test_collating_by_shape_keeps_the_order(tmp_path):
    path = write_toy_scene(tmp_path, "a", 12)
    dataset = EvaluationDataset(view_loader(), [(path, Selection([0, k], [3] * (1 + k % 2))) for k in range(4, 8)])
    groups = collate_by_shape([dataset[i] for i in range(4)])
    assert [group.frames[:, 1].tolist() for group in groups] == [[4, 6], [5, 7]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("frames"), "KeyError: 'frames'"),
        (lambda r: r["frames"][1].pop("w2c"), "KeyError: 'w2c'"),
        (lambda r: r["frames"][1].update(fxfycxcy=[1, 2, 3]), "ValueError"),
        (lambda r: r["frames"][1].update(fxfycxcy=[0, 1, 2, 3]), "frame 1 has no usable camera"),
        (lambda r: r["frames"][1].update(w2c=[[0.0] * 4] * 4), "frame 1 has no usable camera"),
        (lambda r: r.update(frames=[]), "no frames|not scene metadata"),
    ],
)
def test_bad_metadata_is_named(tmp_path, change, message):
    path = write_toy_scene(tmp_path, "a", 3)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=message) as caught:
        read_scene(path)
    assert str(path) in str(caught.value)


def test_lists_take_relative_and_absolute_paths(tmp_path):
    scene = write_toy_scene(tmp_path / "set", "a", 3)
    path = tmp_path / "set" / "full_list.txt"
    path.write_text(f"metadata/a.json\n{scene}\n\n")
    assert [read_scene(p).name for p in read_scene_list(path)] == ["a", "a"]
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_scene_list(path)
    with pytest.raises(InputError, match=r"cannot read the scene list .*no\.txt .*preprocess_data.py"):
        read_scene_list(tmp_path / "no.txt")


def test_an_index_leaves_out_null_and_names_what_is_wrong(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"a": {"context": [0, 2], "target": [1]}, "b": None}))
    index = read_evaluation_index(path)
    assert index == {"a": Selection([0, 2], [1])}
    scene = write_toy_scene(tmp_path, "a", 3)
    assert match_scenes(index | {"c": index["a"]}, [scene]) == ([(scene, index["a"])], {"c": "not in the scene list"})
    path.write_text(json.dumps({"a": {"context": [0, 3], "target": [1]}}))
    with pytest.raises(InputError, match="scene a has frames 0 to 2, not 3"):
        match_scenes(read_evaluation_index(path), [scene])
    for bad in ({"context": [0, -1], "target": [1]}, {"context": []}, 3, {"context": [0.5], "target": [1]}):
        path.write_text(json.dumps({"a": bad}))
        with pytest.raises(InputError, match="scene a: context and target"):
            read_evaluation_index(path)


def test_a_missing_index_says_where_to_get_it(tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(download, "urlopen", offline)
    path = tmp_path / "evaluation_index_re10k.json"
    with pytest.raises(InputError, match=r"cannot be fetched \(no network\): get https://raw.* and put it there"):
        fetch_evaluation_index(path)
    with pytest.raises(InputError, match="evaluation index .* not found"):
        read_evaluation_index(tmp_path / "other.json")


def test_a_downloaded_index_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_receive", lambda _url, _limit: [b"{}"])
    with pytest.raises(InputError, match="SHA-256"):
        fetch_evaluation_index(tmp_path / "evaluation_index_re10k.json")
    assert not list(tmp_path.iterdir())


def test_lost_frames_are_named(tmp_path):
    path = write_toy_scene(tmp_path, "a", 3)
    record = read_json(path, "scene")
    record["frames"][1]["image_path"] = None
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="scene a: the image of frame 1 was lost in preprocessing"):
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
    assert match_scenes({"a": Selection([0, 2], [1])}, [path]) == ([], {"a": "frame 1 was lost in preprocessing"})


@pytest.mark.parametrize("name", ["../../escaped", "<b>", ""])
def test_scene_names_that_could_escape_are_refused(tmp_path, name):
    path = write_toy_scene(tmp_path, "a", 3)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"scene_name": name}))
    with pytest.raises(InputError, match="scene_name: .* is not a plain name"):
        read_scene(path)


def test_a_scene_under_another_name_is_refused(tmp_path):
    path = write_toy_scene(tmp_path, "a", 3)
    path.write_text(path.read_text().replace('"scene_name": "a"', '"scene_name": "b"'))
    with pytest.raises(InputError, match="scene_name is b, not the file's name"):
        match_scenes({"a": Selection([0, 2], [1])}, [path])


def test_training_on_scenes_of_different_sizes_names_them(tmp_path):
    path = write_toy_set(tmp_path, scenes=1)
    write_toy_scene(tmp_path, "wide", 14, size=(64, 32))
    path.write_text(path.read_text() + "metadata/wide.json\n")
    with pytest.raises(InputError, match=r"different sizes .*(scene0 24x16|wide 32x16).*square_crop=true"):
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


def test_an_index_of_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="none of the 3 scenes .* is long enough"):
        evaluation_index.main(["--scenes", str(write_toy_set(tmp_path)), "--output", str(tmp_path / "index.json")])
    assert not (tmp_path / "index.json").exists()

"""Videos: what is written, of which cameras, and that no more than a few frames are in memory."""

import json
import re
import shutil
from typing import get_args

import numpy as np
import pytest
import torch

import inference
from data.dataset import DataConfig, EvaluationDataset, ViewLoader
from data.scene import read_cameras, read_scene
from data.views import Selection
from evaluation.renderer import Renderer
from geometry.normalization import PoseNormalization
from tests.helpers import random_cameras, random_views, small_model, write_toy_scene
from tests.messages import refused
from tests.runs import evaluation_command as command
from tests.runs import read_video, save_model
from utils.errors import InputError
from utils.media import to_uint8, write_video
from utils.precision import PrecisionConfig
from utils.text import shown

KINDS = {"interpolate": 2 * 6, "spiral": 2 * 6, "wobble": 2 * 6, "through": 6}


def video_options(**options):
    return ["inference.render_video=true", *(f"inference.render_video_config.{k}={v}" for k, v in options.items())]


def test_every_path_gives_a_video_that_plays_anywhere(place):
    save_model(place)
    for kind, frames in KINDS.items():
        saved = {"cameras_path": place / "scenes" / "metadata"} if kind == "through" else {}
        options = video_options(traj_type=kind, num_frames=6, fps=24, **saved)
        inference.main(command(place, *options, out=kind))
        path = place / kind / "scene1" / "rendered_video.mp4"
        shown, properties = read_video(path)
        assert len(shown) == frames and properties == ("h264", "yuv420p", 24, 16, 16)
        assert len({frame.tobytes() for frame in shown}) > 1
        data = path.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")
    provenance = json.loads((place / "through" / "results.json").read_text())["provenance"]
    assert len(provenance["cameras_sha256"]) == 64
    assert (place / "spiral" / "scene1" / "rendered_video.mp4").read_bytes() != data


def test_odd_sizes_become_even_and_no_frame_is_lost(tmp_path):
    rng = np.random.default_rng(0)
    chunks = (np.full((count, 15, 17, 3), rng.integers(255), np.uint8) for count in (3, 8, 1))
    write_video(tmp_path / "video.mp4", chunks, fps=50)
    frames, properties = read_video(tmp_path / "video.mp4")
    assert len(frames) == 12 and properties == ("h264", "yuv420p", 50, 18, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path):
    def chunks():
        yield np.zeros((2, 16, 16, 3), np.uint8)
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_video(tmp_path / "video.mp4", chunks())
    assert list(tmp_path.iterdir()) == []


def test_long_paths_are_rendered_a_few_frames_at_a_time(monkeypatch):
    monkeypatch.setattr("evaluation.renderer._TARGETS_AT_ONCE", 8)
    renderer = Renderer(small_model("encoder_decoder"), PrecisionConfig(use_amp=False), torch.device("cpu"))
    encoded, path = renderer.encode(random_views(1, 2)), random_cameras(1, 21, seed=1)
    rendered, render = [], Renderer.render
    monkeypatch.setattr(Renderer, "render", lambda *args: rendered.append(1) or render(*args))
    chunks = []
    for number, chunk in enumerate(renderer.stream(encoded, path), 1):
        assert len(rendered) == number
        chunks.append(chunk)
    assert [chunk.shape[1] for chunk in chunks] == [8, 8, 5]
    torch.testing.assert_close(torch.cat(chunks, dim=1), render(renderer, encoded, path))
    # A film hands out a chunk once the next one is ordered.
    rendered.clear()
    ordered, frames = [], []
    for chunk in renderer.film(encoded, path):
        ordered.append(len(rendered))
        frames.append(chunk)
    assert ordered == [2, 3, 3]
    np.testing.assert_array_equal(np.concatenate(frames), to_uint8(torch.cat(chunks, dim=1)[0]))
    assert not list(renderer.film(encoded, path[:, :0]))


@pytest.mark.parametrize("normalization", get_args(PoseNormalization))
@pytest.mark.parametrize("square", [True, False])
def test_saved_cameras_join_the_sample_as_its_own_do(normalization, square, tmp_path):
    """A scene's own metadata is a list of cameras; its frames are then where the sample has them."""
    path = write_toy_scene(tmp_path, "scene", 10)
    cfg = DataConfig(pose_normalization=normalization, square_crop=square)
    sample = EvaluationDataset(ViewLoader(cfg, 16, 8), [(path, Selection([1, 8], [3, 0]))])[0]
    w2c, fxfycxcy = read_cameras(path)
    placed = sample.camera_transforms[0](w2c, fxfycxcy)
    torch.testing.assert_close(placed.c2w[sample.frames], sample.views.cameras.c2w)
    torch.testing.assert_close(placed.fxfycxcy[sample.frames], sample.views.cameras.fxfycxcy)
    assert placed.shape == (len(read_scene(path)),)
    assert (placed.height, placed.width) == sample.views.images.shape[-2:]


def saved(*changes):
    good = {"w2c": np.eye(4).tolist(), "fxfycxcy": [40, 40, 24, 16]}
    return json.dumps({"frames": [good | change for change in changes]})


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (None, ["not found"]),
        ("[", []),
        ('{"frames": []}', ["no frames"]),
        ('{"cameras": []}', ["no frames"]),
        ('{"frames": [{"w2c": [1], "fxfycxcy": [1, 1, 0, 0]}]}', ["frame 0", "w2c"]),
        (
            json.dumps({"frames": [{"w2c": np.zeros((4, 4)).tolist(), "fxfycxcy": [1, 1, 0, 0]}]}),
            ["frame 0", "last row", "pose"],
        ),
        (saved({}, {"w2c": np.diag([1.0, 1, -1, 1]).tolist()}), ["frame 1", "pose is mirrored"]),
        (saved({}, {}, {"w2c": np.diag([2.0, 2, 2, 1]).tolist()}), ["frame 2", "pose scales"]),
        (saved({"fxfycxcy": [0.9, 0.9, 0.5, 0.5]}), ["frame 0", "principal point"]),
        (saved({"w2c": None}), ["frame 0", "no w2c"]),
        (saved({"w2c": None, "fxfycxcy": None}), ["none of its frames"]),
    ],
)
def test_bad_lists_of_cameras_are_named_before_anything_is_written(content, culprits, place):
    save_model(place)
    path = place / "cameras.json"
    if content is not None:
        path.write_text(content)
    with refused(path, *culprits):
        inference.main(command(place, *video_options(traj_type="through", cameras_path=path)))
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("fxfycxcy", "fault"),
    [
        ([40, 40, 60, 16], "principal point"),
        ([40, 40, 24, 40], "principal point"),
        ([5, 5, 2, 2], "field of view"),
        ([4000, 4000, 24, 16], "field of view"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_saved_cameras_are_checked_with_the_size_of_the_images(place, fxfycxcy, fault, folder):
    save_model(place)
    path = place / "paths"
    path.mkdir()
    for name in ("scene0", "scene1", "scene2"):
        (path / f"{name}.json").write_text(saved({}, {}))
    (path / "scene1.json").write_text(saved({}, {"fxfycxcy": fxfycxcy}))
    path = path if folder else path / "scene1.json"
    with refused(re.compile("/scene1.json"), "frame 1", fault, "48x32 pixels"):
        inference.main(command(place, *video_options(traj_type="through", cameras_path=path)))
    assert not (place / "out").exists()


def test_a_scene_whose_image_cannot_be_read_does_not_stop_the_check_of_its_cameras(place):
    save_model(place)
    (place / "scenes" / "images" / "scene0" / "00000.jpg").write_bytes(b"no image")
    path = place / "cameras.json"
    path.write_text(saved({}, {"fxfycxcy": [40, 40, 60, 16]}))
    options = video_options(traj_type="through", cameras_path=path, num_frames=2)
    with refused(path, "frame 1", "48x32 pixels"):
        inference.main(command(place, "inference.allow_missing=true", *options))
    path.write_text(saved({}, {}))
    inference.main(command(place, "inference.allow_missing=true", *options))
    assert not (place / "out" / "scene0").exists() and (place / "out" / "scene1" / "rendered_video.mp4").exists()


@pytest.mark.parametrize("name", ["scene2", "b\n\u2028", ["scene1"]])
def test_saved_cameras_of_another_scene_are_refused(place, name):
    save_model(place)
    shutil.copytree(place / "scenes" / "metadata", place / "paths")
    record = json.loads((place / "paths" / "scene1.json").read_text())
    (place / "paths" / "scene1.json").write_text(json.dumps(record | {"scene_name": name}))
    with refused(place / "paths" / "scene1.json", "scene_name", shown(name), "scene1"):
        inference.main(command(place, *video_options(traj_type="through", cameras_path=place / "paths")))
    assert not (place / "out").exists()


def test_a_scene_without_saved_cameras_is_named(place):
    save_model(place)
    (place / "paths").mkdir()
    with refused("list of cameras", place / "paths" / "scene0.json"):
        inference.main(command(place, *video_options(traj_type="through", cameras_path=place / "paths")))


def test_other_saved_cameras_are_another_run(place):
    save_model(place)
    path, record = place / "cameras.json", json.loads((place / "scenes" / "metadata" / "scene0.json").read_text())
    options = video_options(traj_type="through", cameras_path=path, num_frames=4)
    videos = []
    for frames in (record["frames"], record["frames"][:3]):
        path.write_text(json.dumps({"frames": frames}))
        inference.main(command(place, *options))
        videos.append((place / "out" / "scene0" / "rendered_video.mp4").read_bytes())
    assert videos[0] != videos[1]

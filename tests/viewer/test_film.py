"""The film of a path that was laid in the viewer is the one that inference.py renders from the saved file."""

import json

import numpy as np
import pytest
import torch

import inference
from data.dataset import ViewLoader
from data.scene import read_cameras, read_scene_list
from geometry.paths import spline_path
from setup import load_config, load_renderer
from tests.messages import refused
from tests.runs import evaluation_command, keep_frames, save_model
from utils.distributed import process_group
from viewer.paths import film_frames, join, model_cameras, parse_path, stored_camera, write_path
from viewer.session import Sessions


@pytest.fixture
def normalization():
    """What no part of a film's cameras may hang on."""
    return "input_views"


@pytest.fixture
def opened(place, normalization):
    """Sessions on the toy scenes, as view.py builds them, and the first one."""
    save_model(place, "prefix")
    same_frame = f"training.pose_normalization={normalization}"
    config, _ = load_config(evaluation_command(place, same_frame, variant="prefix"))
    with process_group() as process:
        renderer, _, config = load_renderer(config, process)
    sizes = config.model.image_tokenizer
    sessions = Sessions(renderer, ViewLoader(config.training.data, sizes.image_size, sizes.patch_size))
    return sessions, sessions.open(read_scene_list(place / "scenes" / "full_list.txt")[0], [0, 12])


def keyframes(session, *frames):
    return [stored_camera(session, session.camera_of(frame)) for frame in frames]


@pytest.mark.parametrize("normalization", ["input_views", "none"])
def test_the_film_is_that_of_inference(place, opened, normalization, monkeypatch):
    sessions, session = opened
    file = write_path(place / "paths", session, keyframes(session, 0, 7, 3), 11)
    frames, count = film_frames(sessions.renderer, session, file)
    ours = np.concatenate(list(frames))
    videos = keep_frames(monkeypatch)
    (place / "index.json").write_text(json.dumps({"scene0": {"context": [0, 12], "target": [4]}}))
    options = {"traj_type": "through", "num_frames": 11, "loop_video": "false", "fps": 24, "cameras_path": file}
    video = [f"inference.render_video_config.{key}={value}" for key, value in options.items()]
    same_frame = f"training.pose_normalization={normalization}"
    command = evaluation_command(place, "inference.render_video=true", same_frame, *video, variant="prefix")
    inference.main(command)
    (theirs,) = videos.values()
    assert count == len(ours) == 11 and np.array_equal(ours, theirs)


def test_a_smooth_path_goes_through_its_keyframes_and_is_one_itself(opened):
    _, session = opened
    laid = join(keyframes(session, 0, 9, 4, 4))
    path = spline_path(laid, 31)
    torch.testing.assert_close(path[::10].c2w, laid.c2w)
    torch.testing.assert_close(path[::10].fxfycxcy, laid.fxfycxcy)
    again = spline_path(path, 31)
    torch.testing.assert_close(again.c2w, path.c2w)
    steps = path.c2w[1:, :3, 3] - path.c2w[:-1, :3, 3]
    # No jump in speed where the legs meet.
    assert (steps[1:] - steps[:-1]).norm(dim=1).max() < 0.1 * steps.norm(dim=1).max() + 0.02
    alone = spline_path(laid[:1], 5)
    assert alone.shape == (5,) and torch.equal(alone.c2w[4], laid.c2w[0])


def test_a_saved_path_is_loaded_again(place, opened):
    _, session = opened
    laid = keyframes(session, 0, 7, 3)
    file = write_path(place / "paths", session, laid, 3)
    w2c, fxfycxcy = read_cameras(file, (48, 32))
    loaded = parse_path(file.read_bytes(), session)
    assert len(loaded) == len(w2c) == len(fxfycxcy) == 3
    for before, after in zip(laid, loaded, strict=True):
        torch.testing.assert_close(before.c2w, after.c2w)
    back = model_cameras(session, join(loaded))
    torch.testing.assert_close(back.c2w[1], session.camera_of(7).c2w, atol=1e-5, rtol=0)
    # Any scene's metadata is a list of cameras.
    assert len(parse_path((place / "scenes" / "metadata" / "scene0.json").read_bytes(), session)) == 14


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        (b"", ["uploaded.json"]),
        (b"[]", ["uploaded.json"]),
        (b"\xff\xfe", ["uploaded.json"]),
        (b'{"frames": []}', ["uploaded.json", "frames"]),
        (b"[" * 100_000, ["uploaded.json"]),
        (b" " * (17 << 20), ["17,825,792"]),
    ],
    ids=["empty", "list", "bytes", "none", "nested", "large"],
)
def test_what_a_client_uploads_is_checked(opened, content, culprits):
    with refused(*culprits):
        parse_path(content, opened[1])


def test_cameras_of_another_scene_are_refused(place, opened):
    content = (place / "scenes" / "metadata" / "scene1.json").read_bytes()
    with refused("scene0"):
        parse_path(content, opened[1])
    changed = json.loads((place / "scenes" / "metadata" / "scene0.json").read_text())
    changed["frames"][3]["w2c"][0][0] = "inf"
    with refused("uploaded.json", "frame 3"):
        parse_path(json.dumps(changed).encode(), opened[1])

"""Encoded scenes: renders are the evaluation's, inputs are checked, smaller pictures only where they are good."""

from typing import get_args

import numpy as np
import pytest
import torch

from data.dataset import Batch, DataConfig, ViewLoader
from data.scene import read_scene
from data.transforms import BACKGROUNDS, plan_crop, read_image, to_planes
from data.views import Selection
from evaluation.renderer import Renderer
from evaluation.scoring import render_batch
from geometry.cameras import Cameras
from geometry.normalization import PoseNormalization
from tests.helpers import MODELS, random_views, small_model, write_toy_object, write_toy_scene
from tests.messages import refused
from utils.media import to_uint8
from utils.precision import PrecisionConfig
from viewer import session as module
from viewer.geometry import WORLD_SCALE, turning_point, up_direction
from viewer.session import Sessions, chosen_inputs, default_inputs, find_preview, inputs_between, parse_frames, recorded


def sessions(model="decoder_only", image_size=16, **data):
    renderer = Renderer(small_model(model), PrecisionConfig(use_amp=False), torch.device("cpu"))
    return Sessions(renderer, ViewLoader(DataConfig(**data), image_size, 4))


@pytest.fixture
def path(tmp_path):
    return write_toy_scene(tmp_path, "scene", 14)


CASES = [*((model, "input_views", 16) for model in MODELS), ("decoder_only", "none", 16)]


@pytest.mark.parametrize(("model", "normalization", "size"), [*CASES, ("prefix+prope", "input_views", [16, 32])])
def test_a_render_at_a_frame_is_the_evaluations(path, model, normalization, size):
    opened = sessions(model, size, pose_normalization=normalization)
    session = opened.open(path, [0, 12])
    batch = opened.load(read_scene(path), Selection([0, 12], [0, 5, 12]))
    batch = Batch(batch.views[None], 2, batch.targets[None], batch.scenes, batch.frames[None], batch.camera_transforms)
    expected = render_batch(opened.renderer, {}, batch)
    for number, frame in enumerate([0, 5, 12]):
        truth = opened.truth(session, frame)
        render = session.render(truth.cameras)
        difference = render.astype(int) - to_uint8(expected.renders[0, number])
        assert np.abs(difference).max() <= 1
        assert torch.equal(truth.to_float().images, expected.targets.images[0, number])
    assert len({session.render(opened.truth(session, frame).cameras).tobytes() for frame in (0, 5)}) == 2


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_scene_with_alpha_stands_on_the_background(tmp_path, background):
    path = write_toy_scene(tmp_path, "object", 14, alpha=True)
    opened = sessions(background=background)
    session = opened.open(path, [0, 12])
    seen = [*session.views.images, opened.truth(session, 5).images]
    for frame, pixels in zip((0, 12, 5), seen, strict=True):
        image = read_image(read_scene(path).image_path(frame), "frame", background=BACKGROUNDS[background])
        expected = plan_crop(*image.size, 16, 4, True).image(image)
        assert np.array_equal(pixels, to_planes(expected))


def test_frames_alone_set_the_frame_whatever_is_looked_at(path):
    """The published normalisation is by all views of a sample; here the inputs are all there are."""
    opened = sessions(pose_normalization="all_views")
    session = opened.open(path, [0, 12])
    again = sessions(pose_normalization="input_views").open(path, [0, 12])
    assert torch.equal(session.views.cameras.c2w, again.views.cameras.c2w)


def test_scenes_are_encoded_once_and_the_oldest_is_forgotten(path):
    opened = sessions()
    told = []
    first = opened.open(path, [0, 12], lambda share, what: told.append(share))
    assert told[0] > 0 and told == sorted(told) and told[-1] == 1
    assert opened.open(path, [0, 12]) is first
    for last in (9, 10):
        opened.open(path, [0, last])
    assert opened.open(path, [0, 12]) is first
    opened.open(path, [0, 11])
    opened.open(path, [0, 13])
    opened.open(path, [1, 13])
    assert opened.open(path, [0, 12]) is not first


@pytest.mark.parametrize("normalization", get_args(PoseNormalization))
@pytest.mark.parametrize(("size", "cut"), [(16, True), (16, False), ([16, 32], True)])
def test_cameras_go_to_the_scenes_file_and_back(path, size, cut, normalization):
    session = sessions(image_size=size, square_crop=cut, pose_normalization=normalization).open(path, [0, 12])
    for frame in range(14):
        w2c, fxfycxcy = session.transform.inverse(session.camera_of(frame)[None])
        np.testing.assert_allclose(w2c[0], session.scene.w2c[frame], atol=1e-5)
        np.testing.assert_allclose(fxfycxcy[0], session.scene.fxfycxcy[frame], atol=1e-4)


def test_inputs_are_spread_over_what_can_be_used(path):
    scene = read_scene(path)
    (path.parent.parent / "images" / "scene" / "00013.jpg").unlink()
    scene.image_paths[5] = None
    assert inputs_between(scene, 3, 0, 12) == (0, 6, 12)
    assert inputs_between(scene, 1, 4, 13) == (4,)
    assert inputs_between(scene, 99, 4, 6) == (4, 6)
    for inputs in (2, [1, 2]):
        assert default_inputs(scene, DataConfig(num_input_views=inputs)) == (0, 13)
    scene.w2c[12] = scene.w2c[0]
    assert inputs_between(scene, 2, 0, 12) == (0, 12)
    scene.image_paths[:] = [None] * 14
    with refused("scene scene", 0, 13):
        inputs_between(scene, 3, 0, 13)


@pytest.mark.parametrize(
    ("frames", "culprits"),
    [([0, 14], ["scene scene", "frame 14"]), ([3, 3], ["frame 3", "twice"]), (list(range(33)), [33, 32])],
)
def test_inputs_that_cannot_be_are_named(path, frames, culprits):
    with refused(*culprits):
        chosen_inputs(read_scene(path), frames)


def test_a_frame_of_another_size_is_no_truth(path):
    opened = sessions(square_crop=False)
    session = opened.open(path, [0, 12])
    write_toy_scene(path.parent.parent, "scene", 5, (32, 32))
    with refused("scene scene", "frame 3"):
        opened.truth(session, 3)


@pytest.mark.parametrize("text", ["", "a", "1;2", "-1", "1.5", "²", "9" * 30, "../../etc", "0 1\x1b[2J"])
def test_what_is_no_list_of_frames_is_refused(text):
    with refused("frames"):
        parse_frames(text)


def test_frames_are_read_as_people_write_them():
    for text in ("0, 15, 30", "0 15 30", "[0,15,30]", " 0,15 ,30, "):
        assert parse_frames(text) == [0, 15, 30]


@pytest.mark.parametrize(
    ("shade", "slow", "expected"), [(0.51, True, (8, 8, 3)), (0.9, True, None), (0.51, False, None)]
)
def test_smaller_pictures_where_they_are_like_the_full_one_and_of_use(shade, slow, expected, monkeypatch):
    def record(_renderer, _encoded, targets):
        """Paints grey, of another shade at half the size."""
        level = 0.5 if targets.height == 16 else shade
        return lambda cameras: torch.full((1, 1, 3, cameras.height, cameras.width), level)

    monkeypatch.setattr(module, "_SLOW", 0.0 if slow else 1e9)
    monkeypatch.setattr(Renderer, "record", record)
    views = random_views(1, 2, height=16, width=16)
    renderer = Renderer(small_model("prefix"), PrecisionConfig(use_amp=False), torch.device("cpu"))
    encoded = renderer.encode(views)
    lens = views.cameras[0, 0]
    preview = find_preview(renderer, encoded, lens, recorded(renderer, encoded, lens))
    assert (preview and preview(lens).shape) == expected


def test_the_smaller_picture_is_of_the_same_view(monkeypatch):
    """A real model paints any number of tokens: what it is asked for is the same camera with larger pixels."""
    monkeypatch.setattr(module, "_SLOW", 0.0)
    monkeypatch.setattr(module, "_LIKE", 0.0)
    views = random_views(1, 2, height=16, width=16)
    renderer = Renderer(small_model("prefix+prope"), PrecisionConfig(use_amp=False), torch.device("cpu"))
    encoded = renderer.encode(views)
    lens = views.cameras[0, 0]
    preview = find_preview(renderer, encoded, lens, recorded(renderer, encoded, lens))
    half = Cameras(lens.c2w, lens.fxfycxcy / 2, 8, 8)
    expected = to_uint8(renderer.render(encoded, half[None, None]))[0, 0]
    assert np.array_equal(preview(lens), expected)


@pytest.mark.parametrize("normalization", ["none", "input_views"])
def test_cameras_around_an_object_turn_about_it(tmp_path, normalization):
    """Whatever the frame of the model is, the middle and the way up are those of the scene's file."""
    session = sessions(pose_normalization=normalization).open(write_toy_object(tmp_path, "object", 12), [0, 4, 8])
    frame = session.transform.normalization
    middle = np.array([*(frame.to_frame @ [0, 0, 0, 1])[:3] / frame.scale])
    np.testing.assert_allclose(session.orbit.centre, middle, atol=1e-5)
    np.testing.assert_allclose(up_direction(session.orbit), frame.to_frame[:3, 2], atol=1e-5)
    for number in (0, 5):
        pose = session.camera_of(number).c2w.double().numpy()
        np.testing.assert_allclose(turning_point(pose, session.orbit), middle * WORLD_SCALE, atol=1e-4)
    pose[:3, :3] = pose[:3, :3] @ np.diag([-1, 1, -1])
    ahead = turning_point(pose, session.orbit) - pose[:3, 3] * WORLD_SCALE
    np.testing.assert_allclose(ahead, 3 * pose[:3, 2])


def test_cameras_of_a_room_turn_about_what_is_ahead(path):
    session = sessions().open(path, [0, 12])
    assert session.orbit is None
    pose = session.lens.c2w.double().numpy()
    np.testing.assert_allclose(turning_point(pose, None), WORLD_SCALE * pose[:3, 3] + 3 * pose[:3, 2])
    assert up_direction(None).tolist() == [0, -1, 0]


def test_inputs_with_alpha_stand_on_the_background(tmp_path):
    """The pictures that stand in the scene are those that the model sees."""
    object_path = write_toy_object(tmp_path, "object", 4)
    on_black = sessions(background="black", image_size=32).open(object_path, [0, 1]).views.images
    on_white = sessions(image_size=32).open(object_path, [0, 1]).views.images
    assert (on_white[..., 0, 0] == 255).all() and (on_black[..., 0, 0] == 0).all()
    assert torch.equal(on_white[..., 16, 16], on_black[..., 16, 16])

"""The procedural rooms: the ray caster against plain geometry, the paths, and the files that are written."""

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.synthetic import (
    ClipSpec,
    Pinhole,
    SetConfig,
    cast,
    make_clip,
    make_path,
    make_scene,
    render,
    to_pixels,
    write_re10k,
)
from data.synthetic.__main__ import main
from data.synthetic.path import FURNITURE_CLEARANCE, WALL_CLEARANCE
from data.synthetic.rendering import Faces, texture_levels
from data.synthetic.room import Room, floor_distance
from tests.messages import check_names, refused

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 128, 72
TINY = SetConfig(train_scenes=2, test_scenes=1, frames=6, width=32, height=24, seed=5)


@pytest.fixture(scope="module")
def room() -> Room:
    return make_scene(3, texel=0.02)


@pytest.fixture(scope="module")
def path(room: Room) -> tuple[np.ndarray, np.ndarray]:
    c2w, intrinsics = make_path(room, 4, 60)
    return c2w, to_pixels(intrinsics, WIDTH, HEIGHT)


def plain_hit(faces: Faces, c2w: np.ndarray, fxfycxcy: np.ndarray, x: int, y: int) -> tuple[int, float]:
    """The nearest face along one ray and its depth: depth * ray - s * u - t * v = origin, solved for every face."""
    fx, fy, cx, cy = fxfycxcy
    ray = c2w[:3, :3] @ np.array([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1.0])
    matrices = np.stack([np.broadcast_to(ray, faces.edge_u.shape), -faces.edge_u, -faces.edge_v], axis=2)
    depth, s, t = np.linalg.solve(matrices, (faces.origin - c2w[:3, 3])[..., None])[..., 0].T
    from_front = np.linalg.det(matrices) > 0
    hit = from_front & (depth > 0) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    depth = np.where(hit, depth, np.inf)
    return int(depth.argmin()), float(depth.min())


def look(yaw: float, pitch: float, position: list[float]) -> np.ndarray:
    """A camera that does not roll."""
    c2w = np.eye(4)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    c2w[:3, :3] = turn @ tilt
    c2w[:3, 3] = position
    return c2w


def test_cast_agrees_with_plain_intersection(room: Room, path: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    c2w, fxfycxcy = path
    fxfycxcy = fxfycxcy + np.array([0.0, 7.0, 3.3, -2.1])  # fx, fy differ and the centre is off
    for pose in (c2w[0], c2w[-1]):
        face, depth = cast(room.faces, Pinhole(pose, fxfycxcy, WIDTH, HEIGHT))
        for x, y in zip(rng.integers(WIDTH, size=60), rng.integers(HEIGHT, size=60), strict=True):
            expected_face, expected_depth = plain_hit(room.faces, pose, fxfycxcy, x, y)
            assert face[y, x] == expected_face
            assert depth[y, x] == pytest.approx(expected_depth, rel=1e-4)


@pytest.mark.parametrize("yaw", [0.0, np.pi / 2, np.pi, 1.234])
def test_a_closed_room_has_no_holes(room: Room, yaw: float) -> None:
    """Also where edges run exactly through pixel centres, and faces cross the camera plane."""
    middle = room.size * [0.5, -0.5, 0.5]
    face, depth = cast(room.faces, Pinhole(look(yaw, 0.0, middle.tolist()), np.array([30.0, 30.0, 40.5, 30.5]), 81, 61))
    assert face.min() >= 0
    assert depth.max() < np.linalg.norm(room.size)


def test_a_face_behind_the_camera_is_not_drawn() -> None:
    faces = Faces(
        origin=np.array([[-1.0, -1.0, 2.0], [-1.0, -1.0, -2.0]]),
        edge_u=np.array([[2.0, 0, 0]] * 2),
        edge_v=np.array([[0, 2.0, 0]] * 2),
        textures=[texture_levels(np.full((8, 8, 4), value, np.uint8)) for value in (200, 50)],
    )
    intrinsics = np.array([16.0, 16.0, 16.0, 12.0])
    face, depth = cast(faces, Pinhole(np.eye(4), intrinsics, 32, 24))
    assert set(np.unique(face)) == {-1, 0}
    assert np.all(depth[face == 0] == 2.0) and np.all(np.isinf(depth[face == -1]))
    image = render(faces, Pinhole(np.eye(4), intrinsics, 32, 24))
    assert np.all(image[face == 0] == 200)
    assert not image[face == -1].any()


def test_a_texture_is_upright_and_not_mirrored() -> None:
    texture = np.zeros((64, 64, 4), np.uint8)
    texture[:32, :32, 0], texture[:32, 32:, 1], texture[32:, :32, 2] = 255, 255, 255
    one = np.array([[1.0, 0, 0]])
    faces = Faces(np.array([[-1.0, -1.0, 1.0]]), 2 * one, 2 * np.roll(one, 1, axis=1), [texture_levels(texture)])
    image = render(faces, Pinhole(np.eye(4), np.array([8.0, 8.0, 8.0, 8.0]), 16, 16))
    assert image[3, 3].tolist() == [255, 0, 0]
    assert image[3, 12].tolist() == [0, 255, 0]
    assert image[12, 3].tolist() == [0, 0, 255]


def test_a_point_projects_to_the_pixel_that_shows_it(room: Room, path: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    c2w, fxfycxcy = path
    w2c, shown = np.linalg.inv(c2w[10]), 0
    for i in rng.permutation(len(room.faces.origin))[:200]:
        s, t = rng.random(2)
        point = room.faces.origin[i] + s * room.faces.edge_u[i] + t * room.faces.edge_v[i]
        x, y, z = w2c[:3, :3] @ point + w2c[:3, 3]
        if z < 0.1:
            continue
        u, v = fxfycxcy[0] * x / z + fxfycxcy[2], fxfycxcy[1] * y / z + fxfycxcy[3]
        if not (0 <= u < WIDTH and 0 <= v < HEIGHT):
            continue
        # moving the centre by less than a pixel puts the point on the centre of its pixel
        moved = fxfycxcy + np.array([0, 0, np.floor(u) + 0.5 - u, np.floor(v) + 0.5 - v])
        face, depth = cast(room.faces, Pinhole(c2w[10], moved, WIDTH, HEIGHT))
        found = face[int(v), int(u)], depth[int(v), int(u)]
        assert found[1] <= z * (1 + 1e-4)  # nothing is drawn that this point would hide
        if found[0] == i:
            shown += 1
            assert found[1] == pytest.approx(z, rel=1e-4)
        if shown == 20:
            break
    assert shown >= 10


def test_warping_by_depth_gives_the_other_frame(room: Room, path: tuple[np.ndarray, np.ndarray]) -> None:
    c2w, fxfycxcy = path
    here, there = c2w[5], c2w[15]
    error, cover = warp_error(room, here, there, there, fxfycxcy)
    assert cover > 0.8
    assert error < 4.5  # grey levels of 255
    moved = there.copy()
    moved[:3, 3] += 0.05
    assert warp_error(room, here, there, moved, fxfycxcy)[0] > 1.5 * error


def warp_error(
    room: Room, here: np.ndarray, there: np.ndarray, claimed: np.ndarray, fxfycxcy: np.ndarray
) -> tuple[float, float]:
    """Mean difference of the picture here and the one from there, fetched by depth with the claimed camera."""
    cameras = [Pinhole(pose, fxfycxcy, WIDTH, HEIGHT) for pose in (here, there)]
    image, other = (render(room.faces, camera).astype(np.float32) for camera in cameras)
    depth, other_depth = (cast(room.faces, camera)[1] for camera in cameras)
    fx, fy, cx, cy = fxfycxcy
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    points = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1) * depth[..., None]
    points = (points @ here[:3, :3].T + here[:3, 3] - claimed[:3, 3]) @ claimed[:3, :3]
    u = (fx * points[..., 0] / points[..., 2] + cx - 0.5).astype(np.float32)
    v = (fy * points[..., 1] / points[..., 2] + cy - 0.5).astype(np.float32)
    fetched = cv2.remap(other, u, v, cv2.INTER_LINEAR)
    seen_depth = cv2.remap(other_depth.astype(np.float32), u, v, cv2.INTER_NEAREST)
    seen = np.abs(seen_depth / points[..., 2] - 1) < 0.02
    return float(np.abs(fetched - image)[seen].mean()), float(seen.mean())


@pytest.mark.parametrize("seed", range(4))
def test_a_path_is_smooth_clear_and_level(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Textures take most of the time, and no path sees them.
    monkeypatch.setattr("data.synthetic.room._bake", lambda *_: texture_levels(np.zeros((2, 2, 4), np.uint8)))
    room = make_scene(seed, texel=0.1)
    speed = 0.02
    c2w, intrinsics = make_path(room, seed, 120, speed=speed)
    position = c2w[:, :3, 3]
    ground = position[:, [0, 2]]
    assert np.all(ground > WALL_CLEARANCE - 0.01) and np.all(ground < room.size[[0, 2]] - WALL_CLEARANCE + 0.01)
    assert floor_distance(ground, room.obstacles).min() > FURNITURE_CLEARANCE - 0.01
    assert np.all((-position[:, 1] > 1.1) & (-position[:, 1] < 1.75))
    assert np.linalg.norm(np.diff(position, axis=0), axis=1).max() < 2 * speed
    relative = c2w[:-1, :3, :3].transpose(0, 2, 1) @ c2w[1:, :3, :3]
    angle = np.degrees(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert angle.max() < 1.5
    np.testing.assert_allclose(
        c2w[:, :3, :3] @ c2w[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (120, 1, 1)), atol=1e-12
    )
    assert np.degrees(np.abs(np.arcsin(c2w[:, 1, 0]))).max() < 2  # roll
    assert intrinsics[0] * 16 / 9 == pytest.approx(intrinsics[1])  # square pixels


def test_a_walk_far_longer_than_the_room_turns_back(room: Room) -> None:
    c2w, _ = make_path(room, 0, 3000)
    ground = c2w[:, :3, 3][:, [0, 2]]
    assert np.all(ground > 0) and np.all(ground < room.size[[0, 2]])
    assert np.linalg.norm(np.diff(ground, axis=0), axis=1).max() < 0.03


def test_a_room_too_full_to_walk_in_is_looked_at_from_one_spot(room: Room) -> None:
    full = replace(room, obstacles=np.array([[room.size[0] / 2, room.size[2] / 2, 9.0, 9.0, 0.0]]))
    c2w, _ = make_path(full, 0, 10)
    assert np.ptp(c2w[:, :3, 3], axis=0).max() < 0.03


@pytest.mark.parametrize(("name", "value"), [("frames", 0), ("speed", 0.0), ("aspect", -1.0)])
def test_make_path_names_a_bad_value(room: Room, name: str, value: float) -> None:
    arguments = {"frames": 4, name: value}
    with refused(name, value, error=ValueError):
        make_path(room, 0, **arguments)


def test_clips_of_other_specs_have_other_keys() -> None:
    spec = ClipSpec(seed=1, split="train", index=7, frames=3, width=48, height=32)
    others = [replace(spec, index=8), replace(spec, split="test"), replace(spec, seed=2)]
    assert len({other.key for other in [spec, *others]}) == 4


def test_the_detail_of_textures_does_not_change_the_room(room: Room) -> None:
    coarse = make_scene(3, texel=0.2)
    np.testing.assert_array_equal(coarse.faces.origin, room.faces.origin)
    assert coarse.faces.textures[0][0].shape < room.faces.textures[0][0].shape


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("re10k")
    write_re10k(root, replace(TINY, num_processes=2, clips_per_chunk=1))
    return root


def load(root: Path, split: str) -> list[dict]:
    files = sorted((root / split).glob("*.torch"))
    return [clip for file in files for clip in torch.load(file, weights_only=True)]


@pytest.mark.slow
def test_chunks_have_the_format_of_pixelsplat(written: Path) -> None:
    index = json.loads((written / "train/index.json").read_text())
    assert sorted(set(index.values())) == ["000000.torch", "000001.torch"]
    clips = load(written, "train")
    assert list(index) == [clip["key"] for clip in clips]
    for clip in clips:
        assert set(clip) == {"url", "timestamps", "cameras", "images", "key"}
        assert len(clip["key"]) == 16 and int(clip["key"], 16) >= 0
        assert clip["timestamps"].dtype == torch.int64 and clip["timestamps"].shape == (6,)
        assert torch.all(clip["timestamps"].diff() > 0)
        assert clip["cameras"].dtype == torch.float32 and clip["cameras"].shape == (6, 18)
        assert len(clip["images"]) == 6
        assert all(image.dtype == torch.uint8 and image.ndim == 1 for image in clip["images"])
        with Image.open(io.BytesIO(clip["images"][0].numpy().tobytes())) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 24))
    assert not [file for file in written.rglob("*") if "tmp" in file.name]


def test_a_clip_depends_on_its_spec_alone(written: Path) -> None:
    """What another process wrote before is made again."""
    clips = load(written, "train")
    again = make_clip(ClipSpec(seed=5, split="train", index=0, frames=6, width=32, height=24))
    assert again.jpegs == [image.numpy().tobytes() for image in clips[0]["images"]]
    assert np.array_equal(again.cameras, clips[0]["cameras"].numpy())
    for other in (clips[1], *load(written, "test")):
        assert not np.array_equal(again.cameras, other["cameras"].numpy())


def test_camera_rows_are_normalised_intrinsics_and_w2c(written: Path) -> None:
    clip = load(written, "train")[1]
    spec = ClipSpec(seed=5, split="train", index=1, frames=6, width=32, height=24)
    room = make_scene(spec.entropy(0), texel=1.6 / 24)
    c2w, intrinsics = make_path(room, spec.entropy(1), 6, aspect=32 / 24)
    rows = clip["cameras"].numpy()
    np.testing.assert_allclose(rows[:, :4], np.tile(intrinsics, (6, 1)), rtol=1e-6)
    assert not rows[:, 4:6].any()
    w2c = np.concatenate([rows[:, 6:].reshape(-1, 3, 4), np.tile([[[0, 0, 0, 1]]], (6, 1, 1))], axis=1)
    np.testing.assert_allclose(w2c @ c2w, np.tile(np.eye(4), (6, 1, 1)), atol=1e-5)
    picture = render(room.faces, Pinhole(c2w[2], to_pixels(intrinsics, 32, 24), 32, 24))
    stored = np.asarray(Image.open(io.BytesIO(clip["images"][2].numpy().tobytes())))
    assert np.abs(stored.astype(int) - picture).mean() < 8


def test_evaluation_index(written: Path) -> None:
    index = json.loads((written / "evaluation_index.json").read_text())
    assert list(index) == [clip["key"] for clip in load(written, "test")]
    for views in index.values():
        left, right = views["context"]
        assert 0 <= left < right < 6 and right - left == 5
        assert len(set(views["target"])) == 3 and all(left < target < right for target in views["target"])


@pytest.mark.slow
def test_numbers_of_processes_scenes_and_chunks_change_no_clip(written: Path, tmp_path: Path) -> None:
    write_re10k(tmp_path, replace(TINY, train_scenes=1, num_processes=1, clips_per_chunk=3))
    for split in ("train", "test"):
        one, two = load(tmp_path, split)[0], load(written, split)[0]
        assert one["key"] == two["key"] and one["url"] == two["url"]
        assert torch.equal(one["cameras"], two["cameras"])
        assert all(torch.equal(a, b) for a, b in zip(one["images"], two["images"], strict=True))
    assert (tmp_path / "evaluation_index.json").read_text() == (written / "evaluation_index.json").read_text()


def test_chunks_are_replaced_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train_scenes", "1", "--test_scenes", "0", "--frames", "2", "--width", "16", "--height", "16"]
    arguments = ["--output_dir", str(tmp_path), *small]
    old = tmp_path / "train" / "000007.torch"
    old.parent.mkdir()
    old.touch()
    assert main(arguments) != 0
    check_names(capsys.readouterr().err.rstrip("\n"), tmp_path, "train/000007.torch", "--overwrite")
    assert old.exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["000000.torch", "index.json"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--train_scenes", "-1"),
        ("--frames", "0"),
        ("--frames", "many"),
        ("--width", "8"),
        ("--height", "100000"),
        ("--seed", "-3"),
        ("--speed", "0"),
        ("--speed", "nan"),
        ("--num_processes", "-1"),
        ("--clips_per_chunk", "0"),
        ("--context_distance", "60"),
        ("--targets", "59"),
        ("--jpeg_quality", "101"),
        ("--colour", "red"),
    ],
)
def test_a_bad_value_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert main(["--output_dir", str(tmp_path / "out"), option, value]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    check_names(captured.err.removesuffix("\n"), option.lstrip("-"))
    assert not (tmp_path / "out").exists()


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    with refused("train_scenes"):
        write_re10k(tmp_path, SetConfig(0, 0, frames=4, width=32, height=24))

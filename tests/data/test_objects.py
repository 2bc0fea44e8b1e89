"""The procedural objects: rays against plain geometry, silhouettes, what two cameras see, and the files."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.scene import read_scene, read_scene_list
from data.synthetic import object_rendering
from data.synthetic.__main__ import main
from data.synthetic.clips import SetConfig, write_re10k
from data.synthetic.furniture import Style
from data.synthetic.object_rendering import BakedObject, Light, bake, cast_object, render_object, shine
from data.synthetic.object_set import (
    CAMERA_DISTANCE,
    ObjectSetConfig,
    ObjectSpec,
    PhotographedObject,
    sphere_cameras,
    write_objects,
)
from data.synthetic.objects import BUILDERS, LARGEST_RADIUS, Palette, _fitted, _outline
from data.synthetic.rendering import Pinhole
from data.synthetic.solids import Lathed, Polyhedron, Shape, Solid, Torus, hull, lathed, place, prism
from tests.messages import check_names, refused

pytestmark = pytest.mark.slow

SIZE = 48
SHAPES = {
    "sphere": lathed(0, 1, 0),
    "cylinder": lathed(1, 1, 1),
    "cone": lathed(1, 0.5, 0),
    "vase": lathed(1, 0.3, 0.8),
    "barrel": lathed(0.5, 1, 0.7),
    "box": prism(4),
    "pyramid": prism(4, 0.0),
    "stone": hull(np.random.default_rng(0).normal(size=(9, 3))),
    "ring": Torus(0.3),
}
WHITE = Light(sky=(1.0, 0.0), lamp=np.array([0.0, 0, 1]), strength=0.0, tint=np.ones(3))
TINY = ObjectSetConfig(train_scenes=2, test_scenes=1, frames=5, size=16, seed=5, num_processes=1, inputs=2, targets=2)


def is_inside(shape: Shape, points: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape, by its definition."""
    x, y, z = np.moveaxis(points, -1, 0)
    if isinstance(shape, Lathed):
        return (x**2 + y**2 < shape.a + shape.b * z + shape.c * z**2) & (np.abs(z) < 1)
    if isinstance(shape, Polyhedron):
        return np.all(points @ shape.normals.T < shape.offsets, axis=-1)
    return (np.hypot(x, y) - 1) ** 2 + z**2 < shape.tube**2


@pytest.mark.parametrize("name", SHAPES)
def test_a_ray_meets_a_shape_where_it_first_is_inside(name: str) -> None:
    shape = SHAPES[name]
    rng = np.random.default_rng(1)
    origin = rng.normal(size=(400, 3))
    origin *= 4 / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-1.3, 1.3, (400, 3)) * shape.half - origin
    t = np.linspace(0, 2.5, 5001)
    inside = is_inside(shape, origin[:, None] + t[:, None] * direction[:, None])
    expected = np.where(inside.any(axis=1), t[inside.argmax(axis=1)], np.inf)
    found = shape.hit(tuple(origin.T.astype(np.float32)), tuple(direction.T.astype(np.float32)), 0.0)
    # A ray that only grazes a shape may pass between two of the points that are looked at, or a hair beside it.
    met = inside.sum(axis=1) >= 8
    assert np.mean(np.abs(found[met] - expected[met]) < 2e-3) > 0.99
    assert np.mean(np.isinf(found[~inside.any(axis=1)])) > 0.97
    assert met.sum() > 100


@pytest.mark.parametrize("name", SHAPES)
def test_rays_that_begin_inside_meet_the_shape_at_once(name: str) -> None:
    shape = SHAPES[name]
    points = np.random.default_rng(2).uniform(-1, 1, (300, 3)) * shape.half
    points = points[is_inside(shape, points)]
    directions = np.random.default_rng(3).normal(size=points.shape)
    found = shape.hit(tuple(points.T.astype(np.float32)), tuple(directions.T.astype(np.float32)), 0.0)
    assert len(points) > 20 and np.all(found <= 1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_points_of_a_surface_are_found_on_it_again(name: str) -> None:
    shape = SHAPES[name]
    rng = np.random.default_rng(4)
    for patch in shape.patches:
        u, v = rng.uniform(0.02, 0.98, (2, 60))
        points, normals = shape.surface(patch, u, v)
        on = surface_has(shape, points)
        assert on.sum() >= 5
        assert np.all(np.sum(normals * points, axis=1)[on] > -1.1)
        found, found_u, found_v = shape.locate(points[on].astype(np.float32))
        inside_cap = np.hypot(2 * u - 1, 2 * v - 1)[on] < 0.98
        sure = inside_cap if isinstance(shape, Lathed) and patch else np.ones(on.sum(), bool)
        np.testing.assert_array_equal(found[sure], patch)
        np.testing.assert_allclose(found_u[sure], u[on][sure], atol=0.01)
        np.testing.assert_allclose(found_v[sure], v[on][sure], atol=0.01)


def surface_has(shape: Shape, points: np.ndarray) -> np.ndarray:
    """Whether points lie on the surface: a face fills a part of the rectangle around it."""
    return is_inside(shape, points * (1 - 1e-4)) if isinstance(shape, Polyhedron) else np.ones(len(points), bool)


def test_a_hull_has_a_face_on_every_side_and_images_upright() -> None:
    box = prism(4)
    assert len(box.patches) == 6
    np.testing.assert_allclose(box.half, 1)
    for patch in box.patches:
        _, edge_u, edge_v = box.frames[patch]
        np.testing.assert_allclose(np.cross(edge_v, edge_u) / 4, box.normals[patch], atol=1e-6)
        assert edge_v[2] == pytest.approx(-2) or abs(box.normals[patch][2]) == pytest.approx(1)


def plain(shape: Shape, centre=(0, 0, 0), half=1.0, turn=None) -> Solid:
    """A solid of one colour."""
    material = Style(np.random.default_rng(0)).colour(0.1, 0.5, 0.8)[0]
    return place(shape, material, centre, np.broadcast_to(half, 3) * shape.half, turn)


def baked(*solids: Solid) -> BakedObject:
    return bake(solids, WHITE, np.random.default_rng(0), 0.05)


def camera(number: int = 0, size: int = SIZE) -> Pinhole:
    c2w = sphere_cameras(np.random.default_rng(6), 8)[number]
    return Pinhole(c2w, np.array([1.07 * size, 1.07 * size, size / 2, size / 2]), size, size)


def test_alpha_is_the_silhouette_of_a_sphere() -> None:
    """A ray meets a sphere if it makes a smaller angle with the way to its centre than the sphere does."""
    centre = np.array([0.3, -0.2, 0.25])
    for number in range(3):
        view = camera(number)
        alpha = render_object(baked(plain(lathed(0, 1, 0), centre, 0.5)), view)[..., 3] / 255
        fine = view.finer(24)
        x, y = np.meshgrid(np.arange(fine.width) + 0.5, np.arange(fine.height) + 0.5)
        fx, fy, cx, cy = fine.fxfycxcy
        rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1) @ fine.c2w[:3, :3].T
        way = centre - fine.c2w[:3, 3]
        cosine = rays @ way / np.linalg.norm(rays, axis=-1) / np.linalg.norm(way)
        inside = cosine > np.sqrt(1 - (0.5 / np.linalg.norm(way)) ** 2)
        share = inside.reshape(SIZE, 24, SIZE, 24).mean(axis=(1, 3))
        assert np.all(alpha[share == 1] == 1) and np.all(alpha[share == 0] == 0)
        assert np.abs(alpha - share).max() < 0.25
        assert alpha.sum() == pytest.approx(share.sum(), rel=2e-3)
        assert len(np.unique(alpha)) > 6


def test_colours_are_not_multiplied_by_alpha() -> None:
    """On a lone sphere of one colour in an even light, pixels of its edge have the colour of its middle."""
    image = render_object(baked(plain(lathed(0, 1, 0), half=0.8)), camera()).astype(int)
    alpha = image[..., 3]
    middle = np.median(image[alpha == 255], axis=0)
    edge = image[(alpha > 60) & (alpha < 255)]
    assert len(edge) > 20
    assert np.abs(edge - middle)[:, :3].max() < 40
    assert np.all(image[alpha == 0] == [255, 255, 255, 0])


def test_a_lone_convex_solid_takes_all_the_light_of_its_sky_and_a_floor_takes_some() -> None:
    points = np.array([[0.0, 0, 1], [0.0, 0, -1], [1.0, 0, 0]])
    ball = plain(lathed(0, 1, 0))
    np.testing.assert_allclose(shine([ball], points, points, WHITE), 1.0)
    floor = plain(prism(4), (0, 0, -1.1), (3, 3, 0.1))
    above, below, beside = shine([ball, floor], points, points, WHITE)[:, 0]
    assert above == pytest.approx(1) and below < 0.3 and 0.5 < beside < 0.85


@pytest.mark.parametrize("number", range(len(BUILDERS)))
def test_objects_lie_about_the_origin_and_inside_every_picture(number: int) -> None:
    rng = np.random.default_rng(number)
    solids = _fitted(rng, BUILDERS[number](rng, Palette(rng)))
    points = np.concatenate([_outline(solid) for solid in solids])
    assert 0.6 < np.linalg.norm(points, axis=1).max() < LARGEST_RADIUS + 1e-6
    np.testing.assert_allclose(points.min(axis=0) + points.max(axis=0), 0, atol=1e-6)
    for view in range(3):
        owner, _ = cast_object(solids, camera(view))
        edge = np.concatenate([owner[0], owner[-1], owner[:, 0], owner[:, -1]])
        assert np.all(edge == -1) and (owner >= 0).mean() > 0.03


@pytest.fixture(scope="module")
def photographed() -> PhotographedObject:
    return PhotographedObject(ObjectSpec(seed=1, split="train", index=3, frames=12, size=96))


def view_of(thing: PhotographedObject, c2w: np.ndarray) -> Pinhole:
    return Pinhole(c2w, thing.fxfycxcy, thing.spec.size, thing.spec.size)


def turned(c2w: np.ndarray, degrees: float) -> np.ndarray:
    """A camera turned with its place about the vertical axis of the world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn @ c2w


def test_a_point_of_a_surface_has_its_colour_in_both_of_two_views(photographed: PhotographedObject) -> None:
    here = photographed.c2w[0]
    there = turned(here, 8)
    error, cover = warp_error(photographed, here, there, there)
    assert cover > 0.5
    assert error < 9  # grey levels of 255
    assert warp_error(photographed, here, there, turned(here, 11))[0] > 1.5 * error


def warp_error(
    thing: PhotographedObject, here: np.ndarray, there: np.ndarray, claimed: np.ndarray
) -> tuple[float, float]:
    """Mean difference of the object here and the one from there, fetched by depth with the claimed camera."""
    image, other = (render_object(thing.baked, view_of(thing, pose)).astype(np.float32) for pose in (here, there))
    (owner, depth), (_, other_depth) = (cast_object(thing.baked.solids, view_of(thing, pose)) for pose in (here, there))
    fx, fy, cx, cy = thing.fxfycxcy
    x, y = np.meshgrid(np.arange(thing.spec.size) + 0.5, np.arange(thing.spec.size) + 0.5)
    known = np.where(np.isfinite(depth), depth, 1)
    points = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], axis=-1) * known[..., None]
    points = (points @ here[:3, :3].T + here[:3, 3] - claimed[:3, 3]) @ claimed[:3, :3]
    u = (fx * points[..., 0] / points[..., 2] + cx - 0.5).astype(np.float32)
    v = (fy * points[..., 1] / points[..., 2] + cy - 0.5).astype(np.float32)
    fetched = cv2.remap(other, u, v, cv2.INTER_LINEAR)
    seen_depth = cv2.remap(np.where(np.isfinite(other_depth), other_depth, 99), u, v, cv2.INTER_NEAREST)
    seen = (owner >= 0) & (np.abs(seen_depth / points[..., 2] - 1) < 0.01)
    return float(np.abs(fetched - image)[seen][:, :3].mean()), float(seen.sum() / (owner >= 0).sum())


def test_where_surfaces_stand_in_the_image_of_all_changes_no_picture(
    photographed: PhotographedObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the rounding of places; OpenCV looks up no image as long as all surfaces below one another may be."""
    expected = photographed.picture(0)
    monkeypatch.setattr(object_rendering, "_LONGEST_COLUMN", 150)
    again = PhotographedObject(photographed.spec)
    assert again.baked.texture.shape[0] <= 150 < photographed.baked.texture.shape[0]
    assert np.abs(again.picture(0).astype(int) - expected).max() <= 2


def test_cameras_look_at_the_origin_from_all_around() -> None:
    c2w = sphere_cameras(np.random.default_rng(0), 2000)
    centres = c2w[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), CAMERA_DISTANCE)
    np.testing.assert_allclose(c2w[:, :3, 2], -centres / CAMERA_DISTANCE, atol=1e-12)
    np.testing.assert_allclose(
        c2w[:, :3, :3] @ c2w[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (2000, 1, 1)), atol=1e-9
    )
    assert np.all(np.linalg.det(c2w[:, :3, :3]) > 0)
    np.testing.assert_allclose(c2w[:, 2, 0], 0, atol=1e-9)  # no roll
    assert np.all(c2w[:, 2, 1] < 0)  # z is up
    np.testing.assert_allclose(centres.mean(axis=0), 0, atol=0.12)  # every direction is as likely


def test_an_object_depends_on_its_spec_alone() -> None:
    spec = ObjectSpec(seed=1, split="train", index=7, frames=2, size=24)
    first = PhotographedObject(spec).scene()
    again = PhotographedObject(spec).scene()
    assert first.read_image(1) == again.read_image(1) and np.array_equal(first.w2c, again.w2c)
    others = [replace(spec, index=8), replace(spec, split="test"), replace(spec, seed=2)]
    assert len({other.key for other in [spec, *others]}) == 4
    assert not np.array_equal(PhotographedObject(others[1]).c2w, PhotographedObject(spec).c2w)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    write_objects(root, TINY)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_scene_holds_rgba_pictures_and_the_cameras_that_took_them(written: Path) -> None:
    scenes = [read_scene(path) for path in read_scene_list(written / "train" / "full_list.txt")]
    assert len(scenes) == 2 and not any(scene.faults for scene in scenes)
    spec = next(spec for spec in TINY.specs("train") if spec.key == scenes[0].name)
    thing = PhotographedObject(spec)
    np.testing.assert_array_equal(scenes[0].w2c, np.linalg.inv(thing.c2w))
    np.testing.assert_array_equal(scenes[0].fxfycxcy, np.tile(thing.fxfycxcy, (5, 1)))
    for frame in range(5):
        with Image.open(scenes[0].image_path(frame)) as image:
            assert (image.mode, image.size) == ("RGBA", (16, 16))
            np.testing.assert_array_equal(np.asarray(image), thing.picture(frame))


def test_the_index_has_inputs_and_other_views_as_targets(written: Path) -> None:
    index = json.loads((written / "evaluation_index.json").read_text())
    assert list(index) == [spec.key for spec in TINY.specs("test")]
    for views in index.values():
        assert len(views["context"]) == 2 and len(set(views["context"] + views["target"])) == 4
        assert all(0 <= frame < 5 for frame in views["context"] + views["target"])


def test_a_later_run_goes_on_and_changes_nothing(written: Path, tmp_path: Path) -> None:
    """Whatever is there of it: nothing, one of two objects, an object without a picture."""
    write_objects(tmp_path, replace(TINY, train_scenes=1))
    images = next((tmp_path / "train" / "images").iterdir())
    (images / "00003.png").unlink()
    write_objects(tmp_path, replace(TINY, num_processes=2))
    assert contents(tmp_path) == contents(written)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "train" / "images").rglob("*.png")}
    write_objects(tmp_path, TINY)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_packed_pictures_are_the_same(written: Path, tmp_path: Path) -> None:
    write_objects(tmp_path, replace(TINY, test_scenes=0, pack=True))
    assert not list(tmp_path.rglob("*.png"))
    from data.packed import read_image_file

    for one, other in zip(
        *(read_scene_list(root / "train" / "full_list.txt") for root in (written, tmp_path)), strict=True
    ):
        loose, packed = read_scene(one), read_scene(other)
        for frame in range(5):
            assert loose.image_path(frame).read_bytes() == read_image_file(packed.image_path(frame), 1 << 20)


def test_objects_of_another_seed_or_size_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text(json.dumps({"frames": 5, "size": 16, "seed": 5}))
    for other in (replace(TINY, seed=6), replace(TINY, size=32), replace(TINY, frames=6)):
        with refused(tmp_path / "objects.json", "--output_dir"):
            write_objects(tmp_path, other)
    assert not (tmp_path / "train").exists()


def test_rooms_and_objects_leave_the_index_of_the_other_alone(tmp_path: Path) -> None:
    index = tmp_path / "evaluation_index.json"
    record = tmp_path / "objects.json"
    index.write_text("{}")
    with refused(index, "--output_dir"):
        write_objects(tmp_path, TINY)
    record.write_text("{}")
    with refused(record, "--output_dir"):
        write_re10k(tmp_path, SetConfig(), overwrite=True)
    assert sorted(tmp_path.iterdir()) == [index, record]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--train_scenes", "-1"),
        ("--frames", "0"),
        ("--frames", "11"),
        ("--size", "8"),
        ("--size", "513"),
        ("--seed", "-3"),
        ("--num_processes", "-1"),
        ("--inputs", "0"),
        ("--targets", "29"),
        ("--jpeg_quality", "90"),
        ("--kind", "trees"),
    ],
)
def test_a_bad_value_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert main(["--kind", "objects", "--output_dir", str(tmp_path / "out"), option, value]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    check_names(captured.err.removesuffix("\n"), option.lstrip("-"))
    assert not (tmp_path / "out").exists()


def test_the_command_writes_rooms_unless_objects_are_asked_for(tmp_path: Path, capsys) -> None:
    few = ["--train_scenes", "1", "--test_scenes", "0", "--frames", "2"]
    arguments = ["--kind", "objects", "--output_dir", str(tmp_path), "--size", "16", "--num_processes", "1"]
    assert main([*arguments, *few]) == 0
    assert len(read_scene_list(tmp_path / "train" / "full_list.txt")) == 1
    assert "1 object written" in capsys.readouterr().out
    assert main(["--output_dir", str(tmp_path), "--size", "16", *few]) == 2
    check_names(capsys.readouterr().err.rstrip("\n"), "--size")

"""Captures of one's own become scenes: every format and every lens, exactly."""

import json
import re
import shutil
import struct
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from data.importers import __main__ as importers
from data.importers.__main__ import main
from data.importers.capture import natural_order
from data.importers.lens import make_lens
from data.importers.undistortion import distort, plan_undistortion
from data.importers.verdict import Verdict
from data.scene import read_scene, read_scene_list
from tests.captures import (
    LENSES,
    NAMES,
    PINHOLE,
    SIZE,
    colmap_project,
    encoded,
    lens_image,
    opencv_cameras,
    pinhole_image,
    project,
    re10k_lines,
    room,
    run_importer,
    transforms,
    transforms_project,
    write_colmap,
    write_images,
    write_json,
)
from tests.chunks import contents
from tests.messages import check_names, check_told, refused

DISTORTED = [model for model in LENSES if model not in ("SIMPLE_PINHOLE", "PINHOLE")]
# The order in which scenes have `NAMES`.
BYTES_KEPT = "00000.png"


def pixels(scene, frame):
    with Image.open(scene.image_path(frame)) as image:
        return np.asarray(image).astype(int)


def check_poses(scene):
    np.testing.assert_allclose(scene.w2c, room().w2c, atol=1e-5)


def check_pinhole(scene):
    """A scene of the pinhole images, bytes and all."""
    check_poses(scene)
    np.testing.assert_allclose(scene.fxfycxcy, [PINHOLE] * len(NAMES), rtol=1e-9)
    for view in range(len(NAMES)):
        assert scene.image_path(view).read_bytes() == encoded(lens_image(view, "PINHOLE"))


@pytest.mark.parametrize("model", LENSES)
def test_every_camera_model_comes_back_as_a_pinhole_camera(tmp_path, model):
    scene = run_importer(colmap_project(tmp_path / "in", model=model), tmp_path / "out")
    check_poses(scene)
    for view in range(len(NAMES)):
        assert abs(pixels(scene, view) - pinhole_image(view, scene.fxfycxcy[view])).max() <= 2


@pytest.mark.parametrize("model", LENSES)
def test_lenses_follow_the_formulas_of_colmap_and_of_opencv(model):
    parameters = LENSES[model][1]
    lens = make_lens(model, SIZE, parameters)
    rays = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    rays[0] = 0
    np.testing.assert_allclose(distort(lens, rays), project(model, parameters, rays), atol=1e-9)
    fx, fy, cx, cy = lens.fxfycxcy
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if lens.fisheye:
        theirs = cv2.fisheye.distortPoints(rays[:, None], matrix, np.array(lens.distortion))[:, 0]
    else:
        points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
        theirs = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array(lens.distortion))[0][:, 0]
    np.testing.assert_allclose(distort(lens, rays), theirs, atol=1e-9)


@pytest.mark.parametrize("model", DISTORTED)
def test_no_pixel_is_empty_and_no_wider_view_would_do(model):
    plan = plan_undistortion(make_lens(model, SIZE, LENSES[model][1]))
    edge = np.array([[x, y] for x in np.linspace(0, SIZE[0], 200) for y in (0, SIZE[1])])
    edge = np.concatenate([edge, [[x, y] for x in (0, SIZE[0]) for y in np.linspace(0, SIZE[1], 200)]])

    def overhang(factor):
        focal = np.array(plan.fxfycxcy[:2]) * factor
        found = project(model, LENSES[model][1], (edge - plan.fxfycxcy[2:]) / focal)
        return max(-found.min(), (found - SIZE).max())

    assert overhang(1.0) < 0.01 < overhang(0.97)
    assert 0 < plan.lost < 0.3


def test_folded_distortion_is_not_followed():
    """Beyond where its formula turns back, a lens shows nothing."""
    lens = make_lens("SIMPLE_RADIAL", (64, 48), [20.0, 32.0, 24.0, -0.15])
    plan = plan_undistortion(lens)
    corner = np.array([[32 / plan.fxfycxcy[0], 24 / plan.fxfycxcy[1]]])
    assert np.linalg.norm(corner) <= np.sqrt(1 / (3 * 0.15)) + 1e-3


def test_a_very_wide_lens_is_cut_to_120_degrees():
    plan = plan_undistortion(make_lens("SIMPLE_FISHEYE", (64, 64), [20.0, 32.0, 32.0]))
    assert np.degrees(2 * np.arctan(32 / plan.fxfycxcy[0])) == pytest.approx(120)


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_text_and_binary(tmp_path, binary):
    check_pinhole(run_importer(colmap_project(tmp_path / "in", binary=binary), tmp_path / "out"))


def test_what_is_read_is_said(tmp_path, capsys):
    source = colmap_project(tmp_path / "door", model="SIMPLE_RADIAL")
    run_importer(source, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    check_told(lines, "door", "sparse/0", "binary", "1 camera")
    check_told(lines, "SIMPLE_RADIAL", "64x48", "field of view", "undistorted")
    check_told(lines, "3 of 3 images")


def test_colmap_4_has_more_files(tmp_path):
    source = colmap_project(tmp_path / "in")
    for name in ("rigs.bin", "frames.bin", "points3D.bin"):
        (source / "sparse" / "0" / name).write_bytes(b"not looked at")
    check_pinhole(run_importer(source, tmp_path / "out"))


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ".", "colmap/sparse/0"])
def test_models_stand_in_several_places(tmp_path, place):
    write_images(tmp_path / "in" / "images")
    write_colmap(tmp_path / "in" / place)
    check_pinhole(run_importer(tmp_path / "in", tmp_path / "out"))


@pytest.mark.parametrize("place", ["sparse/0", "sparse"])
def test_the_model_itself_may_be_named(tmp_path, place):
    source = colmap_project(tmp_path / "door")
    scene = run_importer(source / place, tmp_path / "out")
    check_pinhole(scene)
    assert scene.name == "door"


def test_of_several_models_the_largest_is_taken(tmp_path, capsys):
    source = colmap_project(tmp_path / "in")
    write_colmap(source / "sparse" / "1", names=NAMES[:1])
    assert len(run_importer(source, tmp_path / "out")) == 3
    check_told(capsys.readouterr().out.splitlines(), "2 models", "--model")
    assert len(run_importer(source, tmp_path / "other", "--model", "1")) == 1
    with refused("9", "--model"):
        run_importer(source, tmp_path / "none", "--model", "9")


def test_images_in_folders_and_with_any_name(tmp_path):
    names = ("left eye/b 2.png", "left eye/b 10.png", "右/ü b.png")
    for binary in (True, False):
        source = colmap_project(tmp_path / f"in{binary}", names=names, binary=binary)
        check_pinhole(run_importer(source, tmp_path / f"out{binary}"))


def test_images_of_json_files_have_any_name(tmp_path):
    names = ["left eye/b 2.png", "left eye/b 10.png", "右/ü b.png"]
    check_pinhole(run_importer(transforms_project(tmp_path / "in", names=names), tmp_path / "out"))
    write_images(tmp_path / "other", names=names)
    write_json(tmp_path / "other" / "opencv_cameras.json", opencv_cameras(names))
    check_pinhole(run_importer(tmp_path / "other", tmp_path / "out"))


def test_images_elsewhere(tmp_path):
    source = colmap_project(tmp_path / "in")
    (source / "images").rename(tmp_path / "photographs")
    with refused(NAMES[0], "--images"):
        run_importer(source, tmp_path / "out")
    check_pinhole(run_importer(source, tmp_path / "out", "--images", tmp_path / "photographs"))


def test_images_that_colmap_left_out_are_counted(tmp_path, capsys):
    source = colmap_project(tmp_path / "in")
    shutil.copy(source / "images" / NAMES[0], source / "images" / "other.png")
    assert len(run_importer(source, tmp_path / "out")) == 3
    check_told(capsys.readouterr().out.splitlines(), "1 image", "other.png")


def test_frames_follow_the_numbers_in_names():
    names = ["b2", "a10", "a9", "a09b", "b", "10", "9"]
    assert sorted(names, key=natural_order) == ["9", "10", "a9", "a09b", "a10", "b", "b2"]


def test_transforms_json_of_nerfstudio(tmp_path):
    check_pinhole(run_importer(transforms_project(tmp_path / "in"), tmp_path / "out"))


@pytest.mark.parametrize(
    ("model", "common"),
    [
        ("OPENCV", {"camera_model": "OPENCV"}),
        ("OPENCV", {}),
        ("OPENCV_FISHEYE", {"camera_model": "OPENCV_FISHEYE"}),
        ("OPENCV_FISHEYE", {"is_fisheye": True}),
    ],
)
def test_transforms_json_with_distortion(tmp_path, model, common):
    parameters = LENSES[model][1]
    names = ("k1", "k2", "k3", "k4") if "FISHEYE" in model else ("k1", "k2", "p1", "p2")
    intrinsics = dict(zip(("fl_x", "fl_y", "cx", "cy", *names), parameters, strict=True))
    write_images(tmp_path / "in", model)
    write_json(tmp_path / "in" / "transforms.json", transforms(**(intrinsics | common)))
    scene = run_importer(tmp_path / "in", tmp_path / "out")
    check_poses(scene)
    for view in range(len(NAMES)):
        assert abs(pixels(scene, view) - pinhole_image(view, scene.fxfycxcy[view])).max() <= 2


def test_transforms_json_with_intrinsics_of_each_frame(tmp_path):
    source = transforms_project(tmp_path / "in")
    record = transforms([f"images/{name}" for name in NAMES])
    common = {key: record.pop(key) for key in list(record) if key != "frames"}
    record["frames"] = [common | frame | {"fl_x": 60 + n} for n, frame in enumerate(record["frames"])]
    write_json(source / "transforms.json", record)
    scene = run_importer(source, tmp_path / "out")
    assert scene.fxfycxcy[:, 0].tolist() == [60, 61, 62]
    check_poses(scene)


def test_transforms_json_with_a_field_of_view_alone(tmp_path):
    """As the first NeRF data have it: no size, no suffix, unsorted."""
    write_images(tmp_path / "in" / "train")
    names = ["./train/view_11", "./train/view_2", "./train/view_10"]
    record = transforms(names, room().w2c[[2, 0, 1]], w=None, h=None, fl_x=None, fl_y=None, cx=None, cy=None)
    write_json(tmp_path / "in" / "transforms_train.json", record | {"camera_angle_x": 1.0})
    scene = run_importer(tmp_path / "in", tmp_path / "out")
    check_poses(scene)
    np.testing.assert_allclose(scene.fxfycxcy, [[32 / np.tan(0.5), 32 / np.tan(0.5), 32, 24]] * 3)


def test_transforms_json_beside_smaller_images(tmp_path, capsys):
    """As in DL3DV: cameras for full-size images, of which there are copies of a quarter alone."""
    source = transforms_project(tmp_path / "in", w=256, h=192, fl_x=240.0, fl_y=232.0, cx=132.0, cy=94.0)
    (source / "images").rename(source / "images_4")
    check_pinhole(run_importer(source, tmp_path / "out"))
    check_told(capsys.readouterr().out.splitlines(), "3 images", "64x48", "256x192", "rescaled")


def test_a_file_may_be_named(tmp_path):
    source = transforms_project(tmp_path / "in")
    (source / "transforms.json").rename(source / "poses.json")
    check_pinhole(run_importer(source / "poses.json", tmp_path / "out"))


@pytest.mark.parametrize("bare", [True, False])
def test_opencv_cameras_json(tmp_path, bare):
    write_images(tmp_path / "in")
    frames = opencv_cameras()
    write_json(tmp_path / "in" / "opencv_cameras.json", frames if bare else {"scene_name": "a", "frames": frames})
    check_pinhole(run_importer(tmp_path / "in", tmp_path / "out"))
    check_pinhole(run_importer(tmp_path / "in" / "opencv_cameras.json", tmp_path / "file"))


@pytest.mark.parametrize("folder", [".", "clip"])
def test_re10k_text(tmp_path, folder):
    names = [f"{33000 * (i + 3)}.png" for i in range(3)]
    write_images(tmp_path / "in" / folder, names=names)
    (tmp_path / "in" / "clip.txt").write_text("\n".join(re10k_lines()))
    for source in (tmp_path / "in", tmp_path / "in" / "clip.txt"):
        scene = run_importer(source, tmp_path / f"out{source.suffix}")
        check_pinhole(scene)
        assert scene.name == "clip"


def test_a_folder_of_captures_becomes_a_set(tmp_path):
    colmap_project(tmp_path / "in" / "the kitchen")
    transforms_project(tmp_path / "in" / "hall" / "nerfstudio")
    write_json(tmp_path / "in" / "broken" / "transforms.json", {})
    (tmp_path / "in" / "empty").mkdir()
    main([str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--no_check"])
    scenes = [read_scene(path) for path in read_scene_list(tmp_path / "out" / "full_list.txt")]
    assert [scene.name for scene in scenes] == ["hall", "the_kitchen"]
    lost = json.loads((tmp_path / "out" / "lost.json").read_text())
    assert list(lost) == ["clip broken"]
    check_names(lost["clip broken"], str(tmp_path / "in" / "broken" / "transforms.json"))


def test_a_second_run_leaves_what_is_complete(tmp_path):
    source = colmap_project(tmp_path / "in", model="OPENCV")
    run_importer(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    run_importer(source, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert run_importer(source, tmp_path / "out", "--name", "again").name == "again"


def test_a_scene_may_be_packed(tmp_path, caplog):
    source = colmap_project(tmp_path / "in", model="OPENCV")
    loose = run_importer(source, tmp_path / "loose")
    packed = run_importer(source, tmp_path / "packed", "--pack")
    assert [path.name for path in (tmp_path / "packed" / "images").iterdir()] == ["in.tar"]
    assert [image.read(1 << 20) for image in packed.image_paths] == [path.read_bytes() for path in loose.image_paths]
    np.testing.assert_array_equal(packed.fxfycxcy, loose.fxfycxcy)
    run_importer(source, tmp_path / "packed")
    check_told(caplog.messages, "1 clip", "data.packing")


@pytest.mark.parametrize("state", ["good", "cannot tell", "bad"])
def test_cameras_are_checked_at_the_end(tmp_path, capsys, monkeypatch, state):
    def verdict(scene):
        return Verdict(scene.name, state, "as it is")

    monkeypatch.setattr(importers, "check_scene", verdict)
    arguments = [str(colmap_project(tmp_path / "in")), "--output_dir", str(tmp_path / "out")]
    with refused("in") if state == "bad" else nullcontext():
        main(arguments)
    assert (tmp_path / "out" / "metadata" / "in.json").exists()
    check_told(capsys.readouterr().out.splitlines(), "in", state, "as it is")


def test_the_kind_may_be_said(tmp_path):
    """A project of nerfstudio holds both."""
    source = transforms_project(tmp_path / "in", fl_x=61.0)
    write_colmap(source / "colmap" / "sparse" / "0")
    assert run_importer(source, tmp_path / "colmap").fxfycxcy[0, 0] == 60
    assert run_importer(source, tmp_path / "json", "--kind", "transforms").fxfycxcy[0, 0] == 61


def turned_source(root, tag, cameras):
    """A JPEG image that is stored turned, as phones do; cameras for it upright or as stored."""
    upright = lens_image(0, "PINHOLE")
    turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[tag]
    stored = Image.fromarray(upright).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = tag
    (root / "images").mkdir(parents=True)
    stored.save(root / "images" / "a.jpg", quality=98, subsampling=0, exif=exif)
    size = SIZE if cameras == "upright" else SIZE[::-1]
    write_colmap(root / "sparse" / "0", names=["a.jpg"], size=size)
    return root


@pytest.mark.parametrize("tag", [6, 8])
def test_images_are_turned_as_the_cameras_are(tmp_path, capsys, tag):
    scene = run_importer(turned_source(tmp_path / "up", tag, "upright"), tmp_path / "out")
    assert abs(pixels(scene, 0) - lens_image(0, "PINHOLE")).max() < 12
    np.testing.assert_allclose(scene.fxfycxcy[0], PINHOLE)
    check_told(capsys.readouterr().out.splitlines(), "1 image", "turned", "EXIF")
    source = turned_source(tmp_path / "stored", tag, "stored")
    scene = run_importer(source, tmp_path / "out2")
    assert scene.image_path(0).read_bytes() == (source / "images" / "a.jpg").read_bytes()
    check_told(capsys.readouterr().out.splitlines(), "1 image", "not turned", "EXIF")


def saved(image, form, **options):
    path = options.pop("path")
    image.save(path, form, **options)


@pytest.mark.parametrize("kind", ["16-bit", "CMYK", "palette"])
def test_images_of_other_pixels_become_rgb(tmp_path, capsys, kind):
    source = colmap_project(tmp_path / "in")
    path = source / "images" / NAMES[0]
    plain = lens_image(0, "PINHOLE")
    image = Image.fromarray(plain)
    if kind == "16-bit":
        cv2.imwrite(str(path), plain[..., ::-1].astype(np.uint16) * 257)
    elif kind == "CMYK":
        image.convert("CMYK").save(path, "jpeg", quality=98, subsampling=0)
    else:
        image.quantize(256).save(path, "png")
    scene = run_importer(source, tmp_path / "out")
    with Image.open(scene.image_path(0)) as written:
        assert written.mode == "RGB"
    assert abs(pixels(scene, 0) - plain).mean() < (6 if kind in ("CMYK", "palette") else 0.5)
    check_told(capsys.readouterr().out.splitlines(), "1 image", "written anew")


def half_transparent(form="RGBA"):
    """The first view of the room, its left half transparent."""
    image = Image.fromarray(lens_image(0, "PINHOLE"))
    image.putalpha(Image.fromarray(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None].repeat(48, 0)))
    if form == "palette":
        return image.quantize(200)
    return image.convert(form)


@pytest.mark.parametrize("source", ["colmap", "opencv_cameras.json", "transforms.json"])
@pytest.mark.parametrize("form", ["RGBA", "LA"])
def test_images_with_alpha_keep_their_bytes(tmp_path, capsys, source, form):
    folder = tmp_path / "in"
    colmap_project(folder) if source == "colmap" else write_images(folder)
    if source != "colmap":
        write_json(folder / source, opencv_cameras() if source == "opencv_cameras.json" else transforms())
    path = next(folder.rglob(NAMES[0]))
    half_transparent(form).save(path)
    scene = run_importer(folder, tmp_path / "out")
    assert scene.image_path(0).read_bytes() == path.read_bytes()
    check_told(capsys.readouterr().out.splitlines(), "1 image", "transparent")


@pytest.mark.parametrize("change", ["palette", "undistorted", "turned"])
def test_images_with_alpha_that_are_written_anew_keep_it(tmp_path, change):
    """Colours are those of what can be seen, up to its edge."""
    model = "OPENCV" if change == "undistorted" else "PINHOLE"
    source = colmap_project(tmp_path / "in", model=model)
    image = half_transparent("palette" if change == "palette" else "RGBA")
    expected = np.asarray(half_transparent())
    if change == "undistorted":
        colours = np.asarray(image).copy()
        colours[:, :32, :3] = (255, 0, 0)
        colours[:, 32:, :3] = (10, 200, 30)
        image = Image.fromarray(colours)
    path = source / "images" / NAMES[0]
    if change == "turned":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    else:
        image.save(path)
    with Image.open(run_importer(source, tmp_path / "out").image_path(0)) as written:
        assert (written.mode, written.format) == ("RGBA", "PNG")
        found = np.asarray(written).astype(int)
    if change != "undistorted":
        assert np.array_equal(found[..., 3], expected[..., 3])
        assert np.abs(found - expected)[:, 32:].mean() < 12
        return
    assert np.all(np.abs(found[found[..., 3] > 20][:, :3] - [10, 200, 30]) <= 3)
    assert set(np.unique(found[:, [0, -1], 3])) == {0, 255} and np.unique(found[..., 3]).size > 5


def test_jpeg_files_of_several_pictures_keep_their_bytes(tmp_path):
    """As phones write them (MPO)."""
    source = colmap_project(tmp_path / "in", names=["a.jpg"])
    path = source / "images" / "a.jpg"
    image = Image.fromarray(lens_image(0, "PINHOLE"))
    image.save(path, "mpo", save_all=True, append_images=[image])
    scene = run_importer(source, tmp_path / "out")
    assert scene.image_path(0).name == "00000.jpg" and scene.image_path(0).read_bytes() == path.read_bytes()


def test_undistorted_jpeg_stays_jpeg(tmp_path):
    names = [name.replace("png", "jpg") for name in NAMES]
    source = tmp_path / "in"
    write_images(source / "images", "OPENCV", names, form="jpeg", quality=98, subsampling=0)
    write_colmap(source / "sparse" / "0", model="OPENCV", names=names)
    scene = run_importer(source, tmp_path / "out")
    with Image.open(scene.image_path(0)) as image:
        assert image.format == "JPEG" and image.layer[0][1:3] == image.layer[1][1:3]
    assert abs(pixels(scene, 1) - pinhole_image(1, scene.fxfycxcy[1])).mean() < 1.5


# ---------------------------------------------------------------- what cannot be used


def damage(source, name, change):
    path = source / "sparse" / "0" / name
    path.write_bytes(change(path.read_bytes()))


def replace_pose(source, values):
    w2c = room().w2c.copy()
    w2c[1, :3, 3] = values
    write_colmap(source / "sparse" / "0", w2c=w2c)


LOST_FRAMES = {
    "missing image": (lambda s: (s / "images" / NAMES[1]).unlink(), NAMES[1]),
    "no image": (lambda s: (s / "images" / NAMES[1]).write_bytes(b"nothing"), NAMES[1]),
    "cut short": (lambda s: cut(s / "images" / NAMES[1]), "decoded"),
    "other shape": (lambda s: Image.new("RGB", (48, 64)).save(s / "images" / NAMES[1]), NAMES[1]),
    "pose is NaN": (lambda s: replace_pose(s, [np.nan, 0, 0]), "not finite"),
    "pose far away": (lambda s: replace_pose(s, [1e30, 0, 0]), "1e+30"),
    "folder": (lambda s: ((s / "images" / NAMES[1]).unlink(), (s / "images" / NAMES[1]).mkdir()), NAMES[1]),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("what", LOST_FRAMES)
def test_a_frame_that_cannot_be_used_costs_only_itself(tmp_path, capsys, what):
    change, culprit = LOST_FRAMES[what]
    source = colmap_project(tmp_path / "in")
    change(source)
    scene = run_importer(source, tmp_path / "out")
    assert [path is None for path in scene.image_paths] == [False, True, False]
    output = capsys.readouterr()
    check_told(output.out.splitlines(), "2 of 3 images")
    check_told(output.err.splitlines(), "frame 1", culprit)
    lost = json.loads((tmp_path / "out" / "lost.json").read_text())
    assert list(lost) == ["clip in, frame 1"]
    check_names(lost["clip in, frame 1"], culprit)


OUTSIDE = ["../secret.png", "images/../../secret.png", "/secret.png"]


@pytest.mark.parametrize("name", [*OUTSIDE, "link.png"])
@pytest.mark.parametrize("form", ["colmap", "transforms", "opencv_cameras"])
def test_images_outside_the_source_are_refused_and_may_be_allowed(tmp_path, name, form):
    write_images(tmp_path, names=["secret.png"])
    source = tmp_path / "in"
    write_images(source / "images")
    if name.startswith("/"):
        name = str(tmp_path / "secret.png")
    if form == "colmap":
        link = source / "images" / "link.png"
        name = name if name == "link.png" else name.replace("../", "../../", 1) if name.startswith("..") else name
        write_colmap(source / "sparse" / "0", names=[NAMES[0], name])
    else:
        link = source / "link.png"
        images = [f"images/{NAMES[0]}", name]
        write_json(source / f"{form}.json", transforms(images) if form == "transforms" else opencv_cameras(images))
    link.symlink_to(tmp_path / "secret.png")
    scene = run_importer(source, tmp_path / "out")
    assert sum(path is not None for path in scene.image_paths) == 1
    (reason,) = json.loads((tmp_path / "out" / "lost.json").read_text()).values()
    check_names(reason, name, "--allow_outside_images")
    assert not [path for path in tmp_path.rglob("*") if path.stem == "secret" and path.parent != tmp_path]
    scene = run_importer(source, tmp_path / "allowed", "--allow_outside_images")
    if "images/.." not in name or form != "colmap":
        assert all(path is not None for path in scene.image_paths)


BAD_MODELS = {
    "no images": (lambda s: write_colmap(s / "sparse" / "0", names=[]), "sparse/0"),
    "no cameras": (lambda s: damage(s, "cameras.bin", lambda _: struct.pack("<Q", 0)), "7"),
    "unknown camera model": (lambda s: write_colmap(s / "sparse" / "0", model=99, parameters=[1.0] * 4), "99"),
    "camera model FOV": (lambda s: write_colmap(s / "sparse" / "0", model=7, parameters=[60.0] * 5), "FOV"),
    "thin prism": (lambda s: write_colmap(s / "sparse" / "0", model=10, parameters=[9.0] * 12), "THIN_PRISM_FISHEYE"),
    "focal length NaN": (lambda s: write_colmap(s / "sparse" / "0", parameters=[np.nan, 1, 1, 1]), "fx"),
    "focal length 0": (lambda s: write_colmap(s / "sparse" / "0", parameters=[0.0, 1, 1, 1]), "focal length"),
    "size 0": (lambda s: write_colmap(s / "sparse" / "0", size=(0, 48)), "0x48"),
    "empty cameras": (lambda s: damage(s, "cameras.bin", lambda _: b""), "cameras.bin"),
    "cut cameras": (lambda s: damage(s, "cameras.bin", lambda b: b[:-3]), "cameras.bin"),
    "cut images": (lambda s: damage(s, "images.bin", lambda b: b[:-3]), "images.bin"),
    "endless images": (lambda s: damage(s, "images.bin", lambda b: b"\xff" * 8 + b[8:]), "images.bin"),
    "endless points": (lambda s: damage(s, "images.bin", lambda b: b[:-56] + b"\xff" * 8 + b[-48:]), "images.bin"),
    "endless name": (lambda s: damage(s, "images.bin", lambda b: b[:72] + b"a" * 9000), "images.bin"),
    "name of bytes": (
        lambda s: damage(s, "images.bin", lambda b: b.replace(b"view", b"\xff\xfe\xff\xfe")),
        "images.bin",
    ),
    "no image file": (lambda s: shutil.rmtree(s / "images"), NAMES[0]),
}


@pytest.mark.parametrize("what", BAD_MODELS)
def test_a_model_that_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, what):
    change, culprit = BAD_MODELS[what]
    source = colmap_project(tmp_path / "in")
    change(source)
    with refused(culprit):
        run_importer(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_LINES = {
    "camera without numbers": ("cameras.txt", "1 PINHOLE\n", "cameras.txt"),
    "camera with a word": ("cameras.txt", "1 PINHOLE 64 48 a b c d\n", "cameras.txt"),
    "camera of no number": ("cameras.txt", "x PINHOLE 64 48 60 60 32 24\n", "cameras.txt"),
    "unknown model": ("cameras.txt", "7 MAGIC 64 48 60 60 32 24\n", "MAGIC"),
    "too few parameters": ("cameras.txt", "7 PINHOLE 64 48 60 60 32\n", "PINHOLE"),
    "two of one number": ("cameras.txt", "7 PINHOLE 64 48 60 60 32 24\n" * 2, "sparse/0"),
    "image without a name": ("images.txt", "1 1 0 0 0 0 0 0 7\n\n", "images.txt"),
    "no text": ("images.txt", "\udcff", "images.txt"),
    "quaternion of zeros": ("images.txt", f"1 0 0 0 0 0 0 0 7 {NAMES[0]}\n\n", NAMES[0]),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_text_models_that_cannot_be_used(tmp_path, what):
    name, text, culprit = BAD_LINES[what]
    source = colmap_project(tmp_path / "in", binary=False)
    (source / "sparse" / "0" / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with refused(culprit):
        run_importer(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed(**values):
    return lambda: transforms([f"images/{name}" for name in NAMES], **values)


def with_matrix(matrix):
    record = transforms([f"images/{name}" for name in NAMES])
    for frame in record["frames"]:
        frame["transform_matrix"] = matrix
    return record


def with_path(path):
    record = transforms([path])
    return record


BAD_JSON = {
    "empty": (lambda: "", "transforms.json"),
    "no JSON": (lambda: "{'a'", "transforms.json"),
    "empty object": (lambda: {}, "transforms.json"),
    "no frames": (lambda: {"frames": []}, "transforms.json"),
    "frames are numbers": (lambda: {"frames": [1]}, "transforms.json"),
    "unknown camera model": (changed(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR"),
    "camera model of no text": (changed(camera_model=["a"]), "camera_model"),
    "k4": (changed(k4=0.1), "k4"),
    "no focal length": (changed(fl_x=None), "fl_x"),
    "NaN": (changed(fl_x=float("nan")), "fx"),
    "a word": (changed(fl_x="long"), "fl_x"),
    "field of view": (changed(fl_x=None, camera_angle_x=60), "camera_angle_x"),
    "size": (changed(w=float("inf")), "inf"),
    "other shape": (changed(w=48, h=64), "48x64"),
    "matrix missing": (lambda: with_matrix(None), "transform_matrix"),
    "matrix of words": (lambda: with_matrix([["a"]]), "transform_matrix"),
    "matrix of zeros": (lambda: with_matrix(np.zeros((4, 4)).tolist()), "transform_matrix"),
    "matrix of NaN": (lambda: with_matrix(np.full((4, 4), np.nan).tolist()), "not finite"),
    "mirrored": (lambda: with_matrix(np.diag([-1.0, 1, 1, 1]).tolist()), "mirrored"),
    "scaled": (lambda: with_matrix(np.diag([2.0, 2, 2, 1]).tolist()), "scales"),
    "missing image": (lambda: with_path("images/none.png"), "images/none.png"),
    "empty path": (lambda: with_path(""), "''"),
    "path of zeros": (lambda: with_path("a\0b.png"), "a\\x00b.png"),
    "half a character": (lambda: with_path("\ud800.png"), "\\ud800.png"),
    "long path": (lambda: with_path("a" * 5000 + ".png"), re.compile("'aaa")),
    "path is a number": (lambda: with_path(7), "file_path"),
    "folder": (lambda: with_path("images"), "images"),
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_json_that_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, what):
    make, culprit = BAD_JSON[what]
    source = transforms_project(tmp_path / "in")
    content = make()
    (source / "transforms.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with refused(culprit):
        run_importer(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(tmp_path):
    with refused(str(tmp_path / "none")):
        run_importer(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with refused(str(tmp_path / "empty")):
        run_importer(tmp_path / "empty", tmp_path / "out")
    write_images(tmp_path / "photos")
    other = write_json(tmp_path / "other.json", {"frames": [{"a": 1}]})
    with refused(str(other)):
        run_importer(other, tmp_path / "out")
    for kind, culprit in (("colmap", "COLMAP"), ("opencv_cameras", "opencv_cameras.json"), ("re10k_text", "text")):
        with refused(culprit):
            run_importer(tmp_path / "photos", tmp_path / "out", "--kind", kind)
    assert not (tmp_path / "out").exists()


def test_names_of_scenes(tmp_path):
    source = colmap_project(tmp_path / "Küche & Bad")
    assert run_importer(source, tmp_path / "out").name == "K_che_Bad"
    with refused("--name", "../up"):
        run_importer(source, tmp_path / "out", "--name", "../up")


def test_a_text_of_re10k_with_a_bad_line(tmp_path):
    write_images(tmp_path / "in", names=["99000.png"])
    lines = re10k_lines()
    (tmp_path / "in" / "clip.txt").write_text("\n".join([*lines[:2], "132000 1 2"]))
    with refused(str(tmp_path / "in" / "clip.txt"), "line 3"):
        run_importer(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "clip.txt").write_text("\n".join(lines))
    scene = run_importer(tmp_path / "in", tmp_path / "out")
    assert [path is None for path in scene.image_paths] == [False, True, True]

"""Photographs without cameras: all but what COLMAP does, which test_reference.py shows on real ones."""

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data.importers import photographs
from data.importers.lens import make_lens
from data.importers.structure import Placed, Structure
from tests.captures import NAMES, colmap_project, lens_image, room, run_importer, write_images
from tests.chunks import contents
from tests.messages import check_names, check_told, refused

TURNS = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def photograph(path, view=0, tag=1, focal35=None):
    """A JPEG image as a phone writes it."""
    image = Image.fromarray(lens_image(view, "PINHOLE"))
    exif = Image.Exif()
    exif[0x0112] = tag
    if focal35 is not None:
        exif.get_ifd(0x8769)[0xA405] = focal35
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.transpose(TURNS[tag]) if tag in TURNS else image).save(path, quality=98, subsampling=0, exif=exif)


@pytest.fixture
def colmap(monkeypatch):
    """Stands for COLMAP: it keeps what it is given, and places all photographs but the fourth."""
    given = {}

    def find_structure(images, focal_lengths):
        given.update(images=images, focal_lengths=focal_lengths)
        lens = make_lens("SIMPLE_RADIAL", images[0].size, [60.0, 32.0, 24.0, 0.0])
        placed = [Placed(number, room().w2c[number], lens) for number in range(min(3, len(images)))]
        return Structure(placed, 0.5, 1.0)

    monkeypatch.setattr(photographs, "find_structure", find_structure)
    return given


def test_focal_lengths_of_exif_data_and_cameras_become_a_scene(tmp_path, colmap, capsys):
    for view in range(3):
        photograph(tmp_path / "in" / f"{view}.jpg", view, focal35=27 + view)
    scene = run_importer(tmp_path / "in", tmp_path / "out")
    assert colmap["focal_lengths"] == pytest.approx([(27 + n) / 36 * 64 for n in range(3)])
    np.testing.assert_allclose(scene.w2c, room().w2c)
    np.testing.assert_allclose(scene.fxfycxcy, [[60, 60, 32, 24]] * 3)
    lines = capsys.readouterr().out.splitlines()
    check_names(lines[0], tmp_path / "in", "COLMAP")
    check_told(lines, "3 of 3 photographs", "0.50 pixels")
    check_told(lines, "1.0°", "move the camera")
    check_told(lines, "1.250", "wrong")
    assert scene.image_path(1).read_bytes() == (tmp_path / "in" / "1.jpg").read_bytes()


def test_cameras_are_not_looked_for_again_where_the_scene_is_there(tmp_path, colmap, capsys):
    write_images(tmp_path / "in")
    run_importer(tmp_path / "in", tmp_path / "out")
    before = contents(tmp_path / "out")
    colmap.clear()
    capsys.readouterr()
    run_importer(tmp_path / "in", tmp_path / "out", "--fov", 60)
    assert colmap == {} and contents(tmp_path / "out") == before
    lines = capsys.readouterr().out.splitlines()
    check_names(lines[0], "in", tmp_path / "out" / "metadata" / "in.json", "--name")
    check_told(lines, "0 scenes", "1 already there")
    run_importer(tmp_path / "in", tmp_path / "out", "--name", "again")
    assert colmap["images"]


@pytest.mark.parametrize("tag", TURNS)
def test_photographs_are_turned_before_they_are_matched(tmp_path, colmap, tag):
    for view in range(3):
        photograph(tmp_path / "in" / f"{view}.jpg", view, tag)
    scene = run_importer(tmp_path / "in", tmp_path / "out", "--focal35", 36)
    assert colmap["focal_lengths"] == [64.0] * 3
    for image in (colmap["images"][0], Image.open(scene.image_path(0))):
        assert abs(np.asarray(image).astype(int) - lens_image(0, "PINHOLE")).mean() < 3


def test_large_photographs_are_matched_as_copies(tmp_path, colmap, monkeypatch):
    monkeypatch.setattr(photographs, "_LONGEST", 32)
    write_images(tmp_path / "in")
    scene = run_importer(tmp_path / "in", tmp_path / "out", "--fov", 90)
    assert colmap["images"][0].size == (32, 24) and colmap["focal_lengths"] == pytest.approx([16.0] * 3)
    np.testing.assert_allclose(scene.fxfycxcy[0], [120, 120, 64, 48])


def test_what_was_not_placed_or_read_is_named(tmp_path, colmap, capsys):
    write_images(tmp_path / "in", names=NAMES)
    photograph(tmp_path / "in" / "z.jpg")
    (tmp_path / "in" / "phone.HEIC").write_bytes(b"something")
    assert len(run_importer(tmp_path / "in", tmp_path / "out")) == 3
    lines = capsys.readouterr().out.splitlines()
    check_told(lines, "1 photograph", "z.jpg")
    check_told(lines, "phone.HEIC", "JPEG")
    check_told(lines, "guessed", "--focal35")


def test_copies_of_a_photograph_are_left_out_and_named(tmp_path, colmap, capsys):
    contents = write_images(tmp_path / "in")
    (tmp_path / "in" / "view_10 (1).png").write_bytes(contents[1])
    assert len(run_importer(tmp_path / "in", tmp_path / "out")) == 3
    check_told(capsys.readouterr().out.splitlines(), "1 photograph", "view_10.png", "view_10 (1).png")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_identical_photographs_are_refused_and_named(tmp_path, count):
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        write_images(tmp_path / "in", names=[name])
    with refused(str(tmp_path / "in"), "1 photograph", *names[:2]):
        run_importer(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["16-bit", "CMYK"])
def test_photographs_of_other_pixels_are_matched_and_written_as_rgb(tmp_path, colmap, kind):
    write_images(tmp_path / "in")
    plain = lens_image(0, "PINHOLE")
    if kind == "CMYK":
        Image.fromarray(plain).convert("CMYK").save(tmp_path / "in" / NAMES[0], "jpeg", quality=98)
    else:
        cv2.imwrite(str(tmp_path / "in" / NAMES[0]), plain[..., ::-1].astype(np.uint16) * 257)
    scene = run_importer(tmp_path / "in", tmp_path / "out", "--fov", 60)
    for image in (colmap["images"][1], Image.open(scene.image_path(0))):
        assert image.mode == "RGB" and image.size == (64, 48)
    assert len(scene) == 3 and colmap["images"][0].mode == "RGB"


def test_photographs_may_have_any_name(tmp_path, colmap):
    names = ["my photo (2).png", "Küche ü.png", "右.png"]
    contents = write_images(tmp_path / "mein Urlaub", names=names)
    scene = run_importer(tmp_path / "mein Urlaub", tmp_path / "out")
    assert {path.read_bytes() for path in scene.image_paths} == set(contents) and scene.name == "mein_Urlaub"


def test_heic_files_are_named_as_such(tmp_path):
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"IMG_{number}.HEIC").write_bytes(heic)
    with refused(str(tmp_path / "in"), "IMG_0.HEIC", "JPEG"):
        run_importer(tmp_path / "in", tmp_path / "out")
    source = colmap_project(tmp_path / "model", names=["a.heic", "b.png", "c.png"])
    (source / "images" / "a.heic").write_bytes(heic)
    assert len(run_importer(source, tmp_path / "out")) == 3
    (reason,) = json.loads((tmp_path / "out" / "lost.json").read_text()).values()
    check_names(reason, "a.heic", "HEIC", "JPEG")


def test_photographs_that_are_not_enough(tmp_path):
    write_images(tmp_path / "one", names=["a.png"])
    (tmp_path / "one" / "b.heic").write_bytes(b"something")
    with refused(str(tmp_path / "one"), "1 photograph", "b.heic"):
        run_importer(tmp_path / "one", tmp_path / "out")
    write_images(tmp_path / "two", names=["a.png", "b.png"])
    with refused("a.png", "--fov", "--focal35"):
        run_importer(tmp_path / "two", tmp_path / "out")
    (tmp_path / "two" / "b.png").write_bytes(b"nothing")
    with refused(str(tmp_path / "two" / "b.png")):
        run_importer(tmp_path / "two", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photographs_that_share_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "find_structure", lambda *_: None)
    write_images(tmp_path / "in")
    with refused(str(tmp_path / "in"), "3 photographs"):
        run_importer(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_colmap_finds_nothing_in_photographs_that_share_nothing(tmp_path):
    pytest.importorskip("pycolmap")
    (tmp_path / "in").mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(coarse).resize((160, 120)).save(tmp_path / "in" / f"{seed}.jpg")
    with refused(str(tmp_path / "in"), "3 photographs"):
        run_importer(tmp_path / "in", tmp_path / "out", "--fov", 60)
    assert not (tmp_path / "out").exists()


def test_without_pycolmap_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    write_images(tmp_path / "in")
    with refused("requirements-photos.txt"):
        run_importer(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [(["--fov", 69, "--focal35", 26], "--focal35"), (["--fov", 200], "--fov"), (["--focal35", 1], "--focal35")],
)
def test_focal_lengths_that_are_none(tmp_path, options, culprit):
    write_images(tmp_path / "in")
    with refused(culprit):
        run_importer(tmp_path / "in", tmp_path / "out", *options)

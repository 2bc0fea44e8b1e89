"""Where images may lie and are looked for, and what is said once of them."""

import errno
import json
import logging
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import loader
from data.dataset import DataConfig, EvaluationDataset, TrainingDataset, Unusable, ViewLoader
from data.loader import LoaderConfig, TrainingLoader, evaluation_batches
from data.scene import read_scene, read_scene_list
from data.views import Selection, ViewSelectorConfig
from tests.chunks import wide_png
from tests.helpers import write_toy_scene, write_toy_set
from tests.messages import check_names, refused
from utils.errors import InputError


def images_at(path, text):
    """Have the metadata name its images by `text`, in which {name} stands for the file's name."""
    record = json.loads(path.read_text())
    for frame in record["frames"]:
        frame["image_path"] = text.format(name=Path(frame["image_path"]).name)
    path.write_text(json.dumps(record))


def view_loader(**changes):
    return ViewLoader(DataConfig(view_selector=ViewSelectorConfig(8, 13), **changes), image_size=16, patch_size=4)


@pytest.fixture
def scene(tmp_path):
    """A scene in a set, and its images once more beside the set."""
    path = write_toy_scene(tmp_path / "sets" / "mine", "a", 3)
    shutil.copytree(tmp_path / "sets" / "mine" / "images" / "a", tmp_path / "sets" / "other")
    return path


def can_read(path, allow_outside):
    """Whether the first frame can be read; the reason must name scene or file, and the key."""
    try:
        read_scene(path, allow_outside).image_path(0)
    except InputError as error:
        assert str(path.parent.parent) in str(error)
        check_names(str(error), "frame 0", "training.allow_outside_images")
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "../../other/{name}",
        "../images/../../other/{name}",
        "{root}/sets/other/{name}",
        "/etc/{name}",
        "../../mine2/{name}",
    ],
)
def test_images_outside_the_set_are_read_only_on_request(tmp_path, scene, text):
    shutil.copytree(tmp_path / "sets" / "other", tmp_path / "sets" / "mine2")
    images_at(scene, text.replace("{root}", str(tmp_path)))
    assert not can_read(scene, allow_outside=False)
    assert can_read(scene, allow_outside=True)


def link_file(images, outside):
    (images / "00000.jpg").unlink()
    (images / "00000.jpg").symlink_to(outside / "00000.jpg")


def link_folder(images, outside):
    shutil.rmtree(images)
    images.symlink_to(outside)


def link_all(images, outside):
    shutil.move(images.parent, outside.parent / "images")
    images.parent.symlink_to(outside.parent / "images")


def link_in_circles(images, _):
    (images / "00000.jpg").unlink()
    (images / "00000.jpg").symlink_to(images / "00000.jpg")


@pytest.mark.parametrize("link", [link_file, link_folder, link_all])
def test_links_out_of_the_set_are_followed_only_on_request(tmp_path, scene, link):
    link(scene.parent.parent / "images" / "a", tmp_path / "sets" / "other")
    assert not can_read(scene, allow_outside=False)
    assert can_read(scene, allow_outside=True)


def test_links_that_lead_nowhere_are_refused_in_one_line(tmp_path, scene):
    link_in_circles(scene.parent.parent / "images" / "a", None)
    assert not can_read(scene, allow_outside=False)
    found = EvaluationDataset(view_loader(allow_outside_images=True), [(scene, Selection([0, 2], [1]))])[0]
    assert isinstance(found, Unusable) and "frame 0" in found.reason


def test_links_within_the_set_and_of_the_whole_set_are_fine(tmp_path, scene):
    images = scene.parent.parent / "images"
    shutil.move(images / "a", images / "b")
    (images / "a").symlink_to(images / "b")
    link_within = images / "b" / "00000.jpg"
    shutil.move(link_within, images / "b" / "first.jpg")
    link_within.symlink_to("first.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "sets" / "mine")
    assert can_read(scene, allow_outside=False)
    assert can_read(tmp_path / "link" / "metadata" / "a.json", allow_outside=False)


def test_a_metadata_folder_that_is_a_link_has_its_images_where_the_system_finds_them(tmp_path, scene):
    (tmp_path / "shortcut").symlink_to(scene.parent)
    path = read_scene(tmp_path / "shortcut" / "a.json").image_path(0)
    assert path.samefile(scene.parent.parent / "images" / "a" / "00000.jpg")


@pytest.mark.parametrize("text", ["{root}/sets/mine/images/a/{name}", "..\\images\\a\\{name}", "../images/./a/{name}"])
def test_absolute_and_unlike_paths_within_the_set_load(tmp_path, scene, text):
    images_at(scene, text.replace("{root}", str(tmp_path)))
    found = read_scene(scene)
    assert found.image_path(1) == tmp_path / "sets" / "mine" / "images" / "a" / "00001.jpg" and not found.notes


def test_one_image_outside_costs_its_frame(tmp_path, scene):
    record = json.loads(scene.read_text())
    record["frames"][1]["image_path"] = "../../other/00001.jpg"
    scene.write_text(json.dumps(record))
    found = read_scene(scene)
    assert found.fault(0) is None and "lies outside" in found.fault(1)


def test_metadata_may_lie_in_the_working_directory(monkeypatch, scene):
    monkeypatch.chdir(scene.parent)
    assert read_scene(Path("a.json")).image_path(0).is_file()
    monkeypatch.chdir(scene.parent.parent)
    assert read_scene(Path("metadata/a.json")).image_path(0).is_file()
    monkeypatch.chdir(scene.parent.parent / "images")
    assert read_scene(Path("../metadata/a.json")).image_path(0).is_file()


def test_messages_name_images_plainly(scene):
    (scene.parent.parent / "images" / "a" / "00001.jpg").unlink()
    found = EvaluationDataset(view_loader(), [(scene, Selection([0, 2], [1]))])[0]
    assert f"image not found: {scene.parent.parent}/images/a/00001.jpg" in found.reason


# Files that the system does not let be looked at


def no_such_name(frame, _images):
    frame["image_path"] = "../images/" + "x" * 300 + ".jpg"


def too_deep(frame, _images):
    frame["image_path"] = "../images/" + "x/" * 4000 + "0.jpg"


def folder_too_long(frame, _images):
    frame["image_path"] = "../images/" + "x" * 300 + "/00001.jpg"


def folder_in_circles(frame, images):
    (images.parent / "circle").symlink_to(images.parent / "circle")
    frame["image_path"] = "../images/circle/00001.jpg"


def below_a_file(frame, images):
    frame["image_path"] = "../images/a/00000.jpg/00001.jpg"


def a_pipe(_frame, images):
    (images / "00001.jpg").unlink()
    os.mkfifo(images / "00001.jpg")


UNREACHABLE = [no_such_name, too_deep, folder_too_long, folder_in_circles, below_a_file, a_pipe]


def spoil_frame(path, change):
    """Change frame 1 of a scene."""
    record = json.loads(path.read_text())
    change(record["frames"][1], path.parent.parent / "images" / path.stem)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("change", UNREACHABLE)
def test_an_image_that_cannot_be_looked_at_costs_its_frame(tmp_path, change, allow):
    path = write_toy_scene(tmp_path / "set", "a", 4)
    spoil_frame(path, change)
    items = [(path, Selection([0, 3], [1])), (path, Selection([0, 3], [2]))]
    found = EvaluationDataset(view_loader(allow_outside_images=allow), items)
    assert "scene a, frame 1" in found[0].reason and found[0].reason.isprintable()
    assert found[1].scenes == ["a"]


@pytest.mark.parametrize("owner", ["lstat", "open"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_error_of_the_system_costs_the_scene(tmp_path, monkeypatch, owner, code):
    path = write_toy_scene(tmp_path / "set", "a", 4)
    items = [(path, Selection([0, 3], [1])), (path, Selection([0, 3], [2]))]
    true = getattr(os, owner)

    def failing(file, *args, **kwargs):
        if str(file).endswith("00001.jpg"):
            raise OSError(code, os.strerror(code), str(file))
        return true(file, *args, **kwargs)

    monkeypatch.setattr(os, owner, failing)
    # Newer releases of Python ask the system by other ways.
    if owner == "lstat":
        monkeypatch.setattr(Path, "is_symlink", lambda path: stat.S_ISLNK(failing(path).st_mode))
    found = EvaluationDataset(view_loader(), items)
    assert "scene a, frame 1" in found[0].reason and os.strerror(code) in found[0].reason
    assert found[1].scenes == ["a"]


@pytest.mark.parametrize("change", [no_such_name, folder_in_circles])
def test_loader_processes_leave_such_a_scene_out(tmp_path, change):
    path = write_toy_set(tmp_path, scenes=2)
    record = json.loads(read_scene_list(path)[0].read_text())
    for frame in record["frames"]:
        (tmp_path / "images" / "circle").unlink(missing_ok=True)
        change(frame, tmp_path / "images" / "scene0")
    read_scene_list(path)[0].write_text(json.dumps(record))
    dataset = TrainingDataset(view_loader(dataset_path=str(path)), seed=0)
    loading = TrainingLoader(dataset, LoaderConfig(1, 2), 2, 0, 1, 0)
    batch = next(loading)
    assert batch.scenes == ["scene1", "scene1"]
    assert len(batch.failures) == 1 and "scene scene0, frame " in batch.failures[0]


def test_images_of_unlike_sizes_do_not_share_intrinsics(tmp_path):
    path = write_toy_scene(tmp_path, "a", 5)
    image = tmp_path / "images" / "a" / "00002.jpg"
    Image.open(image).resize((54, 36)).save(image)
    dataset = EvaluationDataset(view_loader(), [(path, Selection([0, 4], [t])) for t in (1, 2)])
    assert dataset[0].scenes == ["a"]
    assert "scene a: frame 0 (48x32 pixels) and frame 2 (54x36 pixels)" in dataset[1].reason
    assert str(path) in dataset[1].reason
    record = json.loads(path.read_text())
    record["frames"][2]["fxfycxcy"] = [45.0, 45.0, 27.0, 18.0]
    path.write_text(json.dumps(record))
    torch.testing.assert_close(dataset[1].views.cameras.fxfycxcy[2], dataset[0].views.cameras.fxfycxcy[0])


# Sets that other programs wrote, or that were moved


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        ("preprocessed_data/train/images/scene0/{name}", "."),
        ("preprocessed_data/train/images/scene0/{name}", "/"),
        ("./preprocessed_data/train/images/scene0/{name}", "."),
        ("somewhere/else/images/scene0/{name}", "/"),
        ("/mnt/of/another/machine/images/scene0/{name}", "/"),
        ("preprocessed_data\\train\\images\\scene0\\{name}", "/"),
    ],
)
@pytest.mark.parametrize("first_is_there", [True, False])
def test_sets_of_the_published_preprocessing_load(tmp_path, monkeypatch, text, directory, first_is_there):
    root = tmp_path / "preprocessed_data" / "train"
    write_toy_set(root, scenes=1)
    images_at(root / "metadata" / "scene0.json", text)
    if not first_is_there:
        (root / "images" / "scene0" / "00000.jpg").unlink()
    monkeypatch.chdir(tmp_path if directory == "." else directory)
    found = read_scene(root / "metadata" / "scene0.json")
    assert found.image_path(5) == root / "images" / "scene0" / "00005.jpg"
    assert str(root) in found.notes["layout"]


def test_images_are_found_from_the_working_directory(tmp_path, monkeypatch):
    root = tmp_path / "data" / "mine"
    write_toy_scene(root, "a", 3)
    shutil.move(root / "images" / "a", root / "frames")
    images_at(root / "metadata" / "a.json", "data/mine/frames/{name}")
    monkeypatch.chdir(tmp_path)
    assert read_scene(root / "metadata" / "a.json").image_path(0).is_file()
    monkeypatch.chdir(root)
    assert not read_scene(root / "metadata" / "a.json").image_path(0).exists()


def test_images_from_the_working_directory_must_lie_in_the_set(tmp_path, monkeypatch):
    path = write_toy_scene(tmp_path / "set", "a", 3)
    shutil.move(tmp_path / "set" / "images" / "a", tmp_path / "frames")
    images_at(path, "frames/{name}")
    monkeypatch.chdir(tmp_path)
    assert not can_read(path, allow_outside=False)
    assert can_read(path, allow_outside=True)


# What is said once


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def wide_see_through(path):
    path.write_bytes(wide_png(np.full((32, 48, 3), 9 << 8, np.uint16), 2, [(b"tRNS", bytes(6))]))


def wide_gray_see_through(path):
    path.write_bytes(wide_png(np.full((32, 48, 1), 9 << 8, np.uint16), 0, [(b"tRNS", bytes(2))]))


def turned_png(path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(path).save(path, "PNG", exif=exif)


@pytest.mark.parametrize("resize", ["exact", "fast"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (turned, "orientation"),
        (turned_png, "orientation"),
        (wide_see_through, "transparent colour of 16 bits"),
        (wide_gray_see_through, "transparent colour of 16 bits"),
    ],
)
def test_what_of_an_image_is_not_used_is_said_once_with_scene_and_frame(
    tmp_path, monkeypatch, caplog, change, word, workers, resize
):
    monkeypatch.setattr(loader, "_said", set())
    path = write_toy_set(tmp_path, scenes=2)
    for image in (tmp_path / "images").glob("*/*.jpg"):
        change(image)
    loading = ViewLoader(view_loader(dataset_path=str(path)).cfg, 16, 4, fast=resize == "fast")
    with caplog.at_level(logging.WARNING, "lvsm"):
        batches = TrainingLoader(TrainingDataset(loading, 0), LoaderConfig(workers, 2), 2, 0, 1, 0)
        first = next(batches)
        next(batches)
        items = [(file, Selection([0, 2], [1])) for file in read_scene_list(path)]
        list(evaluation_batches(EvaluationDataset(loading, items), LoaderConfig(0, 2), 1, 0, 1))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    check_names(lines[0], word, f"scene {first.scenes[0]}, frame {first.frames[0, 0]}")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_orientation_costs_nothing(tmp_path, monkeypatch):
    path = write_toy_scene(tmp_path, "a", 3)
    for image in (tmp_path / "images" / "a").iterdir():
        Image.open(image).save(image, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + os.urandom(20))
    batch = EvaluationDataset(view_loader(), [(path, Selection([0, 2], [1]))])[0]
    assert batch.scenes == ["a"]


def test_scenes_that_cannot_be_read_come_by_themselves(tmp_path):
    path = write_toy_set(tmp_path, scenes=4)
    files = read_scene_list(path)
    (tmp_path / "images" / "scene1" / "00004.jpg").write_bytes(b"no image")
    files[2].unlink()
    dataset = EvaluationDataset(view_loader(), [(file, Selection([0, 9], [4])) for file in files])
    found = list(evaluation_batches(dataset, LoaderConfig(0, 2), 4, 0, 1))
    assert [batch.scenes for batch in found if not isinstance(batch, Unusable)] == [["scene0", "scene3"]]
    unusable = {item.scene: item.reason for item in found if isinstance(item, Unusable)}
    assert list(unusable) == ["scene1", "scene2"]
    check_names(unusable["scene1"], "scene scene1, frame 4")
    check_names(unusable["scene2"], files[2])


def test_training_on_a_set_of_outside_images_says_which_key(tmp_path):
    path = write_toy_set(tmp_path / "set", scenes=2)
    shutil.move(tmp_path / "set" / "images", tmp_path / "images")
    for file in read_scene_list(path):
        images_at(file, f"../../images/{file.stem}/{{name}}")
    with refused("training.allow_outside_images"):
        TrainingDataset(view_loader(dataset_path=str(path)), seed=0)[0]
    allowed = TrainingDataset(view_loader(dataset_path=str(path), allow_outside_images=True), seed=0)[0]
    assert np.isfinite(allowed.views.cameras.c2w.numpy()).all()

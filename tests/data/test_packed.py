"""Packed clips: a tar stands for the frames' files, and whatever is wrong with it costs a line."""

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from data import packing
from data.dataset import DataConfig, EvaluationDataset, TrainingDataset, Unusable, ViewLoader
from data.evaluation_index import make_indices
from data.packed import PackedImage
from data.scene import read_scene, read_scene_list
from data.transforms import open_image
from data.views import Selection, ViewSelectorConfig
from data.writing import ImportResult, SceneWriter
from evaluation.identity import identify_scene
from evaluation.items import check_saved_cameras
from tests.chunks import (
    contents,
    damaged_inside,
    jpeg,
    make_clip,
    names,
    names_in,
    preprocess,
    scene_of,
    write_chunks,
)
from tests.helpers import write_toy_set
from tests.messages import check_names, check_told, refused
from tests.processes import run
from tests.scenes import import_scenes, photographs
from utils.lock import LOCK_NAME


def pack_set(tmp_path, frames=14, scenes=3):
    """A set and the same packed; their lists."""
    loose = write_toy_set(tmp_path / "loose", scenes, frames)
    packing.main([str(loose), "--output_dir", str(tmp_path / "packed"), "--num_processes", "1"])
    return loose, tmp_path / "packed" / "full_list.txt"


def edit_frames(path, change):
    record = json.loads(path.read_text())
    for frame in record["frames"]:
        change(frame)
    path.write_text(json.dumps(record))


def samples(path, **settings):
    load = ViewLoader(DataConfig(dataset_path=str(path), num_views=4, **settings), 16, 8)
    dataset = TrainingDataset(load, seed=7)
    return [dataset[number] for number in range(6)]


SHORT = {"view_selector": ViewSelectorConfig(4, 8), "num_target_views": 2}


def test_packed_and_loose_scenes_give_the_same_samples(tmp_path):
    loose, packed = pack_set(tmp_path)
    for fast in ("exact", "fast"):
        read = [samples(path, image_resize=fast, **SHORT) for path in (loose, packed)]
        for one, other in zip(*read, strict=True):
            assert one.scenes == other.scenes and not other.failures
            assert all(map(torch.equal, one.tensors(), other.tensors()))


def test_a_list_may_mix_packed_and_loose(tmp_path):
    loose, _ = pack_set(tmp_path)
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("loose/metadata/scene0.json\npacked/metadata/scene1.json\nloose/metadata/scene2.json\n")
    for one, other in zip(samples(loose, **SHORT), samples(mixed, **SHORT), strict=True):
        assert all(map(torch.equal, one.tensors(), other.tensors()))


def test_any_tar_program_finds_the_bytes_of_the_frames(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a", 5)])
    preprocess(base, tmp_path / "loose")
    preprocess(base, tmp_path / "packed", "--pack")
    assert names(tmp_path / "packed" / "train" / "images") == ["a.tar"]
    subprocess.run(["tar", "xf", tmp_path / "packed/train/images/a.tar", "-C", tmp_path], check=True)
    loose = tmp_path / "loose" / "train" / "images" / "a"
    for number, name in enumerate(names(loose)):
        assert (tmp_path / name).read_bytes() == (loose / name).read_bytes()
        image = scene_of(tmp_path / "packed", "a").image_path(number)
        assert image.read(1 << 20) == (loose / name).read_bytes()
    with tarfile.open(tmp_path / "packed/train/images/a.tar") as tar:
        assert tar.getnames() == names(loose)


def test_unpacking_gives_the_set_back(tmp_path):
    loose, packed = pack_set(tmp_path)
    packing.main([str(packed), "--output_dir", str(tmp_path / "again"), "--unpack"])
    before = contents(loose.parent)
    after = contents(tmp_path / "again")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name] and "images" in name} == set()
    for path in read_scene_list(loose):
        one, other = read_scene(path), read_scene(tmp_path / "again" / "metadata" / path.name)
        assert np.array_equal(one.w2c, other.w2c) and np.array_equal(one.fxfycxcy, other.fxfycxcy)


def test_frames_that_were_lost_stay_lost_and_keep_their_numbers(tmp_path):
    root = tmp_path / "loose"
    import_scenes(root, [photographs("a", 4, images={1: b"nothing"})])
    with refused("1", tmp_path / "packed" / "lost.json"):
        packing.main([str(root / "full_list.txt"), "--output_dir", str(tmp_path / "packed")])
    scene = read_scene(tmp_path / "packed" / "metadata" / "a.json")
    assert [image and image.name for image in scene.image_paths] == ["00000.jpg", None, "00002.jpg", "00003.jpg"]
    assert np.array_equal(scene.w2c, read_scene(root / "metadata" / "a.json").w2c)


def test_a_frame_whose_camera_is_of_no_use_is_not_in_the_tar(tmp_path):
    w2c = np.tile(np.eye(4), (5, 1, 1))
    w2c[1, 2, 2] = w2c[3, 2, 2] = -1
    import_scenes(tmp_path, [photographs("a", 5, w2c=w2c)], packed=True)
    with tarfile.open(tmp_path / "images" / "a.tar") as tar:
        assert tar.getnames() == ["00000.jpg", "00002.jpg", "00004.jpg"]
    scene = read_scene(tmp_path / "metadata" / "a.json")
    for number in (0, 2, 4):
        assert scene.image_path(number).read(1 << 20) == jpeg(64, 36, number)


def test_a_second_run_leaves_what_is_packed_and_counts_what_is_not(tmp_path):
    import_scenes(tmp_path, [photographs("a")], packed=True)
    before = contents(tmp_path)
    result = import_scenes(tmp_path, [photographs("a")], packed=True)
    assert (result.kept, result.other_packing) == (1, 0) and contents(tmp_path) == before
    result = import_scenes(tmp_path, [photographs("a")])
    assert (result.kept, result.other_packing) == (1, 1) and contents(tmp_path) == before


def test_clips_of_the_other_packing_are_named(tmp_path, caplog):
    base, out = write_chunks(tmp_path, [make_clip("a"), make_clip("b")]), tmp_path / "out"
    preprocess(base, out)
    preprocess(base, out, "--pack")
    check_told(caplog.messages, "2 clips", "data.packing")


@pytest.mark.parametrize("packed", [True, False])
def test_what_a_run_of_the_other_packing_left_goes(tmp_path, packed):
    import_scenes(tmp_path, [photographs("a")], packed=not packed)
    (tmp_path / "metadata" / "a.json").unlink()
    import_scenes(tmp_path, [photographs("a")], packed=packed)
    assert names(tmp_path / "images") == (["a.tar"] if packed else ["a"])


def test_a_tar_that_ends_early_is_written_again(tmp_path):
    import_scenes(tmp_path, [photographs("a")], packed=True)
    before, tar = contents(tmp_path), tmp_path / "images" / "a.tar"
    os.truncate(tar, tar.stat().st_size - 2048)
    assert import_scenes(tmp_path, [photographs("a")], packed=True).written == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["file", "link", "folder"])
def test_what_is_not_ours_is_not_replaced_by_a_tar(tmp_path, what):
    place = tmp_path / "images" / "a.tar"
    place.parent.mkdir()
    if what == "file":
        place.write_text("my own words" * 100)
    elif what == "link":
        place.symlink_to(tmp_path / "elsewhere.tar")
    else:
        place.mkdir()
    lost = import_scenes(tmp_path, [photographs("a")], packed=True).lost
    check_names(lost["clip a"], place)
    assert import_scenes(tmp_path, [photographs("a")]).written == 1 and os.path.lexists(place)


def test_two_clips_whose_names_differ_by_tar_do_not_meet(tmp_path):
    assert import_scenes(tmp_path, [photographs("a"), photographs("a.tar")]).written == 2
    assert len(names(tmp_path / "images")) == 2


def check_third_clip_alone_is_lost(out):
    """What a run leaves that was killed when it moved the third of four clips into place."""
    assert names(out / "metadata") == ["a.json", "b.json"]
    left = [path.name for path in out.rglob(".*") if path.name != LOCK_NAME]
    assert len(left) == 1 and re.fullmatch(r"\.c\.lvsm-\w+\.tmp\.tar", left[0])


def test_a_killed_run_loses_the_clip_at_hand_alone(tmp_path):
    base, out = write_chunks(tmp_path, *([make_clip(key)] for key in "abcd")), tmp_path / "out"
    preprocess(base, tmp_path / "undisturbed", "--pack")
    arguments = ["--base_path", base, "--output_dir", out, "--mode", "train", "--num_processes", 1, "--pack"]
    assert run("-m", "tests.programs.run_struck", "tars", *arguments).returncode == -signal.SIGKILL
    check_third_clip_alone_is_lost(out / "train")
    preprocess(base, out, "--pack")
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_packing_that_is_killed_loses_the_clip_at_hand_alone(tmp_path):
    import_scenes(tmp_path / "loose", map(photographs, "abcd"))
    import_scenes(tmp_path / "undisturbed", map(photographs, "abcd"), packed=True)
    out = tmp_path / "out"
    arguments = [str(tmp_path / "loose" / "full_list.txt"), "--output_dir", str(out), "--num_processes", "1"]
    assert run("-m", "tests.programs.run_struck", "packing", *arguments).returncode == -signal.SIGKILL
    check_third_clip_alone_is_lost(out)
    packing.main(arguments)
    assert contents(out) == contents(tmp_path / "undisturbed")


# Damaged, moved and hostile ones


def cut_off(tar, metadata):
    os.truncate(tar, read_scene(metadata).image_path(3).end - 1)


def gone(tar, metadata):
    tar.unlink()


def replaced(tar, metadata):
    tar.write_bytes(b"\0" * tar.stat().st_size)


def other_tar(tar, metadata):
    shutil.copy(tar.with_name("scene1.tar"), tar)


def shifted(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(offset=frame["offset"] + 512))


def longer(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(length=frame["length"] + 1))


def beyond_all(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(offset=10**28))


def larger_than_any(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(length=10**28))


def renamed(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(member="00009\x1b.jpg"))


def as_pipe(tar, metadata):
    tar.unlink()
    os.mkfifo(tar)


def as_folder(tar, metadata):
    tar.unlink()
    tar.mkdir()


def led_out(tar, metadata):
    tar.rename(tar.parents[2] / "elsewhere.tar")
    tar.symlink_to(tar.parents[2] / "elsewhere.tar")


def pointing_out(tar, metadata):
    edit_frames(metadata, lambda frame: frame.update(image_path="../../scene0.tar"))


DAMAGES = [
    cut_off,
    gone,
    replaced,
    other_tar,
    shifted,
    longer,
    beyond_all,
    larger_than_any,
    renamed,
    as_pipe,
    as_folder,
    led_out,
    pointing_out,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("fast", [True, False])
def test_a_damaged_tar_is_named_with_scene_and_frame(tmp_path, damage, fast):
    _, packed = pack_set(tmp_path)
    metadata, tar = read_scene_list(packed)[0], packed.parent / "images" / "scene0.tar"
    damage(tar, metadata)
    load = ViewLoader(DataConfig(), 16, 8, fast)
    (unusable,) = [EvaluationDataset(load, [(metadata, Selection([3, 1], [2]))])[0]]
    assert isinstance(unusable, Unusable)
    culprits = ("scene0.json", "frame 0") if damage is pointing_out else ("scene scene0", "frame 3")
    check_names(unusable.reason, *culprits, tar.name)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": None},
        {"offset": 511},
        {"offset": -1},
        {"offset": "512"},
        {"offset": True},
        {"offset": 512.0},
        {"length": 0},
        {"length": []},
        {"member": 3},
        {"member": None},
        {"member": "../a.jpg"},
    ],
)
def test_a_place_that_is_none_costs_the_frame(tmp_path, change):
    _, packed = pack_set(tmp_path, scenes=1)
    (metadata,) = read_scene_list(packed)
    record = json.loads(metadata.read_text())
    record["frames"][2].update(change)
    metadata.write_text(json.dumps(record))
    scene = read_scene(metadata)
    with refused("scene0", "frame 2", "offset"):
        scene.image_path(2)
    assert isinstance(scene.image_path(1), PackedImage)


def test_training_goes_on_without_a_damaged_clip(tmp_path):
    _, packed = pack_set(tmp_path)
    (packed.parent / "images" / "scene0.tar").write_bytes(b"")
    read = samples(packed, **SHORT)
    assert {sample.scenes[0] for sample in read} == {"scene1", "scene2"}
    check_told([failure for sample in read for failure in sample.failures], "scene0")


# What else reads images


def test_the_state_of_the_tar_is_in_the_identity_of_a_scene(tmp_path):
    _, packed = pack_set(tmp_path)
    path, tar = read_scene_list(packed)[0], packed.parent / "images" / "scene0.tar"
    before = identify_scene("run", path, Selection([0, 1], [2]))
    assert before == identify_scene("run", path, Selection([0, 1], [2]))
    os.utime(tar, ns=(1, 1))
    assert before != identify_scene("run", path, Selection([0, 1], [2]))
    tar.unlink()
    with pytest.raises(OSError, match="scene0.tar"):
        identify_scene("run", path, Selection([0, 1], [2]))


def test_an_index_is_the_same_and_needs_the_tars(tmp_path):
    loose, packed = pack_set(tmp_path)
    made = [make_indices(read_scene_list(path), [2], 3, ViewSelectorConfig(4, 12), 0) for path in (loose, packed)]
    assert made[0] == made[1] and all(made[0][0][0].values())
    (packed.parent / "images" / "scene0.tar").unlink()
    (index,), faults = make_indices(read_scene_list(packed), [2], 3, ViewSelectorConfig(4, 12), 0)
    assert index["scene0"] is None
    check_names(faults[0], "scene0", "scene0.tar")


def test_saved_cameras_are_checked_with_the_size_of_packed_images(tmp_path):
    _, packed = pack_set(tmp_path)
    path = read_scene_list(packed)[0]
    edit_frames(path, lambda frame: frame.update(fxfycxcy=[40, 40, 60, 16]))
    with refused(path, "48x32"):
        check_saved_cameras(path, [(path, Selection([0, 1], [2]))], False)


def test_an_image_in_a_tar_opens_as_one(tmp_path):
    _, packed = pack_set(tmp_path)
    with open_image(read_scene(read_scene_list(packed)[0]).image_path(0)) as image:
        assert image.size == (48, 32)


# The command


def test_packing_goes_on_where_it_stopped(tmp_path, capsys):
    loose, packed = pack_set(tmp_path)
    before = contents(packed.parent)
    (packed.parent / "metadata" / "scene1.json").unlink()
    capsys.readouterr()
    packing.main([str(loose), "--output_dir", str(packed.parent), "--num_processes", "2"])
    assert contents(packed.parent) == before and "1 clip written, 2 already there" in capsys.readouterr().out


def test_a_set_is_not_packed_into_itself(tmp_path):
    loose = write_toy_set(tmp_path / "loose")
    before = contents(tmp_path)
    with refused("--output_dir", loose.parent):
        packing.main([str(loose), "--output_dir", str(loose.parent)])
    assert contents(tmp_path) == before


def test_two_scenes_of_one_name_and_unreadable_ones_are_named(tmp_path):
    loose = write_toy_set(tmp_path / "loose")
    (loose.parent / "metadata" / "scene1.json").write_text("{")
    write_toy_set(tmp_path / "other", scenes=1)
    shared = tmp_path / "all.txt"
    lines = [*(f"loose/metadata/scene{n}.json" for n in range(3)), "other/metadata/scene0.json"]
    shared.write_text("\n".join(lines))
    with refused("2"):
        packing.main([str(shared), "--output_dir", str(tmp_path / "packed")])
    lost = json.loads((tmp_path / "packed" / "lost.json").read_text())
    assert len(lost) == 2
    check_told(lost, tmp_path / "other" / "metadata" / "scene0.json")
    check_told(lost.values(), "scene1.json")
    assert names(tmp_path / "packed" / "metadata") == ["scene0.json", "scene2.json"]


# --check_images


@pytest.mark.parametrize("packed", [(), ("--pack",)])
def test_damaged_frames_are_found_by_decoding_them(tmp_path, packed):
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(), damaged_inside(), jpeg(seed=2)])])
    preprocess(base, tmp_path / "unchecked", *packed)
    assert None not in scene_of(tmp_path / "unchecked", "a").image_paths
    with refused("1", "lost.json"):
        preprocess(base, tmp_path / "checked", "--check_images", *packed)
    assert [image is None for image in scene_of(tmp_path / "checked", "a").image_paths] == [False, True, False]
    assert list(json.loads((tmp_path / "checked/train/lost.json").read_text())) == ["clip a, frame 1"]


@pytest.mark.parametrize("packed", [(), ("--pack",)])
def test_frames_that_are_there_are_decoded_too(tmp_path, packed):
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(), damaged_inside()])])
    preprocess(base, tmp_path / "out", *packed)
    before = contents(tmp_path / "out")
    with refused("1", "lost.json"):
        preprocess(base, tmp_path / "out", "--check_images", *packed)
    lost = json.loads((tmp_path / "out/train/lost.json").read_text())
    check_names(lost["clip a, frame 1"], tmp_path / "out/train/metadata/a.json")
    assert before.items() <= contents(tmp_path / "out").items() and names_in(tmp_path / "out") == ["a"]


def test_a_writer_by_itself_packs(tmp_path):
    writer, result = SceneWriter(tmp_path, packed=True), ImportResult()
    with writer.session():
        writer.add("a", lambda: photographs("a"), result)
    assert result.written == 1 and names(tmp_path / "images") == ["a.tar"]

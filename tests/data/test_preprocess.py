"""preprocess_data.py on good chunks, damaged ones and hostile ones."""

import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.importers import re10k
from data.scene import read_scene, read_scene_list
from data.synthetic.__main__ import main as synthetic_main
from data.transforms import read_image
from tests.chunks import (
    CHUNKS,
    camera_rows,
    contents,
    jpeg,
    make_clip,
    names,
    names_in,
    on_the_third_move,
    preprocess,
    preprocess_with_losses,
    scene_of,
    write_chunks,
)
from tests.helpers import ROOT
from tests.messages import check_error_line, check_names, check_told, refused
from tests.processes import run
from utils.errors import InputError
from utils.lock import LOCK_NAME


def states(folder):
    """What changes when a file is written again, even with the same bytes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt")
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


# Good chunks


def test_frames_keep_their_bytes_and_numbers(tmp_path):
    clips = [make_clip("a", 12), make_clip("b", 2)]
    preprocess(write_chunks(tmp_path, clips[:1], clips[1:]), tmp_path / "out")
    for clip in clips:
        folder = tmp_path / "out" / "train" / "images" / clip["key"]
        assert names(folder) == [f"{number:05d}.jpg" for number in range(len(clip["images"]))]
        for number, data in enumerate(clip["images"]):
            assert (folder / f"{number:05d}.jpg").read_bytes() == data.numpy().tobytes()
    assert names_in(tmp_path / "out") == ["a", "b"]


def test_metadata_holds_intrinsics_in_pixels_and_the_poses_exactly(tmp_path):
    clip = make_clip("a", 4)
    preprocess(write_chunks(tmp_path, [clip]), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "train" / "metadata" / "a.json").read_text())
    assert record["scene_name"] == "a" and len(record["frames"]) == 4
    for row, frame in zip(clip["cameras"].double().numpy(), record["frames"], strict=True):
        np.testing.assert_array_equal(frame["fxfycxcy"], row[:4] * [64, 36, 64, 36])
        np.testing.assert_array_equal(frame["w2c"], [*row[6:].reshape(3, 4), [0, 0, 0, 1]])


def test_scenes_survive_a_move_of_the_output_folder(tmp_path):
    clip = make_clip("a")
    preprocess(write_chunks(tmp_path, [clip]), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "train" / "full_list.txt").read_text() == "metadata/a.json\n"
    (path,) = read_scene_list(tmp_path / "moved" / "train" / "full_list.txt")
    assert str(tmp_path) not in path.read_text()
    read = [path.read_bytes() for path in read_scene(path).image_paths]
    assert read == [data.numpy().tobytes() for data in clip["images"]]


def test_png_holds_the_same_pixels(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")])
    preprocess(base, tmp_path / "jpeg")
    preprocess(base, tmp_path / "png", "--image_format", "png")
    pairs = zip(scene_of(tmp_path / "jpeg", "a").image_paths, scene_of(tmp_path / "png", "a").image_paths, strict=True)
    for original, copy in pairs:
        assert (original.suffix, copy.suffix, original.stem) == (".jpg", ".png", copy.stem)
        np.testing.assert_array_equal(read_image(original, "jpeg"), read_image(copy, "png"))


def test_portrait_frames_and_frames_of_several_sizes(tmp_path):
    sizes = [(360, 640), (640, 360), (640, 272)]
    clip = make_clip("a", images=[jpeg(*size) for size in sizes])
    preprocess(write_chunks(tmp_path, [clip]), tmp_path / "out")
    scene = scene_of(tmp_path / "out", "a")
    assert [read_image(path, "frame").size for path in scene.image_paths] == sizes
    shares = clip["cameras"][:, :4].double().numpy()
    np.testing.assert_array_equal(scene.fxfycxcy, shares * np.array(sizes)[:, [0, 1, 0, 1]])


def test_two_processes_give_what_one_gives(tmp_path):
    damaged = make_clip("d", images=[jpeg(), jpeg()[:300]])
    base = write_chunks(tmp_path, [make_clip("a"), make_clip("b")], [make_clip("c"), damaged])
    lost = [preprocess_with_losses(base, tmp_path / f"out{n}", processes=n) for n in (1, 2)]
    assert lost[0] == lost[1]
    one, two = contents(tmp_path / "out1" / "train"), contents(tmp_path / "out2" / "train")
    assert len(one) == 10 + 4 + 2 and one == two


# Damaged frames


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
@pytest.mark.parametrize("end", [400, -20], ids=["in the header", "in the pixels"])
def test_a_truncated_jpeg_costs_that_frame_alone(tmp_path, image_format, end):
    whole = make_clip("a", 4)
    cut = make_clip("a", images=[jpeg(seed=0), jpeg(seed=1)[:end], jpeg(seed=2), jpeg(seed=3)])
    preprocess(write_chunks(tmp_path / "whole", [whole]), tmp_path / "expected", "--image_format", image_format)
    base = write_chunks(tmp_path, [cut, make_clip("b")])
    lost = preprocess_with_losses(base, tmp_path / "out", "--image_format", image_format)
    assert list(lost) == ["clip a, frame 1"]
    check_names(lost["clip a, frame 1"].lower(), "truncated")
    scene, expected = scene_of(tmp_path / "out", "a"), scene_of(tmp_path / "expected", "a")
    assert scene.image_paths[1] is None and expected.image_path(1).name not in names(scene.image_path(0).parent)
    for frame in (0, 2, 3):
        assert scene.image_path(frame).name == expected.image_path(frame).name
        assert scene.image_path(frame).read_bytes() == expected.image_path(frame).read_bytes()
    np.testing.assert_array_equal(scene.w2c, expected.w2c)
    np.testing.assert_array_equal(scene.fxfycxcy, expected.fxfycxcy)
    assert names_in(tmp_path / "out") == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda data: data[:-2], None),
        (lambda data: data + b"\0\0\0", True),
        (lambda data: data + b"more", True),
        (lambda data: b"", False),
        (lambda data: b"\xff\xd8\xff\xd9", False),
    ],
    ids=["no end marker", "padded", "trailing bytes", "empty", "markers only"],
)
def test_a_frame_is_kept_when_training_can_read_it(tmp_path, change, kept):
    data = change(jpeg())
    (tmp_path / "frame.jpg").write_bytes(data)
    try:
        readable = read_image(tmp_path / "frame.jpg", "frame").size == (64, 36)
    except InputError:
        readable = False
    # Whether the end marker is needed is Pillow's choice; keeping and reading must agree on it.
    assert kept in (readable, None)
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(), data])])
    if readable:
        preprocess(base, tmp_path / "out")
        assert scene_of(tmp_path / "out", "a").image_path(1).read_bytes() == data
    else:
        assert list(preprocess_with_losses(base, tmp_path / "out")) == ["clip a, frame 1"]


def test_a_frame_that_claims_to_be_huge_costs_itself(tmp_path):
    data = bytearray(jpeg())
    size = data.find(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", 65000, 65000)
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(), bytes(data)])])
    assert list(preprocess_with_losses(base, tmp_path / "out")) == ["clip a, frame 1"]


def test_a_lost_frame_keeps_a_camera_in_pixels_of_the_first_good_one(tmp_path):
    clip = make_clip("a", images=[b"nothing", jpeg(80, 40), jpeg(64, 36)])
    preprocess_with_losses(write_chunks(tmp_path, [clip]), tmp_path / "out")
    shares = clip["cameras"][:, :4].double().numpy()
    expected = shares * [[80, 40, 80, 40], [80, 40, 80, 40], [64, 36, 64, 36]]
    np.testing.assert_array_equal(scene_of(tmp_path / "out", "a").fxfycxcy, expected)


def test_a_clip_without_a_good_frame_is_lost_and_named(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg()[:200], b"x"]), make_clip("b")])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a"]
    check_names(lost["clip a"], "no frame", "frame 0")
    assert names_in(tmp_path / "out") == names(tmp_path / "out" / "train" / "images") == ["b"]


def test_lost_frames_are_named_again_until_they_are_there(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(), jpeg()[:300]])])
    out = tmp_path / "out"
    preprocess_with_losses(base, out)
    write_chunks(tmp_path, [make_clip("a", images=[jpeg(), jpeg()])])
    again = preprocess_with_losses(base, out)
    metadata = out / "train" / "metadata" / "a.json"
    assert again == {"clip a, frame 1": f"its image was lost in preprocessing; delete {metadata} to try again"}
    metadata.unlink()
    preprocess(base, out)
    assert not (out / "train" / "lost.json").exists() and None not in scene_of(out, "a").image_paths


# Damaged and hostile chunks


def test_a_truncated_chunk_loses_its_clips_and_no_others(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a"), make_clip("b")], [make_clip("c")])
    chunk = base / "train" / CHUNKS[0]
    chunk.write_bytes(chunk.read_bytes()[:2000])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert sorted(lost) == ["clip a", "clip b"]
    assert all(f"chunk cannot be read (fetch it again): {chunk}" in reason for reason in lost.values())
    assert names_in(tmp_path / "out") == ["c"]


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>502 Bad Gateway</html>", b"hello world\n" * 9],
    ids=["empty", "html", "text"],
)
def test_a_file_that_is_no_chunk_loses_its_clips_and_no_others(tmp_path, content):
    base = write_chunks(tmp_path, [make_clip("a")], [make_clip("c")])
    (base / "train" / CHUNKS[0]).write_bytes(content)
    assert list(preprocess_with_losses(base, tmp_path / "out")) == ["clip a"]
    assert names_in(tmp_path / "out") == ["c"]


def test_a_damaged_chunk_that_no_index_knows_is_named_itself(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")], [make_clip("c")])
    (base / "train" / CHUNKS[0]).write_bytes(b"")
    (base / "train" / "index.json").unlink()
    assert list(preprocess_with_losses(base, tmp_path / "out")) == [f"chunk {CHUNKS[0]}"]


def test_an_index_that_leads_nowhere_is_named(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")])
    path = base / "train" / "index.json"
    path.unlink()
    for target in ("nowhere", path):
        path.symlink_to(target)
        with refused(path):
            preprocess(base, tmp_path / "out")
        path.unlink()


def test_a_chunk_that_the_index_promises_and_is_missing(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a"), make_clip("b")], [make_clip("c")])
    chunk = base / "train" / CHUNKS[0]
    chunk.unlink()
    assert preprocess_with_losses(base, tmp_path / "out") == {
        "clip a": f"chunk not found: {chunk}",
        "clip b": f"chunk not found: {chunk}",
    }
    assert names_in(tmp_path / "out") == ["c"]


def test_a_clip_that_the_index_promises_and_the_chunk_lacks(tmp_path):
    lost = preprocess_with_losses(write_chunks(tmp_path, [make_clip("a")], ghost=True), tmp_path / "out")
    assert lost == {"clip ghost": "000000.torch does not hold it, though index.json says so"}
    assert names_in(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("key", ["../../x", "a/b", "", 3, None, ["x"]])
def test_keys_that_are_no_plain_names_are_refused(tmp_path, key):
    base, out = write_chunks(tmp_path, [make_clip(key), make_clip("good")]), tmp_path / "deep" / "out"
    before = contents(tmp_path)
    lost = preprocess_with_losses(base, out)
    name = "list" if isinstance(key, list) else repr(key)
    assert list(lost) == ["000000.torch, clip 0"]
    check_names(lost["000000.torch, clip 0"], "key", name)
    inside = {f"deep/out/train/{name}": digest for name, digest in contents(out / "train").items()}
    assert contents(tmp_path) == before | inside
    assert names_in(out) == names(out / "train" / "images") == ["good"]


def test_the_second_clip_of_a_name_is_lost_and_named(tmp_path):
    lost = preprocess_with_losses(write_chunks(tmp_path, [make_clip("a", 2), make_clip("a", 3)]), tmp_path / "out")
    assert list(lost) == ["000000.torch, clip 1"]


def test_a_clip_of_the_same_name_in_another_chunk_is_lost_and_named(tmp_path):
    lost = preprocess_with_losses(write_chunks(tmp_path, [make_clip("a", 2)], [make_clip("a", 3)]), tmp_path / "out")
    assert len(lost) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"cameras": camera_rows(4)},
        {"cameras": camera_rows(3)[:, :17]},
        {"cameras": camera_rows(3).tolist()},
        {"cameras": camera_rows(3).index_fill(1, torch.tensor([9]), float("nan"))},
        {"cameras": camera_rows(3).index_fill(1, torch.tensor([2]), float("inf"))},
        {"cameras": camera_rows(3).index_fill(1, torch.tensor([1]), 0.0)},
        {"cameras": torch.zeros(3, 18).index_fill(1, torch.tensor([0, 1]), 0.5)},
        {"images": []},
        {"images": None},
    ],
    ids="rows columns list nan infinite flat singular no-images images-None".split(),
)
def test_a_clip_that_cannot_be_used_is_lost_and_named(tmp_path, change):
    base = write_chunks(tmp_path, [make_clip("bad", **change), make_clip("good")])
    ((name, reason),) = preprocess_with_losses(base, tmp_path / "out").items()
    assert name == "clip bad" and ("camera" in reason or "images must be a list" in reason)
    assert names_in(tmp_path / "out") == names(tmp_path / "out" / "train" / "images") == ["good"]


@pytest.mark.parametrize("record", [3, None, "text", {}, {"key": "a"}])
def test_a_record_that_is_no_clip_is_lost_and_named(tmp_path, record):
    base = write_chunks(tmp_path, [make_clip("good"), *([make_clip("a")] if record == {"key": "a"} else [])])
    torch.save([record, make_clip("good")], base / "train" / CHUNKS[0])
    lost = preprocess_with_losses(base, tmp_path / "out")
    name = "clip a" if record == {"key": "a"} else "000000.torch, clip 0"
    assert lost == {name: "a clip needs key, cameras and images"}
    assert names_in(tmp_path / "out") == ["good"]


# Going on where a run stopped


def two_chunks(root, frames=3):
    return write_chunks(root, [make_clip(key, frames) for key in "abc"], [make_clip(key, frames) for key in "def"])


def test_a_second_run_writes_nothing_again(tmp_path, capsys):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    before, listed = states(out), (out / "train" / "full_list.txt").read_text()
    capsys.readouterr()
    preprocess(base, out, processes=2)
    assert len(before) == 6 * (3 + 1) and states(out) == before
    assert (out / "train" / "full_list.txt").read_text() == listed
    check_names(capsys.readouterr().out.rstrip("\n"), "0 clips", 6, out / "train" / "full_list.txt")


def test_folders_of_odd_names_are_told_in_one_printable_line(tmp_path, capsys):
    out = tmp_path / "out\nin\u2028two\x1b[31m"
    preprocess(write_chunks(tmp_path, [make_clip("a", 2)]), out)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable() and r"out\nin\u2028two\x1b[31m" in said
    assert synthetic_main(["--output_dir", str(out), "--frames", "\u2028"]) == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_a_deleted_metadata_file_brings_back_that_clip_alone(tmp_path):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    before, files = states(out), contents(out)
    (out / "train" / "metadata" / "b.json").unlink()
    preprocess(base, out)
    changed = {path for path, state in states(out).items() if before[path] != state}
    assert contents(out) == files
    assert changed == {path for path in before if path.stem == "b" or path.parent.name == "b"}


def test_a_complete_set_needs_its_chunks_no_more(tmp_path):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    before = contents(out)
    for name in CHUNKS[:2]:
        (base / "train" / name).unlink()
    preprocess(base, out)
    assert contents(out) == before


def as_link(path):
    path.rename(path.parent.parent / "kept.jpg")
    path.symlink_to(path.parent.parent / "kept.jpg")


def as_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: shutil.rmtree(path.parent)]
)
def test_a_clip_whose_frames_are_gone_is_written_anew(tmp_path, damage):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    before, files = states(out), contents(out)
    damage(out / "train/images/b/00001.jpg")
    preprocess(base, out)
    changed = {path for path, state in states(out).items() if before[path] != state}
    assert contents(out) == files
    assert changed == {path for path in before if path.stem == "b" or path.parent.name == "b"}


@pytest.mark.parametrize("damage", [as_link, as_folder])
def test_what_stands_in_the_place_of_a_frame_is_named(tmp_path, damage):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    damage(out / "train/images/b/00001.jpg")
    lost = preprocess_with_losses(base, out)
    assert list(lost) == ["clip b"]
    check_names(lost["clip b"], out / "train/images/b", "'00001.jpg'")


@pytest.mark.parametrize(("first", "second"), [("jpeg", "png"), ("png", "jpeg")])
def test_clips_of_another_format_are_kept_and_counted(tmp_path, first, second, caplog):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out, "--image_format", first)
    before = states(out)
    preprocess(base, out, "--image_format", first)
    assert not caplog.records
    preprocess(base, out, "--image_format", second)
    (record,) = caplog.records
    assert states(out) == before
    check_names(record.getMessage(), "6 clips", f"--image_format {second}", "--output_dir")


def test_frames_that_were_no_jpeg_are_of_no_other_format(tmp_path, caplog):
    png = BytesIO()
    Image.new("RGB", (64, 36)).save(png, "png")
    base, out = write_chunks(tmp_path, [make_clip("a", images=[png.getvalue()] * 2)]), tmp_path / "out"
    preprocess(base, out)
    preprocess(base, out)
    assert not caplog.records


def test_damaged_metadata_of_an_earlier_run_is_named(tmp_path):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, out)
    metadata = out / "train" / "metadata" / "b.json"
    metadata.write_text("{")
    lost = preprocess_with_losses(base, out)
    assert list(lost) == ["clip b"]
    check_names(lost["clip b"], metadata, "delete")


def test_a_killed_run_started_again_gives_the_same_files(tmp_path):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, tmp_path / "undisturbed")
    arguments = ["--base_path", base, "--output_dir", out, "--mode", "train", "--num_processes", 1]
    assert run("-m", "tests.programs.run_struck", "all", *arguments).returncode == -signal.SIGKILL
    assert names(out / "train" / "metadata") == ["a.json", "b.json"]
    left = [path.name for path in out.rglob(".*") if path.name != LOCK_NAME]
    assert len(left) == 1 and left[0].startswith(".c.lvsm-") and left[0].endswith(".tmp")
    complete = states(out / "train" / "metadata")
    preprocess(base, out, processes=2)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not list(out.rglob(".*"))
    assert complete.items() <= states(out).items()


FORK = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the patch reaches workers by fork alone"
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@FORK
@pytest.mark.parametrize("method", ["rename", "replace"])
def test_what_a_worker_that_died_once_leaves_is_cleared_and_done_again(tmp_path, monkeypatch, method, caplog):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    preprocess(base, tmp_path / "undisturbed")
    monkeypatch.setattr(Path, method, on_the_third_move(getattr(Path, method), die))
    preprocess(base, out)
    check_told(caplog.messages, "died")
    assert not list(out.rglob(".*"))
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@FORK
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_chunk_that_kills_its_worker_costs_itself(tmp_path, monkeypatch, processes, indexed):
    base, out = write_chunks(tmp_path, *([make_clip(key)] for key in "abcd")), tmp_path / "out"
    if not indexed:
        (base / "train" / "index.json").unlink()
    read = re10k.open_chunk
    monkeypatch.setattr(re10k, "open_chunk", lambda path: die() if path.name == CHUNKS[1] else read(path))
    lost = preprocess_with_losses(base, out, processes=processes)
    assert list(lost) == ["clip b" if indexed else f"chunk {CHUNKS[1]}"]
    check_told(lost.values(), CHUNKS[1], "memory")
    assert names_in(out) == ["a", "c", "d"] and not list(out.rglob(".*"))
    monkeypatch.undo()
    preprocess(base, out)
    assert names_in(out) == list("abcd")


def test_a_temporary_file_is_no_scene(tmp_path):
    base, out = two_chunks(tmp_path), tmp_path / "out"
    (out / "train" / "metadata").mkdir(parents=True)
    (out / "train" / "metadata" / ".gone.tmp.json").write_text("{")
    preprocess(base, out)
    assert names_in(out) == list("abcdef")


def test_workers_end_with_the_run_that_started_them(tmp_path):
    command = [sys.executable, "-m", "tests.programs.run_struck", "parent"]
    command += ["--base_path", str(two_chunks(tmp_path)), "--output_dir", str(tmp_path / "out"), "--mode", "train"]
    process = subprocess.Popen(
        [*command, "--num_processes", "1"], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.wait() == -signal.SIGKILL
    try:
        # The pipe closes when the last process that could write to it has gone.
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 200 kB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def large_chunks(root):
    """Eight clips of 68 kB on a file system that counts in pages."""
    clips = [make_clip(key, images=[jpeg(320, 180, seed=n) for n in range(5)]) for key in "abcdefgh"]
    return write_chunks(root, clips[:4], clips[4:])


def test_a_full_disk_ends_in_one_line_and_a_later_run_completes(tmp_path, small_disk):
    base = large_chunks(tmp_path)
    preprocess(base, tmp_path / "undisturbed")
    arguments = ["--base_path", base, "--output_dir", small_disk, "--mode", "train", "--num_processes", 2]
    done = run("preprocess_data.py", *arguments)
    assert done.stdout == "" and done.stderr.count("\n") == 2
    check_names(done.stderr.splitlines()[0], base / "train", "chunks")
    check_error_line(done, "No space left on device")
    complete = list((small_disk / "train" / "metadata").iterdir())
    assert 1 <= len(complete) < 8 and not list(small_disk.rglob(".*"))
    expected = contents(tmp_path / "undisturbed")
    assert contents(small_disk).items() <= expected.items()
    assert all(path.is_file() for metadata in complete for path in read_scene(metadata).image_paths)
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    preprocess(base, small_disk)
    assert contents(small_disk) == expected


def test_a_full_disk_is_named(tmp_path, small_disk):
    with pytest.raises((OSError, InputError)) as caught:
        preprocess(large_chunks(tmp_path), small_disk)
    assert str(small_disk) in str(caught.value)

"""preprocess_data.py on clips of one name and odd folders, beside itself, and stopped."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from data import writing
from data.importers import re10k
from data.importers.re10k_chunks import open_chunk, parse_clip
from data.writing import ImportResult, SceneWriter
from tests.chunks import (
    CHUNKS,
    contents,
    jpeg,
    make_clip,
    names,
    names_in,
    preprocess,
    preprocess_with_losses,
    scene_of,
    without_index,
    write_chunks,
)
from tests.messages import check_names
from utils.errors import InputError

FORK = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="patches reach processes by fork alone")


# Two clips of one name


def moved(clip, distance):
    cameras = clip["cameras"].clone()
    cameras[:, 9] += distance
    return clip | {"cameras": cameras}


def x_of(out, key):
    return float(scene_of(out, key).w2c[0, 0, 3])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("indexed", [True, False])
def test_of_two_clips_of_a_name_one_is_written_and_the_other_named(tmp_path, processes, indexed):
    first, second = make_clip("a", 3), moved(make_clip("a", 3, images=[jpeg(seed=n) for n in (7, 8, 9)]), 100)
    base = write_chunks(tmp_path, [first, make_clip("b")], [second, make_clip("c")])
    # The index says the second chunk, since that was written last.
    right, other = (second, CHUNKS[0]) if indexed else (first, CHUNKS[1])
    if not indexed:
        without_index(base)
    before = None
    for _ in range(3):
        lost = preprocess_with_losses(base, tmp_path / "out", processes=processes)
        assert list(lost) == [f"{other}, clip 0"]
        check_names(lost[f"{other}, clip 0"], "clip a")
        assert names_in(tmp_path / "out") == ["a", "b", "c"]
        assert x_of(tmp_path / "out", "a") == float(right["cameras"][0, 9])
        image = scene_of(tmp_path / "out", "a").image_path(0)
        assert image.read_bytes() == right["images"][0].numpy().tobytes()
        assert before in (None, contents(tmp_path / "out"))
        before = contents(tmp_path / "out")


def test_within_a_chunk_without_index_the_first_clip_of_a_name_is_written(tmp_path):
    base = without_index(write_chunks(tmp_path, [make_clip("a"), moved(make_clip("a"), 100)]))
    for _ in range(2):
        assert list(preprocess_with_losses(base, tmp_path / "out")) == ["000000.torch, clip 1"]
        assert x_of(tmp_path / "out", "a") < 50


def test_names_that_are_one_to_the_file_system_are_two_clips_of_a_name(tmp_path, monkeypatch):
    base = write_chunks(tmp_path, [make_clip("a"), make_clip("B")], [make_clip("A"), make_clip("c")])
    preprocess(base, tmp_path / "told apart")
    assert names_in(tmp_path / "told apart") == ["A", "B", "a", "c"]
    monkeypatch.setattr(re10k, "_folding", lambda _root: str.casefold)
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["000001.torch, clip 0"]
    check_names(lost["000001.torch, clip 0"], "clip A", "clip a")
    assert names_in(tmp_path / "out") == ["B", "a", "c"]


@pytest.mark.parametrize(
    "change", [lambda clip: moved(clip, 100), lambda clip: make_clip("a", 5)], ids=["poses", "length"]
)
def test_a_scene_that_was_made_of_another_clip_is_named_and_left(tmp_path, change):
    base, out = write_chunks(tmp_path, [make_clip("a")]), tmp_path / "out"
    preprocess(base, out)
    before = contents(out)
    write_chunks(tmp_path, [change(make_clip("a"))])
    lost = preprocess_with_losses(base, out)
    assert list(lost) == ["clip a"]
    check_names(lost["clip a"], "another clip", out / "train/metadata/a.json")
    assert before.items() <= contents(out).items()


# Folders


def test_nothing_but_frames_is_ever_replaced(tmp_path):
    base, out = write_chunks(tmp_path, [make_clip(key) for key in "abcd"]), tmp_path / "out"
    mine = tmp_path / "mine"
    images = out / "train" / "images"
    for folder in (mine, images / "b", images / "c" / "deep", images / "d"):
        folder.mkdir(parents=True)
    for kept in (mine / "00000.jpg", images / "b" / "notes.txt", images / "c" / "deep" / "00000.jpg"):
        kept.write_text("mine")
    (images / "a").symlink_to(mine)
    (images / "d" / "00009.jpg").write_text("of a killed run")
    lost = preprocess_with_losses(base, out)
    assert list(lost) == ["clip a", "clip b", "clip c"]
    check_names(lost["clip b"], "'notes.txt'")
    assert (mine / "00000.jpg").read_text() == "mine" and (images / "a").is_symlink()
    assert names(images / "b") == ["notes.txt"] and names(images / "c" / "deep") == ["00000.jpg"]
    assert names_in(out) == ["d"] and names(images / "d") == [f"0000{n}.jpg" for n in range(3)]


def test_a_link_in_place_of_the_image_folder_leads_to_nothing_that_is_replaced(tmp_path):
    base, out, mine = write_chunks(tmp_path, [make_clip("a"), make_clip("b")]), tmp_path / "out", tmp_path / "mine"
    (mine / "a").mkdir(parents=True)
    (mine / "a" / "00000.jpg").write_text("mine")
    stale = mine / ".b.lvsm-12345678.tmp"
    stale.mkdir()
    (out / "train").mkdir(parents=True)
    (out / "train" / "images").symlink_to(mine)
    assert list(preprocess_with_losses(base, out)) == ["clip a"]
    assert (mine / "a" / "00000.jpg").read_text() == "mine" and stale.exists()
    assert names_in(out) == ["b"]


def test_frames_are_on_disk_before_their_folder_has_its_name(tmp_path, monkeypatch):
    synced, fsync, rename = [], os.fsync, Path.rename

    def record(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(path, target):
        assert {entry.stat().st_ino for entry in [path, *path.iterdir()]} <= set(synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    writer = SceneWriter(tmp_path / "out", "jpeg")
    with open_chunk(write_chunks(tmp_path, [make_clip("a")]) / "train" / CHUNKS[0]) as chunk:
        writer.write(re10k.new_scene(parse_clip(chunk.content[0])), ImportResult())
    assert writer.images("a").parent.stat().st_ino in synced and writer.find("a") is not None


def test_home_and_variables_in_paths_and_any_number_of_processes(tmp_path, monkeypatch):
    write_chunks(tmp_path, [make_clip("a")])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "out")
    preprocess("~/re10k", "$HOME/${PLACE}", processes=10**9)
    assert names_in(tmp_path / "out") == ["a"]


# Beside itself, and stopped


def start(base, out, *more):
    """A run in a process of its own."""

    def work():
        # Tests that a shell runs in the background have it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            preprocess(base, out, *more)
        except InputError as error:
            (out.parent / f"refused{os.getpid()}").write_text(str(error))
            sys.exit(1)

    process = multiprocessing.Process(target=work)
    process.start()
    return process


@FORK
def test_of_two_runs_at_once_one_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    base = write_chunks(tmp_path, [make_clip(key) for key in "abc"])
    preprocess(base, tmp_path / "undisturbed")
    begun, write = tmp_path / "begun", SceneWriter.write

    def slow(*arguments):
        begun.touch()
        while not list(tmp_path.glob("refused*")):
            time.sleep(0.01)
        return write(*arguments)

    monkeypatch.setattr(SceneWriter, "write", slow)
    first = start(base, tmp_path / "out")
    while not begun.exists():
        time.sleep(0.01)
    second = start(base, tmp_path / "out")
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 1)
    (told,) = [path.read_text() for path in tmp_path.glob("refused*")]
    assert str(first.pid) in told and str(tmp_path / "out" / "train") in told and "--output_dir" in told
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@FORK
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_no_workers_and_whole_scenes(tmp_path, monkeypatch, number):
    base, out = write_chunks(tmp_path, [make_clip(key) for key in "abc"]), tmp_path / "out"
    preprocess(base, tmp_path / "undisturbed")
    begun, encode = tmp_path / "begun", writing.encode

    def slow(*given):
        if (out / "train" / "metadata" / "a.json").exists():
            begun.write_text(str(os.getpid()))
            begun.rename(tmp_path / "worker")
            time.sleep(600)
        return encode(*given)

    with monkeypatch.context() as patched:
        patched.setattr(writing, "encode", slow)
        run = start(base, out)
        while not (tmp_path / "worker").exists():
            time.sleep(0.01)
    os.kill(run.pid, number)
    run.join(120)
    assert run.exitcode not in (0, None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "worker").read_text()), 0)
    assert names(out / "train" / "metadata") == ["a.json"] and not list(out.rglob(".*"))
    preprocess(base, out)
    assert contents(out) == contents(tmp_path / "undisturbed")

import argparse
import errno
import os
import socket
from pathlib import Path

import pytest
import torch

from tests.messages import refused
from utils.checkpoint import checkpoint_name, find_checkpoint, numbered_checkpoints, read_checkpoint, write_checkpoint
from utils.cli import path_argument
from utils.files import (
    append_json_line,
    atomic_path,
    check_plain_name,
    expand_path,
    read_bytes,
    read_json,
    remove_stale,
    temporary_path,
    write_json,
)
from utils.text import printable, shown


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"b": '])
def test_a_line_that_was_cut_short_is_joined_by_no_other(tmp_path, before):
    path = tmp_path / "lines.jsonl"
    path.write_text(before)
    append_json_line(path, {"c": 3})
    append_json_line(path, {"d": 4})
    assert path.read_text().splitlines() == [*before.splitlines(), '{"c": 3}', '{"d": 4}']
    assert "\n\n" not in path.read_text()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path, "file") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "0f3.b", "A_b-c", "00000000de5c01f4"])
def test_plain_names(name):
    assert check_plain_name(name, "here") == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a\\b", "a b", "a\n", "<b>", "a" * 201, None, 3])
def test_other_names_are_refused(name):
    with refused("here", shown(name)):
        check_plain_name(name, "here")


def test_the_newest_checkpoint_is_meant(tmp_path):
    for step in (20, 1000, 3):
        write_checkpoint(tmp_path, step, {"model": {"a": torch.tensor([float(step)])}})
    assert checkpoint_name(1000) == "ckpt_0000000000001000.pt"
    assert [p.name for p in numbered_checkpoints(tmp_path)] == [checkpoint_name(s) for s in (3, 20, 1000)]
    assert find_checkpoint(tmp_path, "training.checkpoint_dir").name == checkpoint_name(1000)
    assert find_checkpoint(tmp_path / checkpoint_name(3), "training.checkpoint_dir").name == checkpoint_name(3)
    assert read_checkpoint(find_checkpoint(tmp_path, "training.checkpoint_dir"))["model"]["a"].item() == 1000


def test_a_folder_may_hold_one_published_file(tmp_path):
    torch.save({"model": {}}, tmp_path / "scene_decoder_only_256.pt")
    assert find_checkpoint(tmp_path, "training.checkpoint_dir").name == "scene_decoder_only_256.pt"
    torch.save({"model": {}}, tmp_path / "scene_encoder_decoder_256.pt")
    with refused("training.checkpoint_dir", tmp_path, "scene_decoder_only_256.pt", "scene_encoder_decoder_256.pt"):
        find_checkpoint(tmp_path, "training.checkpoint_dir")


@pytest.mark.parametrize("what", ["missing", "empty folder"])
def test_no_checkpoint_is_an_error(tmp_path, what):
    path = tmp_path if what == "empty folder" else tmp_path / "nothing"
    with refused(path, "training.checkpoint_dir"):
        find_checkpoint(path, "training.checkpoint_dir")


def test_bad_checkpoints_are_named(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"model": {"a": torch.zeros(1000)}})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refused(path, "truncated"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with refused(path, "not a checkpoint"):
        read_checkpoint(path)


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path):
    torch.save({"model": {}}, tmp_path / ".ckpt_0000000000000009.ab.tmp.pt")
    with refused(tmp_path, "training.checkpoint_dir"):
        find_checkpoint(tmp_path, "training.checkpoint_dir")


def test_files_of_old_releases_load(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt")["model"]["a"].tolist() == [1, 1]


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": {}, "evil": Evil()}, tmp_path / "evil.pt")
    with refused(tmp_path / "evil.pt"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_keeps_the_folder_as_it_was(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, {"model": {}})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, {"model": {}})
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint_name(1)]


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError):
            read_bytes(path, 100)
        with refused(path):
            read_json(path, "file")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        read_bytes(tmp_path / "link", 100)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, kind, linked):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    there = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(there)
    elif kind == "folder":
        there.mkdir()
    else:
        socket.socket(socket.AF_UNIX).bind(kind)
    before, path = there.lstat(), there
    if linked:
        path = tmp_path / "link"
        path.symlink_to(there)
    names = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OSError, match=str(path)):
        write_json(path, 1)
    assert os.path.samestat(there.lstat(), before) and path.is_symlink() == linked
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("target", ["file", "nothing", "link"])
def test_links_to_files_or_nowhere_are_replaced_themselves(tmp_path, target):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / target)
    write_json(tmp_path / "link", 1)
    assert not (tmp_path / "link").is_symlink() and read_json(tmp_path / "link", "file") == 1
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_lines_are_added_to_regular_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=name):
            append_json_line(tmp_path / name, 1)
    for number in range(2):
        append_json_line(tmp_path / "new" / "lines.jsonl", number)
    assert (tmp_path / "new" / "lines.jsonl").read_text() == "0\n1\n"


def test_files_are_read_up_to_a_bound(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested"),
        ("1" * 400, "400 digits"),
        ('{"a": [-' + "9" * 5000 + "]}", "5001 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a'"),
        ('[{"\\u001b[31m": 1, "\\u001b[31m": 3}]', r"'\x1b[31m'"),
        (b"\xff\xfe{}", "utf-8"),
    ],
)
def test_json_that_cannot_be_meant_is_refused_with_its_name(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(tmp_path / "a.json", reason):
        read_json(tmp_path / "a.json", "file")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", "file") == {"a": 1}


def test_cleaning_removes_the_programs_own_temporaries_only(tmp_path):
    theirs = [".anything.tmp", ".a.tmp.pt", "a.tmp", ".ckpt_1.1234abcd.tmp.pt", ".lvsm-1234abcd.tmp", ".a.lvsm-x.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("keep")
    (tmp_path / ".folder.tmp").mkdir()
    for name in ("a.json", "rendered_video.mp4", "scene", "key.with-dots.and_more"):
        temporary_path(tmp_path / name).write_text("half")
    temporary_path(tmp_path / "folder").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("keep")
    link = temporary_path(tmp_path / "link")
    link.symlink_to(outside)
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, ".folder.tmp", "outside", link.name}
    assert (outside / "file").exists()
    stale = temporary_path(outside / "a.json")
    stale.write_text("half")
    (tmp_path / "linked").symlink_to(outside)
    remove_stale(tmp_path / "linked")
    assert stale.exists()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, ünïcode 图", "plain, ünïcode 图"),
        ("\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("\ud800", "\\ud800"),
        ("\x9b", "\\x9b"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text, escaped):
    assert printable(text) == escaped
    assert shown(text) == f"'{escaped}'"


def test_long_texts_are_cut_in_the_middle():
    assert printable("a" * 50 + "b" * 50, 20) == "a" * 8 + "..." + "b" * 9
    assert len(printable("\x1b" * 1000, 80)) == 80
    assert len(shown("x" * 10**7)) <= 82
    assert shown(10**400) == "an integer of 1329 bits"
    assert shown([1] * 1000) == "list"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("a/~", "a/~"),
        ("./~b", "./~b"),
        ("$PLACE/a", "/some where/a"),
        ("${PLACE}_2/$NUMBER", "/some where_2/7"),
        ("$HOME_BASED/a", "/home/me/x/a"),
        ("cost$/5$", "cost$/5$"),
        ("", "."),
    ],
)
def test_paths_are_expanded(text, path, monkeypatch):
    for name, value in {"HOME": "/home/me", "PLACE": "/some where", "NUMBER": "7", "HOME_BASED": "~/x"}.items():
        monkeypatch.setenv(name, value)
    assert expand_path(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("$NOT_SET/a", "NOT_SET"),
        ("~/${NOT_SET}", "NOT_SET"),
        ("~nobody_of_this_name/a", "~nobody_of_this_name/a"),
        ("a\0b", "null byte"),
    ],
)
def test_paths_that_mean_nothing_are_refused(text, culprit, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with refused(culprit):
        expand_path(text)
    with refused(culprit, error=argparse.ArgumentTypeError):
        path_argument(text)

"""One writer a folder."""

import errno
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import ROOT
from tests.messages import check_told, refused
from utils import lock
from utils.lock import LOCK_NAME, only_writer


def hold(folder):
    """A process that holds the lock, as `tests/programs/run_lock.py` does; and its first line."""
    command = [sys.executable, "-m", "tests.programs.run_lock", str(folder)]
    holder = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return holder, holder.stdout.readline().strip()


def test_a_second_writer_is_told_of_the_first(tmp_path):
    holder, said = hold(tmp_path / "run")
    assert said == "held"
    key = "training.checkpoint_dir"
    with refused(tmp_path / "run", f"pid {holder.pid}", key), only_writer(tmp_path / "run", key):
        pass
    assert (tmp_path / "run" / LOCK_NAME).exists(), "the refused one must not take the holder's file away"
    holder.communicate("")
    with only_writer(tmp_path / "run", "training.checkpoint_dir"):
        pass
    assert not (tmp_path / "run").exists(), "nothing was written"


def test_the_lock_of_a_killed_process_is_taken_over_and_said(tmp_path, caplog):
    holder, _ = hold(tmp_path)
    holder.kill()
    holder.wait()
    with caplog.at_level(logging.WARNING), only_writer(tmp_path, "key"):
        pass
    check_told(caplog.messages, tmp_path, f"pid {holder.pid}")
    holder.communicate()


def test_of_many_at_once_one_gets_the_lock(tmp_path):
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            held = list(pool.map(lambda _: hold(tmp_path), range(4)))
        assert sorted(said for _, said in held) == ["", "", "", "held"]
        for holder, _ in held:
            holder.communicate("")


@pytest.mark.parametrize("content", ["", "{", '{"pid": "\\u001b[31m", "host": 3}', "[1]", "\0" * 5000])
def test_whatever_the_file_holds_it_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with only_writer(tmp_path, "key"):
        assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()


def test_without_locks_in_the_file_system_a_living_process_is_respected(tmp_path, monkeypatch):
    def unsupported(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    holder, _ = hold(tmp_path)
    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    with refused(f"pid {holder.pid}"), only_writer(tmp_path, "key"):
        pass
    holder.kill()
    holder.communicate()
    with only_writer(tmp_path, "key"):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("keep")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), only_writer(tmp_path, "key"):
        pass
    assert (tmp_path / "mine").read_text() == "keep"

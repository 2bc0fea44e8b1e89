"""The environment that launchers set, what is said on the terminal, and the end of a program."""

import errno
import logging
import os
import sys

import pytest
import torch

import inference
import train
from tests.messages import check_names, refused
from tests.processes import run, torchrun
from tests.runs import training_command as command
from utils import parallel
from utils.cli import SafeFormatter, run_main
from utils.distributed import describe_device, process_group
from utils.errors import InputError
from utils.files import write_text
from utils.launcher import Place, read_place
from utils.text import counted

WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def launched(monkeypatch):
    """A function that sets the launcher's variables; None leaves one out."""

    def set_environment(changes):
        for name, value in (WHOLE | changes).items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_environment


HALF_SET = [
    ("MASTER_ADDR", {"MASTER_ADDR": None}),
    ("MASTER_ADDR", {"MASTER_ADDR": ""}),
    ("MASTER_PORT", {"MASTER_PORT": None}),
    ("MASTER_PORT", {"MASTER_PORT": "http"}),
    ("MASTER_PORT", {"MASTER_PORT": "70000"}),
    ("RANK", {"RANK": None}),
    ("RANK", {"RANK": "first"}),
    ("RANK", {"RANK": "2"}),
    ("RANK", {"RANK": "-1"}),
    ("RANK", {"WORLD_SIZE": None}),
    ("LOCAL_RANK", {"LOCAL_RANK": None}),
    ("LOCAL_RANK", {"LOCAL_RANK": "1.0"}),
    ("LOCAL_RANK", {"LOCAL_RANK": "2"}),
    ("WORLD_SIZE", {"WORLD_SIZE": "two\x1b[31m"}),
    ("WORLD_SIZE", {"WORLD_SIZE": "0"}),
    ("WORLD_SIZE", {"WORLD_SIZE": "9" * 400}),
    ("LOCAL_WORLD_SIZE", {"LOCAL_WORLD_SIZE": "0"}),
    ("LOCAL_WORLD_SIZE", {"LOCAL_WORLD_SIZE": "all"}),
]


@pytest.mark.parametrize(("culprit", "changes"), HALF_SET)
def test_a_half_set_environment_is_refused_at_once_and_names_the_variable(launched, culprit, changes):
    launched(changes)
    for use in (read_place, parallel.cores_of_process, lambda: process_group().__enter__()):
        with pytest.raises(InputError) as caught:
            use()
        check_names(str(caught.value), f"{culprit} is")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "two"}, {"RANK": None}, {"MASTER_ADDR": None}])
@pytest.mark.parametrize("main", [train.main, inference.main])
def test_entry_scripts_tell_a_half_set_environment_in_one_line(launched, changes, main, monkeypatch, capsys, scenes):
    launched(changes)
    monkeypatch.setattr(sys, "argv", ["program", *command(scenes, scenes.parent / "run")])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    check_names(line, next(iter(changes)))


def test_a_whole_environment_is_read(launched):
    launched({})
    assert read_place() == Place(1, 2, 1, 2)
    assert read_place().one_machine and not Place(1, 4, 1, 2).one_machine
    launched(dict.fromkeys(WHOLE))
    assert read_place() == Place(0, 1, 0, 1)


@pytest.mark.parametrize(("local_rank", "gpus"), [("1", 1), ("7", 4)])
def test_more_processes_than_gpus(launched, monkeypatch, local_rank, gpus):
    launched({"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": "8"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with refused(f"LOCAL_RANK is {local_rank}", counted(gpus, "GPU"), "CUDA_VISIBLE_DEVICES"):
        process_group().__enter__()


def test_the_device_is_named(monkeypatch, scenes, tmp_path, caplog):
    with caplog.at_level("INFO", "lvsm"):
        train.main(command(scenes, tmp_path / "run"))
    assert describe_device(torch.device("cpu")) in caplog.text and "CPU, " in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert describe_device(torch.device("cuda", 3)) == "cuda:3 NVIDIA H100"


@pytest.mark.parametrize("text", ["red \x1b[31m", "bell \a", "back\b\rspace", "right to left ‮", "null \0"])
def test_log_lines_are_safe_for_terminals(text):
    record = logging.LogRecord("lvsm", logging.INFO, "file", 1, "scene %s: gone", (text,), None)
    shown = SafeFormatter("%(message)s").format(record)
    assert shown.isprintable() and shown.startswith("scene ") and shown.endswith(": gone")


def test_a_long_line_keeps_its_beginning_and_its_advice():
    record = logging.LogRecord("lvsm", logging.INFO, "file", 1, "%s: fetch it again", ("x" * 10**6,), None)
    shown = SafeFormatter("%(message)s").format(record)
    assert len(shown) <= 2000 and shown.endswith("x: fetch it again")


@pytest.mark.parametrize("error", [InputError, OSError])
def test_errors_are_one_safe_bounded_line(error, monkeypatch, capsys):
    def main(_argv):
        raise error("line\nbreak \x1b[2J " + "y" * 10**5 + " do this")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: line break \\x1b") and line.endswith("y do this")
    assert len(line) <= 2000


def refuse(number):
    def main(folder):
        raise OSError(number, os.strerror(number), str(folder / "x"))

    return main


def replace_full_folder(folder):
    (folder / "y" / "z").mkdir(parents=True)
    (folder / "new").mkdir()
    (folder / "new").rename(folder / "y")


REFUSED = {
    "below a file": (lambda folder: (folder / "a" / "x").mkdir(), "a/x: ", "move it away"),
    "folder for a file": (lambda folder: (folder / "a").mkdir(), "a: ", "move it away"),
    "file for a folder": (lambda folder: write_text(folder / "b", "text"), "b: ", "a folder stands where a file"),
    "full folder": (replace_full_folder, "y: ", "move it away"),
    "long": (lambda folder: write_text(folder / ("n" * 300), "text"), "n: ", "shorter"),
    "gone": (lambda folder: (folder / "c" / "x").write_text(""), "c/x: ", "check the path"),
    "denied": (refuse(errno.EACCES), "x: ", "permissions"),
    "not ours": (refuse(errno.EPERM), "x: ", "permissions"),
    "read-only": (refuse(errno.EROFS), "x: ", "another disk"),
    "full": (refuse(errno.ENOSPC), "x: ", "free some space"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_system_refuses_comes_with_advice(kind, tmp_path, monkeypatch, capsys):
    main, culprit, advice = REFUSED[kind]
    (tmp_path / "a").write_text("a file")
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit):
        run_main(lambda _: main(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert culprit in line and advice in line and "Errno" not in line and ".tmp" not in line


# The second starts its process from nothing, as torchrun does.
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [(torchrun(2), 2), (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"], 1)],
)
def test_the_last_words_under_torchrun_are_ours(launcher, processes):
    result = run(*launcher, "train.py", "--config", "configs/demo.yaml", "training.lrr=1")
    assert result.returncode == 1
    words = [line for line in result.stderr.splitlines() if any(map(str.isalpha, line))]
    assert "error: unknown key training.lrr" in words[-1], words[-1]
    assert result.stderr.count("unknown key") <= 2 * processes and "To enable traceback" not in result.stderr


def test_cores_are_counted_where_the_system_does_not_tell(monkeypatch):
    assert parallel.usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert parallel.usable_cores() == os.cpu_count() and parallel.cores_of_process() >= 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert parallel.usable_cores() == parallel.cores_of_process() == 1

"""The project's programs in processes of their own.

Importing torch costs seconds a process. So most of them are forked from one that has imported it already (`start`,
`run`); what depends on a process being started from nothing says so (`run_fresh`).
"""

import multiprocessing
import multiprocessing.process
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import IOBase
from multiprocessing.context import BaseContext
from pathlib import Path

from tests.helpers import DOORS, PATIENCE, ROOT

QUIET = {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}

# What programs import where they need it, and most that tests run do.
SLOW_TO_IMPORT = ("torch._dynamo", "torchvision", "scipy.spatial.transform")

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload(["tests.programs.preload", *DOORS, *SLOW_TO_IMPORT])


class Forked:
    """A program that runs in a fork of this process, with as much of subprocess.Popen as torchrun asks for.

    Args:
        args: the command line of a Python program, with the interpreter, or none.
        env: its whole environment.
        stdout, stderr: open files, paths, or None for those of this process.
    """

    context: BaseContext = multiprocessing.get_context("fork")

    def __init__(self, args: Sequence[str], env: Mapping[str, str], stdout=None, stderr=None, **_: object):
        self.args = list(args)
        command = self.args[1:] if self.args[0] == sys.executable else self.args
        output = [file.name if isinstance(file, IOBase) else file for file in (stdout, stderr)]
        self._process = self.context.Process(target=_enter, args=(command, dict(env), *output))  # type: ignore[attr-defined]
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status; negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status


class ForkedSooner(Forked):
    """A program that is forked from a process which has imported torch and nothing else has happened to."""

    context = _servers


class Program(ForkedSooner):
    """A running program whose output is kept."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self._folder = Path(tempfile.mkdtemp(prefix="lvsm-program-"))
        super().__init__(command, environment, self._folder / "out", self._folder / "err")

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status; an error holds what the program said so far."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired as expired:
            expired.output, expired.stderr = self.said()
            raise

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """What it wrote to its output and its errors until it ended."""
        self.wait(timeout)
        said = self.said()
        shutil.rmtree(self._folder, ignore_errors=True)
        return said

    def said(self) -> tuple[str, str]:
        """What it wrote to its output and its errors so far."""
        # What cannot be read here was not written, or not by us.
        paths = [self._folder / name for name in ("out", "err")]
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in paths)
        return out, err


def _enter(command: list[str], environment: dict[str, str], out: str | Path | None, err: str | Path | None) -> None:
    """Become `python COMMAND` (in the forked process)."""
    os.setsid()
    os.chdir(ROOT)
    for number, path in ((1, out), (2, err)):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ |= environment
    # Like a process that a shell started, it is nobody's worker, and answers signals in its own way.
    multiprocessing.process._parent_process = None
    multiprocessing.process._children.clear()
    multiprocessing.set_start_method(None, force=True)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = command[1:] if command[0] == "-u" else command
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def start(*command: object, **environment: str) -> Program:
    """Start a script (or `-m` and a module) with arguments as a session of its own, without a GPU or wandb."""
    return Program([str(part) for part in command], os.environ | QUIET | environment)


def run(*command: object, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; several processes find one another by their environment, as under srun.

    Where one fails the others are ended; its exit status counts. What all say comes together.
    """
    places = _places(processes) if processes > 1 else [{}]
    ranks = [start(*command, **environment, **place) for place in places]
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.02)
    status = next((rank.poll() for rank in ranks if rank.poll()), 0)
    for rank in ranks:
        rank.kill()
    said = [rank.communicate() for rank in ranks]
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    return subprocess.CompletedProcess(ranks[0].args, status, out, err)


def _places(processes: int) -> list[dict[str, str]]:
    """The environment of every rank on one machine."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [meeting | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(processes: int, *options: str) -> list[str]:
    """The beginning of a command under torchrun, whose processes are forked, for `start` and `run`."""
    return ["-m", "tests.programs.run_torchrun", "--standalone", "--nproc_per_node", str(processes), *options]


def run_fresh(*command: object, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a person would in `folder`: an interpreter of its own that imports everything anew."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | QUIET | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

"""Run cases of the fuzz: damage a sound input as a seed says, and give it to the script that reads it.

python tests/programs/run_fuzz.py FOLDER SEED [SEED ...]

For every seed two lines of JSON go to standard output: `{"begin": seed}`, then what came of it. If this program dies or
hangs, the seed begun last is at fault.
"""

import faulthandler
import io
import json
import logging
import math
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# With what they make at their first import, which is then not taken for a case's doing.
import torch
import torch._dynamo
import torchvision  # noqa: F401

import data.importers.video
import data.loader
import setup
from data.scene import read_scene
from tests.fuzz_cases import KINDS, Case, Door, choose_kind, index_door, preprocess_door, write_inputs, write_runs
from tests.helpers import ROOT
from utils.checkpoint import checkpoint_name
from utils.cli import run_main
from utils.sections import leaves
from utils.text import printable

# Programs that the product starts for itself.
_ALLOWED_PROGRAMS = {"git"}
_PROGRAM_EVENTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn"}
_WRITE_EVENTS = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Kinds of characters that a terminal may act on.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_LONGEST_MESSAGE = 2000
# Bytes that this process may take beside what it has when the cases begin: a bomb then fails here, not the machine.
_MEMORY = 4 << 30


# What no input may bring about


class Sentry:
    """Notes programs that are started, connections, and files opened where they should not be; forks note, too.

    The notes go to a file that is opened before.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._folder = self._outside = ""
        sys.addaudithook(self._hear)

    def begin(self, folder: Path) -> None:
        """From now on, writing is for the surroundings of `folder` alone, and reading not for its folder `outside`."""
        self._outside = str(folder / "outside")
        self._folder = str(folder.parent)

    def end(self) -> None:
        """Note nothing any more."""
        self._folder = ""

    def notes(self) -> list[str]:
        """What was noted since the last time."""
        lines = os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace").splitlines()
        os.ftruncate(self._file, 0)
        return sorted(set(lines))

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._folder:
            return
        if event in _PROGRAM_EVENTS:
            self._hear_program(event, arguments)
        elif event == "socket.connect":
            self._note(f"connected to {arguments[1]!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self._hear_open(os.fsdecode(arguments[0]), arguments[2] or 0)
        elif event in _WRITE_EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            self._check_write(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))  # noqa: PTH118, PTH119, PTH120

    def _hear_program(self, event: str, arguments: tuple[Any, ...]) -> None:
        program = arguments[0]
        if event == "subprocess.Popen":
            command = arguments[1]
            program = command if isinstance(command, str | bytes) else command[0]
        if Path(os.fsdecode(program)).name not in _ALLOWED_PROGRAMS:
            self._note(f"started {program!r}")

    def _hear_open(self, path: str, flags: int) -> None:
        # Pathlib would do more than a hook should.
        if flags & _WRITE_FLAGS:
            self._check_write(os.path.realpath(path))
        elif os.path.abspath(path).startswith(self._outside):  # noqa: PTH100
            self._note(f"read {path}")

    def _check_write(self, path: str) -> None:
        if not path.startswith((self._folder, "/dev/", "/proc/self/")) or path.startswith(self._outside):
            self._note(f"wrote {path}")

    def _note(self, text: str) -> None:
        os.write(self._file, (printable(text) + "\n").encode())


# Running a case


class Messages(logging.Handler):
    """Keeps what the product logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    def warnings(self) -> list[str]:
        return [text for level, text in self.lines if level >= logging.WARNING]


class Runner:
    """Makes and runs cases in folders below `root`, from sound inputs that it writes there first."""

    def __init__(self, root: Path) -> None:
        self.root, self.pristine = root, root / "pristine"
        self.pristine.mkdir(parents=True)
        self.messages = Messages()
        logging.basicConfig(level=logging.INFO, handlers=[self.messages])
        self.sentry = Sentry(root / "notes.txt")
        # Warnings that sound inputs bring, too.
        self.usual: set[str] = set()
        write_inputs(self.pristine)
        with watched(self.sentry, self.pristine), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            write_runs(self.pristine)
        self.usual |= {like(text, self.pristine) for text in self.messages.warnings()}
        for door in (preprocess_door, index_door):
            self._run_sound(door())
        self.sentry.notes()

    def run_seed(self, seed: int) -> dict[str, Any]:
        """Make a seed's case, run it, and say what came of it."""
        kind = choose_kind(seed)
        # One level more: a path may lead up.
        folder = self.root / f"case{seed}" / "here"
        self._prepare(folder)
        case = Case(random.Random(seed), folder)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door = KINDS[kind](case)
            outcome, text = self._run(door, folder)
        if kind == "finished evaluation" and outcome == "silent" and not self._has_sound_scores(folder):
            outcome, text = "FAULT", "the scores are not those of a sound evaluation"
        seconds = round(time.perf_counter() - start, 2)
        shutil.rmtree(folder.parent)
        return {
            "seed": seed,
            "kind": kind,
            "script": door[0].__module__,
            "damage": case.damage,
            "door": printable(" ".join(door[1]))[:300],
            "outcome": outcome,
            "text": text.replace(str(folder), "CASE"),
            "seconds": seconds,
        }

    def _has_sound_scores(self, folder: Path) -> bool:
        """Whether an evaluation of undamaged scenes has the scores that it had before its own files were damaged."""
        before, after = (json.loads((root / "out" / "results.json").read_text()) for root in (self.pristine, folder))
        return before["averages"] == after["averages"] and before["scenes"] == after["scenes"]

    def _prepare(self, folder: Path) -> None:
        """A copy of the sound inputs, with a file outside of the set and a false Ghostscript."""
        shutil.copytree(self.pristine, folder)
        for name in ("home", "outside", "bin"):
            (folder / name).mkdir()
        shutil.copy(folder / "set" / "images" / "scene0" / "00000.jpg", folder / "outside" / "secret.jpg")
        program = folder / "bin" / "gs"
        program.write_text(f"#!/bin/sh\ntouch {folder}/canary\n")
        program.chmod(0o755)

    def _run_sound(self, door: Door) -> None:
        folder = self.root / "sound" / "here"
        self._prepare(folder)
        outcome, text = self._run(door, folder)
        if outcome not in ("silent", "told"):
            raise RuntimeError(f"a sound input: {outcome}: {text}")
        self.usual |= {like(text, folder) for text in self.messages.warnings()}
        shutil.rmtree(folder.parent)

    def _run(self, door: Door, folder: Path) -> tuple[str, str]:
        """Run a script and judge what it says and does.

        Returns:
            `silent` (as if nothing was), `told` (went on, but said so), `refused` or `FAULT`; and words.
        """
        script, arguments = door
        self.messages.lines.clear()
        # What a process says once, every case may say.
        data.loader._said.clear()
        spoken = io.StringIO()
        sys.argv = ["script", *arguments]
        outcome, text = "silent", ""
        try:
            with redirect_stdout(spoken), redirect_stderr(spoken), watched(self.sentry, folder):
                run_main(script)
        except SystemExit as error:
            last_line = (spoken.getvalue().strip().splitlines() or [""])[-1]
            text = error.code if isinstance(error.code, str) else last_line
            outcome = "refused"
        except BaseException as error:  # what a user would see as a traceback
            outcome, text = "FAULT", f"{type(error).__name__} at {place(error)}: {str(error)[:300]!r}"
        warned = [text for text in self.messages.warnings() if like(text, folder) not in self.usual]
        if outcome == "silent" and (warned or any(folder.rglob("lost.json")) or any(folder.rglob("unusable.txt"))):
            outcome, text = "told", warned[-1] if warned else "listed"
        faults = self.sentry.notes() + judge_output(spoken.getvalue())
        faults += judge_files(folder) if outcome in ("silent", "told") or (folder / "scenes").exists() else []
        if outcome == "refused":
            faults += judge_refusal(text, [self.pristine, folder], arguments)
        faults += [f"log line not safe: {line[:200]!r}" for _, line in self.messages.lines if not is_safe(line)]
        return ("FAULT", f"{'; '.join(faults)} [{outcome}: {text[:300]}]") if faults else (outcome, text)


@contextmanager
def watched(sentry: Sentry, folder: Path) -> Iterator[None]:
    """Make a case's folder the whole world of what runs inside."""
    working_directory = Path.cwd()
    surroundings = dict(os.environ)
    os.environ |= {
        "HOME": str(folder / "home"),
        "TORCH_HOME": str(folder / "torch"),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    sentry.begin(folder)
    try:
        yield
    finally:
        sentry.end()
        os.chdir(working_directory)
        tempfile.tempdir = None
        os.environ.clear()
        os.environ |= surroundings


def place(error: BaseException) -> str:
    """The last line of the project that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def judge_files(folder: Path) -> list[str]:
    """What is wrong with the files that are left."""
    faults = ["executed what a file held"] if (folder / "canary").exists() else []
    left = [path.name for path in folder.rglob(".*") if "lvsm" in path.name or path.name.endswith(".tmp")]
    faults += [f"left behind: {printable(name)[:100]}" for name in left]
    return faults + [f"made {path.name}, which is broken" for path in made(folder) if not is_sound(path)]


def made(folder: Path) -> list[Path]:
    """What a case's script may have made that the next one reads."""
    metadata, results = folder / "scenes" / "train" / "metadata", folder / "out" / "results.json"
    # Training goes on to step 2 in an old folder and to step 1 in a new one; the others were there before.
    checkpoints = [folder / "run" / checkpoint_name(2), folder / "new" / checkpoint_name(1)]
    return [path for path in [*metadata.glob("[!.]*.json"), results, *checkpoints] if path.is_file()]


def is_sound(path: Path) -> bool:
    """Whether a file that a script made can be read again, and holds numbers where it should."""
    try:
        if path.suffix == ".pt":
            state = torch.load(path, weights_only=True)["model"]
            return all(bool(value.isfinite().all()) for value in state.values())
        if path.name == "results.json":
            return all(map(math.isfinite, json.loads(path.read_text())["averages"].values()))
        read_scene(path)
    except Exception:  # in whatever way it is broken
        return False
    return True


def judge_output(spoken: str) -> list[str]:
    """What is wrong with what was printed."""
    faults = [] if all(map(is_safe, spoken.splitlines())) else [f"unsafe output: {spoken[:200]!r}"]
    return faults + (["a traceback was printed"] if "Traceback" in spoken else [])


def judge_refusal(message: str, folders: list[Path], arguments: list[str]) -> list[str]:
    """What is wrong with the message of a refusal, which may name what is or was in the folders."""
    faults = [] if is_safe(message) else ["the message is not safe to print"]
    # The parser of arguments repeats what was typed, however long.
    if len(message) > _LONGEST_MESSAGE and not message.startswith("script: error: "):
        faults.append(f"the message has {len(message)} characters")
    return faults if names_culprit(message, folders, arguments) else [*faults, "the message names no culprit"]


def is_safe(text: str) -> bool:
    """Whether a terminal can show a line as it is."""
    return not any(unicodedata.category(character) in _UNSAFE for character in text.replace("\t", " "))


def names_culprit(message: str, folders: list[Path], arguments: list[str]) -> bool:
    """Whether a message names a file, a scene, a key or an argument."""
    files = {part for folder in folders for path in folder.rglob("*") for part in (path.name, path.stem)}
    keys = {path for path, _ in leaves(setup.Config)}
    given = {argument.split("=")[0].strip() for argument in arguments}
    names = files | keys | given | {key.rsplit(".", 1)[-1] for key in keys}
    return any(name in message for name in names if len(name) > 2)


def like(text: str, folder: Path) -> str:
    """A message without what differs from run to run."""
    return re.sub(r"\d+", "#", text.replace(str(folder), "CASE"))


def limit_memory() -> None:
    """Let a gigantic allocation fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY,) * 2)


def main(argv: list[str]) -> None:
    """Run the seeds."""
    # The product's own output goes elsewhere.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    faulthandler.enable()
    runner = Runner(Path(argv[0]).resolve())
    limit_memory()
    for seed in map(int, argv[1:]):
        print(json.dumps({"begin": seed}), file=out)
        print(json.dumps(runner.run_seed(seed)), file=out)


if __name__ == "__main__":
    main(sys.argv[1:])

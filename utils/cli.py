"""Running a script's `main`: logging to stderr, and what a user can mend told in one line."""

import argparse
import errno
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from utils import launcher
from utils.errors import InputError
from utils.files import expand_path
from utils.text import printable

# Characters of a line on the terminal; longer ones lose their middle, since the advice stands at the end.
_LONGEST = 2000
# What to do about errors of the system that a user can mend.
_ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or name another folder",
    errno.EISDIR: "a folder stands where a file is needed: move it away, or name another one",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or name another folder",
    errno.ENOTEMPTY: "a folder with files stands in the way: move it away, or name another one",
    errno.EACCES: "you have no permission for it: change its permissions, or name another place",
    errno.EPERM: "you have no permission for it: change its permissions, or name another place",
    errno.EROFS: "nothing can be written there: name a folder on another disk",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead in a circle: remove them, or name another place",
    errno.ENOENT: "check the path: it, or the folder that it is in, is not there",
    errno.ENXIO: "a pipe or socket stands where a file is needed: move it away",
}
# Seconds that processes get to die of SIGKILL before this one goes without them.
_FAREWELL = 2.0


class SafeFormatter(logging.Formatter):
    """Records as bounded lines without characters that a terminal may act on; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return "\n".join(printable(line, _LONGEST) for line in super().format(record).split("\n"))


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Run an entry script's `main(argv)`; bad input ends in one line on stderr and exit code 1."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    code = 0
    try:
        main(sys.argv[1:])
    except OSError as error:
        code = _fail(describe_os_error(error))
    except InputError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    _end_children(code)
    if code:
        sys.exit(code)


def describe_os_error(error: OSError) -> str:
    """What the system refused, of which file, and what to do; of a rename, the name that was wanted."""
    reason = error.strerror or str(error)
    path = error.filename2 or error.filename
    named = f"{path if isinstance(path, str | Path) else os.fsdecode(path)}: {reason}" if path else reason
    advice = _ADVICE.get(error.errno or 0)
    return f"{named}; {advice}" if advice else named


def leave_at_once(message: str, code: int) -> NoReturn:
    """End this process from any thread, whatever the others wait for, with one line."""
    _say(message)
    os._exit(code)


def path_argument(text: str) -> Path:
    """`expand_path` as the `type` of an argument of `argparse`, which would hide the reason of another error."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return expand_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fail(message: str) -> int:
    line = _say(f"error: {message}")
    _tell_torchrun(line)
    return 1


def _say(message: str) -> str:
    """Write one line to stderr; returns it."""
    line = printable(f"{launcher.prefix()}{' '.join(message.split())}", _LONGEST)
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return line


def _tell_torchrun(line: str) -> None:
    """Have torchrun end its own report with `line`, instead of a word on tracebacks."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
        except OSError:
            # The line has been said; torchrun's report is an extra.
            return


def _end_children(code: int) -> None:
    """Kill the processes left: Python would wait for ever for one that hangs (a file system that is gone, say)."""
    children = multiprocessing.active_children()
    if not children:
        return
    if hasattr(signal, "SIGCHLD"):
        # torch takes the death of a loader process for an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()
    deadline = time.monotonic() + _FAREWELL
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    if multiprocessing.active_children():
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)

"""Running a script's `main`: logging to stderr, and bad input told in one line."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import InputError
from utils.files import expand_path


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Run an entry script's `main(argv)`; bad input ends in one line on stderr and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except OSError as error:
        _fail(f"{error}{'; free some space and run again' if error.errno == errno.ENOSPC else ''}")
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    rank = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    sys.exit(f"{rank}error: {' '.join(message.split())}")


def path_argument(text: str) -> Path:
    """`expand_path` as the `type` of an argument of `argparse`, which would hide the reason of another error."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return expand_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

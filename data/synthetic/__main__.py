"""The command line of the synthetic rooms."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from data.synthetic.clips import write_re10k
from data.synthetic.path import DEFAULT_SPEED
from utils.cli import path_argument
from utils.errors import InputError
from utils.text import printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    description = "Write RealEstate10K chunks of walks through procedural rooms."
    parser = _Parser(prog="python -m data.synthetic", description=description, formatter_class=formatter)
    add = parser.add_argument
    add("--output_dir", type=path_argument, required=True, dest="root", metavar="DIR", help="folder to write to")
    add("--train_scenes", type=int, default=64, metavar="N", help="training clips")
    add("--test_scenes", type=int, default=8, metavar="N", help="test clips")
    add("--frames", type=int, default=60, metavar="N", help="frames a clip")
    add("--width", type=int, default=640, metavar="PIXELS", help="width of the pictures")
    add("--height", type=int, default=360, metavar="PIXELS", help="height of the pictures")
    add("--seed", type=int, default=0, metavar="N", help="what decides all clips")
    add("--speed", type=float, default=DEFAULT_SPEED, metavar="METRES", help="mean distance from frame to frame")
    add("--num_processes", type=int, default=0, metavar="N", help="processes; 0 for one on every core")
    add("--clips_per_chunk", type=int, default=16, metavar="N", help="clips a file")
    add("--context_distance", type=int, metavar="N", help="frames between the context views of the test index")
    add("--targets", type=int, default=3, metavar="N", help="target views of the test index")
    add("--jpeg_quality", type=int, default=92, metavar="Q", help="1 to 100")
    add("--overwrite", action="store_true", help="replace chunks that are in the folder already")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code. Bad input is one line on stderr."""
    try:
        write_re10k(**vars(_parse(argv)))
    except (InputError, OSError) as error:
        sys.stderr.write(f"{printable(f'error: {error}')}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

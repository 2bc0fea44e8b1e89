"""The command line of the synthetic rooms."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from data.synthetic.clips import SetConfig, write_re10k
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
    cfg = SetConfig()
    add("--output_dir", type=path_argument, required=True, dest="root", metavar="DIR", help="folder to write to")
    add("--train_scenes", type=int, default=cfg.train_scenes, metavar="N", help="training clips")
    add("--test_scenes", type=int, default=cfg.test_scenes, metavar="N", help="test clips")
    add("--frames", type=int, default=cfg.frames, metavar="N", help="frames a clip")
    add("--width", type=int, default=cfg.width, metavar="PIXELS", help="width of the pictures")
    add("--height", type=int, default=cfg.height, metavar="PIXELS", help="height of the pictures")
    add("--seed", type=int, default=cfg.seed, metavar="N", help="what decides all clips")
    add("--speed", type=float, default=cfg.speed, metavar="METRES", help="mean distance from frame to frame")
    add("--num_processes", type=int, default=cfg.num_processes, metavar="N", help="processes; 0 for one on every core")
    add("--clips_per_chunk", type=int, default=cfg.clips_per_chunk, metavar="N", help="clips a file")
    add("--context_distance", type=int, metavar="N", help="frames between the context views of the test index")
    add("--targets", type=int, default=cfg.targets, metavar="N", help="target views of the test index")
    add("--jpeg_quality", type=int, default=cfg.jpeg_quality, metavar="Q", help="1 to 100")
    add("--overwrite", action="store_true", help="replace chunks that are in the folder already")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code. Bad input is one line on stderr."""
    try:
        given = vars(_parse(argv))
        root = given.pop("root")
        overwrite = given.pop("overwrite")
        write_re10k(root, SetConfig(**given), overwrite=overwrite)
    except (InputError, OSError) as error:
        sys.stderr.write(f"{printable(f'error: {error}')}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

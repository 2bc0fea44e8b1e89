"""The command line of the synthetic rooms and objects."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data.synthetic.clips import SetConfig, write_re10k
from utils.cli import path_argument
from utils.errors import InputError
from utils.text import printable

AddOption = Callable[..., Any]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the kind that it names."""
    first = _Parser(add_help=False)
    _add_kind(first)
    named, _ = first.parse_known_args(argv)
    kind = _KINDS[named.kind]
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = _Parser(prog="python -m data.synthetic", description=kind.description, formatter_class=formatter)
    _add_kind(parser)
    kind.add_options(parser.add_argument)
    return parser.parse_args(argv)


def _add_kind(parser: argparse.ArgumentParser) -> None:
    help_text = "what the pictures show; each kind has options of its own: --kind objects --help"
    parser.add_argument("--kind", choices=list(_KINDS), default="rooms", help=help_text)


def _add_common(add: AddOption, cfg: Any, scene: str) -> None:
    """Options of sets of any kind; `scene` is what one of a set is called."""
    add("--output_dir", type=path_argument, required=True, dest="root", metavar="DIR", help="folder to write to")
    add("--train_scenes", type=int, default=cfg.train_scenes, metavar="N", help=f"training {scene}s")
    add("--test_scenes", type=int, default=cfg.test_scenes, metavar="N", help=f"test {scene}s")
    add("--frames", type=int, default=cfg.frames, metavar="N", help=f"pictures of each {scene}")
    add("--seed", type=int, default=cfg.seed, metavar="N", help=f"what decides all {scene}s")
    add("--num_processes", type=int, default=cfg.num_processes, metavar="N", help="processes; 0 for one on every core")
    add("--targets", type=int, default=cfg.targets, metavar="N", help="target views of the test index")


def _add_rooms(add: AddOption) -> None:
    cfg = SetConfig()
    _add_common(add, cfg, "clip")
    add("--width", type=int, default=cfg.width, metavar="PIXELS", help="width of the pictures")
    add("--height", type=int, default=cfg.height, metavar="PIXELS", help="height of the pictures")
    add("--speed", type=float, default=cfg.speed, metavar="METRES", help="mean distance from frame to frame")
    add("--clips_per_chunk", type=int, default=cfg.clips_per_chunk, metavar="N", help="clips a file")
    add("--context_distance", type=int, metavar="N", help="frames between the context views of the test index")
    add("--jpeg_quality", type=int, default=cfg.jpeg_quality, metavar="Q", help="1 to 100")
    add("--overwrite", action="store_true", help="replace chunks that are in the folder already")


def _write_rooms(root: Path, overwrite: bool, **given: Any) -> None:
    write_re10k(root, SetConfig(**given), overwrite=overwrite)


def _add_objects(add: AddOption) -> None:
    from data.synthetic.object_set import ObjectSetConfig  # imports torch, which processes that render rooms do without

    cfg = ObjectSetConfig()
    _add_common(add, cfg, "object")
    add("--size", type=int, default=cfg.size, metavar="PIXELS", help="width and height of the pictures")
    add("--inputs", type=int, default=cfg.inputs, metavar="N", help="context views of the test index")
    add("--pack", action="store_true", help="write the pictures of an object as one tar")


def _write_objects(root: Path, **given: Any) -> None:
    from data.synthetic.object_set import ObjectSetConfig, write_objects
    from utils.stop_signal import exit_on_sigterm

    with exit_on_sigterm():
        write_objects(root, ObjectSetConfig(**given))


@dataclass(frozen=True)
class _Kind:
    """A kind of set: what the command says of it, the options it has, and what writes it."""

    description: str
    add_options: Callable[[AddOption], None]
    write: Callable[..., None]


_KINDS = {
    "rooms": _Kind("Write RealEstate10K chunks of walks through procedural rooms.", _add_rooms, _write_rooms),
    "objects": _Kind("Write scenes of procedural objects, RGBA from all around.", _add_objects, _write_objects),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code. Bad input is one line on stderr."""
    try:
        given = vars(_parse(argv))
        _KINDS[given.pop("kind")].write(**given)
    except (InputError, OSError) as error:
        sys.stderr.write(f"{printable(f'error: {error}')}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

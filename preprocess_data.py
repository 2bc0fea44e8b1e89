"""RealEstate10K chunks -> scenes on disk.

    python preprocess_data.py --base_path re10k --output_dir preprocessed_data --mode train

Frames keep their original bytes and their numbers. Run it again to go on where it stopped: scenes that are complete
are left alone. What could not be used is named at the end and in OUTPUT_DIR/MODE/lost.json, and the exit code is then
1. Of two clips of one name, the one in the chunk that index.json says is written, or without an index the first.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from data.importers import IMPORTERS
from data.writing import ImportResult, SceneWriter
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.parallel import cores_of_process
from utils.stop_signal import exit_on_sigterm
from utils.text import counted, printable

log = logging.getLogger("lvsm")

# Losses that are printed.
_SHOWN = 20


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base_path", type=path_argument, required=True, help="folder with a train and a test folder of the source")
    add("--output_dir", type=path_argument, required=True, help="scenes go to OUTPUT_DIR/MODE")
    add("--mode", choices=["train", "test"], required=True, help="which split")
    add("--source", choices=list(IMPORTERS), default="re10k", help="what is imported; re10k: chunks of RealEstate10K")
    add("--num_processes", type=int, help="default: all cores")
    add(
        "--image_format",
        choices=["jpeg", "png"],
        default="jpeg",
        help="jpeg keeps the original bytes; png re-encodes them (the same pixels in 6.6 times the space)",
    )
    return parser.parse_args(argv)


def tell(result: ImportResult, writer: SceneWriter) -> None:
    """Print the outcome.

    Raises:
        InputError: something was lost.
    """
    where = printable(str(writer.root / "full_list.txt"))
    print(f"{counted(result.written, 'clip')} written, {result.kept} already there: {where}")
    if result.other_format:
        log.warning(
            "%s already there in another format than --image_format %s: "
            "name another --output_dir to have all in it, or delete those first",
            counted(result.other_format, "clip"),
            writer.image_format,
        )
    lost_path = writer.write_lost(result)
    if lost_path is None:
        return
    for name, reason in sorted(result.lost.items())[:_SHOWN]:
        print(printable(f"lost: {name}: {reason}"), file=sys.stderr)
    raise InputError(f"clips or frames lost: {len(result.lost)}; {lost_path} names them all")


def main(argv: Sequence[str]) -> None:
    """Import one split."""
    arguments = parse(argv)
    processes = cores_of_process() if arguments.num_processes is None else arguments.num_processes
    if processes < 1:
        raise InputError(f"--num_processes is {processes}; at least 1 is needed")
    writer = SceneWriter(arguments.output_dir / arguments.mode, arguments.image_format)
    with exit_on_sigterm():
        importer = IMPORTERS[arguments.source]
        tell(importer(arguments.base_path / arguments.mode, writer, processes), writer)


if __name__ == "__main__":
    run_main(main)

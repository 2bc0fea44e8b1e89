"""RealEstate10K chunks -> scenes on disk.

    python preprocess_data.py --base_path re10k --output_dir preprocessed_data --mode train

Frames keep their original bytes and their numbers. Run it again to go on where it stopped: scenes that are complete
are left alone. What could not be used is named at the end and in OUTPUT_DIR/MODE/lost.json, and the exit code is then
1. Of two clips of one name, the one in the chunk that index.json says is written, or without an index the first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.importers import IMPORTERS
from data.outcome import tell
from data.shards import MOST_SHARDS, Shard, check_shard_fits, merge_shards
from data.writing import ImportResult, SceneWriter
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.parallel import cores_of_process
from utils.stop_signal import exit_on_sigterm


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base_path", type=path_argument, help="folder with a train and a test folder of the source")
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
    add("--pack", action="store_true", help="write the frames of a clip as one tar (data/packing.py converts)")
    add("--check_images", action="store_true", help="decode every frame, so that damaged ones are found now")
    add("--num_shards", type=int, help="split the clips over so many runs, on as many machines")
    add("--shard", type=int, help="which of them this run writes, to OUTPUT_DIR/MODE/shard_I_of_N; from 0")
    add("--merge", action="store_true", help="list the clips of all shards in OUTPUT_DIR/MODE; nothing else is done")
    arguments = parser.parse_args(argv)
    if arguments.base_path is None and not arguments.merge:
        parser.error("the following arguments are required: --base_path")
    return arguments


def choose_shard(arguments: argparse.Namespace) -> Shard | None:
    """The shard that the command line names; None for all clips.

    Raises:
        InputError: it names none that there is.
    """
    number = arguments.shard
    count = arguments.num_shards
    if number is None and count is None:
        return None
    if number is None or count is None:
        raise InputError("--num_shards and --shard belong together: give both or none")
    if not 1 <= count <= MOST_SHARDS:
        raise InputError(f"--num_shards is {count}, not 1 to {MOST_SHARDS}")
    if not 0 <= number < count:
        raise InputError(f"--shard is {number}; of {count} shards it is 0 to {count - 1}")
    return Shard(number, count)


def merge(root: Path) -> None:
    """Join the lists of a split's shards.

    Raises:
        InputError: shards are missing or do not belong together, or something was lost in one.
    """
    scenes, lost = merge_shards(root, "--output_dir")
    tell(ImportResult(kept=scenes, lost=lost), SceneWriter(root))


def main(argv: Sequence[str]) -> None:
    """Import one split."""
    arguments = parse(argv)
    processes = cores_of_process() if arguments.num_processes is None else arguments.num_processes
    if processes < 1:
        raise InputError(f"--num_processes is {processes}; at least 1 is needed")
    root = arguments.output_dir / arguments.mode
    shard = choose_shard(arguments)
    if arguments.merge:
        merge(root)
        return
    check_shard_fits(root, shard)
    writer = SceneWriter(
        root / shard.folder if shard else root,
        arguments.image_format,
        packed=arguments.pack,
        check_images=arguments.check_images,
        shard=shard or Shard(),
    )
    with exit_on_sigterm():
        importer = IMPORTERS[arguments.source]
        tell(importer(arguments.base_path / arguments.mode, writer, processes), writer)


if __name__ == "__main__":
    run_main(main)

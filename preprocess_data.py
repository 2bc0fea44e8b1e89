"""RealEstate10K, in chunks or raw -> scenes on disk.

    python preprocess_data.py --base_path re10k --output_dir preprocessed_data --mode train

BASE_PATH/MODE holds chunks (*.torch) or the camera files that Google publishes (*.txt). Frames keep their original
bytes and their numbers. Run it again to go on where it stopped: scenes that are complete are left alone. What could not
be used is named at the end and in OUTPUT_DIR/MODE/lost.json, and the exit code is then 1. Of two clips of one name, the
one in the chunk that index.json says is written, or without an index the first.

Frames of camera files are images FRAMES/CLIP/TIMESTAMP.jpg (or png), or those of VIDEOS/ID.mp4 (or webm, mkv) that are
shown nearest to the timestamps. A table of what is there and what is missing ends the run.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.importers import IMPORTERS, find_source
from data.importers.re10k_media import TOLERANCE, Media, usual_media
from data.importers.re10k_raw import import_folder, missing_videos
from data.outcome import tell
from data.shards import MOST_SHARDS, Shard, check_shard_fits, merge_shards
from data.writing import ImportResult, SceneWriter
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.parallel import cores_of_process
from utils.stop_signal import exit_on_sigterm
from utils.text import printable


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base_path", type=path_argument, help="folder with a train and a test folder of the source")
    add("--output_dir", type=path_argument, help="scenes go to OUTPUT_DIR/MODE")
    add("--mode", choices=["train", "test"], required=True, help="which split")
    add("--source", choices=list(IMPORTERS), help="what is imported; default: RealEstate10K in chunks (re10k) or raw")
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
    _add_raw_options(parser)
    _add_other_tasks(parser)
    arguments = parser.parse_args(argv)
    needed = {
        "--base_path": arguments.base_path is not None or arguments.merge,
        "--output_dir": arguments.output_dir is not None or arguments.list_missing,
    }
    if not all(needed.values()):
        missing = ", ".join(name for name, is_given in needed.items() if not is_given)
        parser.error(f"the following arguments are required: {missing}")
    return arguments


def _add_raw_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("raw RealEstate10K").add_argument
    add("--frames", type=path_argument, help="folder of images; default: BASE_PATH/frames and BASE_PATH/MODE")
    add("--videos", type=path_argument, help="folder of videos; default: BASE_PATH/videos")
    tolerance = "milliseconds that a frame of a video may be shown before or after its timestamp"
    add("--tolerance", type=float, metavar="MS", help=f"{tolerance}; default: {TOLERANCE:g}")


def _add_other_tasks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_mutually_exclusive_group().add_argument
    add("--merge", action="store_true", help="list the clips of all shards in OUTPUT_DIR/MODE; nothing else is done")
    add("--list_missing", action="store_true", help="print the ids of videos that raw clips lack; nothing else is done")


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


def choose_source(arguments: argparse.Namespace, folder: Path) -> str:
    """Which of `IMPORTERS` reads the folder of a split.

    Raises:
        InputError: it holds nothing that is known, or an option does not belong to that.
    """
    source = arguments.source or find_source(folder)
    given = [name for name in ("frames", "videos", "tolerance") if getattr(arguments, name) is not None]
    if arguments.list_missing:
        given.append("list_missing")
    if given and source != "re10k_raw":
        raise InputError(f"--{given[0]} is for raw RealEstate10K, which {printable(str(folder))} is not: leave it out")
    return source


def choose_media(arguments: argparse.Namespace, folder: Path) -> Media:
    """Where the command line says that frames are.

    Raises:
        InputError: it names no folder, or no time.
    """
    for name in ("frames", "videos"):
        place = getattr(arguments, name)
        if place is not None and not (place.is_dir() or arguments.list_missing):
            raise InputError(f"--{name} {printable(str(place))} is not a folder")
    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    if not 0 <= tolerance <= 1000:
        raise InputError(f"--tolerance is {tolerance:g}; in milliseconds it is 0 to 1000")
    return usual_media(folder, arguments.frames, arguments.videos, tolerance)


def merge(root: Path) -> None:
    """Join the lists of a split's shards.

    Raises:
        InputError: shards are missing or do not belong together, or something was lost in one.
    """
    scenes, lost = merge_shards(root, "--output_dir")
    tell(ImportResult(kept=scenes, lost=lost), SceneWriter(root))


def list_missing(arguments: argparse.Namespace, processes: int, shard: Shard | None) -> None:
    """Print the ids of the videos that clips lack; clips whose scenes are in --output_dir, if it is given, lack none.

    Raises:
        InputError: there are no camera files.
    """
    folder = arguments.base_path / arguments.mode
    choose_source(arguments, folder)
    media = choose_media(arguments, folder)
    written = SceneWriter(set_folder(arguments, shard)) if arguments.output_dir else None
    for video in missing_videos(folder, processes, media, shard or Shard(), written):
        print(video)


def set_folder(arguments: argparse.Namespace, shard: Shard | None) -> Path:
    """The folder of the set that is written."""
    root = arguments.output_dir / arguments.mode
    return root / shard.folder if shard else root


def import_split(arguments: argparse.Namespace, processes: int, shard: Shard | None) -> None:
    """Write the scenes of a split, or of a shard of it.

    Raises:
        InputError: there is nothing to import, or something was lost.
        OSError: the disk is full or not writable; complete scenes stay, so that a later run goes on.
    """
    check_shard_fits(arguments.output_dir / arguments.mode, shard)
    writer = SceneWriter(
        set_folder(arguments, shard),
        arguments.image_format,
        packed=arguments.pack,
        check_images=arguments.check_images,
        shard=shard or Shard(),
    )
    folder = arguments.base_path / arguments.mode
    source = choose_source(arguments, folder)
    importer = IMPORTERS[source]
    if source == "re10k_raw":
        importer = partial(import_folder, media=choose_media(arguments, folder))
    with exit_on_sigterm():
        tell(importer(folder, writer, processes), writer)


def main(argv: Sequence[str]) -> None:
    """Import one split, or do what is done instead."""
    arguments = parse(argv)
    processes = cores_of_process() if arguments.num_processes is None else arguments.num_processes
    if processes < 1:
        raise InputError(f"--num_processes is {processes}; at least 1 is needed")
    shard = choose_shard(arguments)
    if arguments.list_missing:
        list_missing(arguments, processes, shard)
    elif arguments.merge:
        merge(arguments.output_dir / arguments.mode)
    else:
        import_split(arguments, processes, shard)


if __name__ == "__main__":
    run_main(main)

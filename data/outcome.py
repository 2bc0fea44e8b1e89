"""What commands that write scenes say at their end."""

import logging
import sys
from pathlib import Path

from data.writing import ImportResult, SceneWriter
from utils.errors import InputError
from utils.text import counted, printable

log = logging.getLogger("lvsm")

# Losses that are printed.
_SHOWN = 20


def tell(result: ImportResult, writer: SceneWriter, noun: str = "clip") -> None:
    """Print the outcome; `noun` is what a scene of the set is called.

    Raises:
        InputError: something was lost.
    """
    tell_table(result)
    tell_written(result, writer, noun)
    if result.other_format:
        log.warning(
            "%s already there in another format than --image_format %s: "
            "name another --output_dir to have all in it, or delete those first",
            counted(result.other_format, noun),
            writer.image_format,
        )
    tell_packing(result, writer)
    lost_path = tell_losses(result, writer)
    if lost_path is None:
        return
    raise InputError(f"{noun}s or frames lost: {len(result.lost)}; {lost_path} names them all")


def tell_written(result: ImportResult, writer: SceneWriter, noun: str) -> None:
    """Print how many scenes are new, how many were there, and the list that names all."""
    where = printable(str(writer.root / "full_list.txt"))
    print(f"{counted(result.written, noun)} written, {result.kept} already there: {where}")


def tell_packing(result: ImportResult, writer: SceneWriter) -> None:
    """Warn of clips that stay packed although that is not asked for, or the other way round."""
    if result.other_packing:
        log.warning(
            "%s already there %s: python -m data.packing converts them",
            counted(result.other_packing, "clip"),
            "as files of their own, not packed" if writer.packed else "packed (--pack)",
        )


def tell_table(result: ImportResult) -> None:
    """Print the rows of a result's table that count anything."""
    width = max(map(len, result.table), default=0)
    for what, count in result.table.items():
        if count:
            print(f"{what:<{width}}{count:>9,}")


def tell_losses(result: ImportResult, writer: SceneWriter) -> Path | None:
    """Print the first losses; gives the file that names them all, None if there are none."""
    lost_path = writer.write_lost(result)
    for name, reason in sorted(result.lost.items())[:_SHOWN]:
        print(printable(f"lost: {name}: {reason}"), file=sys.stderr)
    return lost_path

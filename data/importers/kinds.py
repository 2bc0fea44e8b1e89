"""The kinds of sources that a person may bring, in the order in which they are looked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.importers import colmap, opencv_cameras, photographs, re10k_text, transforms_json
from data.importers.capture import Capture, Options
from utils.errors import InputError
from utils.text import printable


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
        what: it, in words.
        finds: whether a file or folder is of this kind.
        read: gives what it holds; InputError says why it cannot.
        wait: what to say before that, if it takes long.
    """

    what: str
    finds: Callable[[Path], bool]
    read: Callable[[Path, Options], Capture]
    wait: str = ""


KINDS: dict[str, Kind] = {
    "colmap": Kind("a COLMAP project or model", colmap.finds, colmap.read),
    "transforms": Kind("transforms.json", transforms_json.finds, transforms_json.read),
    "opencv_cameras": Kind("opencv_cameras.json", opencv_cameras.finds, opencv_cameras.read),
    "re10k_text": Kind("a RealEstate10K text file", re10k_text.finds, re10k_text.read),
    "photos": Kind(
        "a folder of photographs",
        photographs.finds,
        photographs.read,
        wait="COLMAP has to find the cameras of these photographs, which may take minutes",
    ),
}


def find_kind(source: Path) -> str | None:
    """The first kind that a source is of."""
    return next((name for name, kind in KINDS.items() if kind.finds(source)), None)


def find_sources(source: Path, kind: str | None) -> dict[Path, str]:
    """What is to be read, with its kind: the source, or if it is none, each of its folders that is one.

    Raises:
        InputError: nothing is found.
    """
    if not source.exists():
        raise InputError(f"{printable(str(source))} does not exist")
    if kind is not None:
        return {source: kind}
    folders = sorted(path for path in source.glob("[!.]*") if path.is_dir()) if source.is_dir() else []
    for paths in ([source], folders):
        found = {path: name for path in paths if (name := find_kind(path)) is not None}
        if found:
            return found
    known = ", ".join(kind.what for kind in KINDS.values())
    raise InputError(
        f"{printable(str(source))} is none of the sources that are read: {known}{photographs.hint(source)}"
    )

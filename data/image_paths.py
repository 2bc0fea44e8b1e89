"""Where the images of a scene are: relative to its file, inside the set, and never elsewhere unless that is allowed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from utils.files import is_inside
from utils.text import printable, shown


@dataclass(frozen=True)
class Images:
    """The images that a metadata file names.

    Attributes:
        paths: one a frame; None where the file has null or something that cannot be used.
        faults: why a frame has none, by number, but for null.
        root: the set's folder, the one that holds the folder of the metadata; None: images may lie anywhere.
        note: how their paths are read if not as they should be, else empty.
    """

    paths: list[Path | None]
    faults: dict[int, str]
    root: Path | None
    note: str


def find_images(texts: Sequence[object], source: Path, allow_outside: bool) -> Images:
    """The images of a scene from what its metadata file `source` says: a text or null a frame.

    No link is followed here, `is_led_out` does that; files are looked for only where paths do not begin with `../`.
    """
    folder = _folder_of(source)
    root = None if allow_outside else folder.parent
    usable = {n: text.replace("\\", "/") for n, text in enumerate(texts) if isinstance(text, str) and is_path(text)}
    base, prefix = _find_base(list(usable.values()), folder)
    paths: list[Path | None] = [None] * len(texts)
    faults = {n: "its image_path is not a path" for n, text in enumerate(texts) if text is not None and n not in usable}
    folders: dict[str, Path] = {}
    for number, text in usable.items():
        name = text.rpartition("/")[2]
        before = text.removeprefix(prefix).removesuffix(name)
        if before not in folders:
            folders[before] = Path(os.path.normpath(base / before))
        if root is not None and not folders[before].is_relative_to(root):
            faults[number] = outside(folders[before] / name, root)
        else:
            paths[number] = folders[before] / name
    note = ""
    if (base, prefix) != (folder, ""):
        where = printable(str(source))
        note = f"{where}: image paths seem to be relative to a working directory; images are taken from {base}"
    return Images(paths, faults, root, note)


def _folder_of(source: Path) -> Path:
    """The folder of a file, absolute, and such that `..` after it may be taken from its text."""
    folder = Path(os.path.normpath(source.parent.absolute()))
    return folder.resolve() if folder.is_symlink() else folder


def is_path(text: str) -> bool:
    """Whether a file can have this path: its name is one, without zeros and half characters."""
    sound = text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
    return sound and "\0" not in text and not text.endswith(("/", "/.", "/..", "\\")) and text not in ("", ".", "..")


def _find_base(texts: Sequence[str], folder: Path) -> tuple[Path, str]:
    """What image paths are relative to, and what is to be cut off before them.

    They are relative to the file's folder. In sets that other programs wrote or that were moved they may not be; the
    images may still lie in the set as images/SCENE/FILE, or where the paths lead from the working directory.
    """
    for text in texts:
        if text.startswith("../") or exists(folder / text):
            break
        tail = "/".join(text.split("/")[-3:])
        if tail.startswith("images/") and exists(folder.parent / tail):
            return folder.parent, text.removesuffix(tail)
        if exists(Path(text)):
            return Path.cwd(), ""
    return folder, ""


def exists(path: Path) -> bool:
    """Whether something is at `path`, as far as one can see."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long or of zeros, a folder that may not be entered
        return False


def is_led_out(path: Path, root: Path) -> bool:
    """Whether a link leads the image `path` out of `root`.

    Raises:
        OSError: the system does not say whether it is a link.
    """
    return not (is_inside(path, root) if path.is_symlink() else _is_folder_inside(path.parent, root))


@lru_cache(maxsize=1024)
def _is_folder_inside(folder: Path, root: Path) -> bool:
    return is_inside(folder, root)


def outside(path: Path, root: Path) -> str:
    """What is wrong with an image outside its set, and what would allow it."""
    where = f"its image {shown(str(path), 300)} lies outside the set's folder {printable(str(root))}"
    return f"{where}: training.allow_outside_images=true would read it"

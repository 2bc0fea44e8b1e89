"""Photographs without cameras: these are found from the photographs, with the focal lengths that they name."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from data.importers.capture import Capture, Options, Photo, plain_name
from data.importers.images import fit, upright
from data.importers.lens import Lens, Size, lens_of_values
from data.importers.structure import Placed, Structure, find_structure
from data.transforms import (
    IMAGE_ERRORS,
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    open_image,
    orientation,
    to_rgb,
    why_undecodable,
)
from utils.errors import InputError
from utils.files import read_bytes
from utils.text import counted, printable, shown

# Pixels of the longer side of the copies that are matched.
_LONGEST = 1200
# The width in millimetres of the film that focal lengths "in 35 mm terms" are for.
_FILM_WIDTH = 36.0
# A share by which no sound focal length is refined, and degrees at which depth is hardly known.
_FOCAL_CHANGE = 0.15
_SMALL_ANGLE = 2.0
_UNREAD = (".heic", ".heif", ".webp", ".tif", ".tiff", ".dng", ".avif")


@dataclass(frozen=True)
class _Photograph:
    """An image as it is matched: its size upright, and its focal length for that, if known."""

    path: Path
    size: Size
    turn: int
    focal: float | None


def finds(source: Path) -> bool:
    """Whether a folder, or the folder images in it, holds images; those below are of captures of their own."""
    return any(_photographs_in(folder) for folder in _folders(source))


def _folders(source: Path) -> list[Path]:
    return [folder for folder in (source, source / "images") if folder.is_dir()]


def _photographs_in(folder: Path) -> list[Path]:
    files = (path for path in folder.glob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file())


def hint(folder: Path) -> str:
    """What to say, after a semicolon, of images in a folder that are of other formats; nothing if there are none."""
    unread = _unread_in(folder)
    return f"; {shown(unread[0].name)} and the like are not read: export JPEG" if unread else ""


def _unread_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in _UNREAD)


def read(source: Path, options: Options) -> Capture:
    """Find the cameras of the photographs in a folder.

    Raises:
        InputError: there are fewer than two, two without a focal length, or they show too little in common.
    """
    folders = [options.images] if options.images else _folders(source)
    folder = next((folder for folder in folders if _photographs_in(folder)), options.images or source)
    paths, repeats = _without_copies(_photographs_in(folder))
    _check_number(folder, paths, repeats)
    started = time.monotonic()
    photographs = [_read(path, options) for path in paths]
    known = [photograph.focal for photograph in photographs]
    if len(paths) == 2 and None in known:
        raise InputError(
            f"{printable(str(folder))}: {shown(paths[known.index(None)].name)} names no focal length, without which "
            "two photographs have no cameras: --fov DEGREES or --focal35 MM names it, or add a third photograph"
        )
    copies = [_copy(photograph) for photograph in photographs]
    scales = [max(copy.size) / max(photograph.size) for copy, photograph in zip(copies, photographs, strict=True)]
    focal = [f and f * scale for f, scale in zip(known, scales, strict=True)]
    structure = find_structure(copies, focal)
    if structure is None:
        raise InputError(
            f"{printable(str(folder))}: its {counted(len(paths), 'photograph')} show too little in common from "
            "different places: photograph one thing with two thirds of overlap, and move the camera, not only turn it"
        )
    placed = {camera.number: camera for camera in structure.placed}
    photos = [_photo(photo, placed[n], folder) for n, photo in enumerate(photographs) if n in placed]
    notes = _notes(structure, photographs, focal, time.monotonic() - started)
    notes += _left_out(paths, placed, repeats, _unread_in(folder))
    return Capture(plain_name(source), f"{counted(len(paths), 'photograph')}, cameras found by COLMAP", photos, notes)


def _without_copies(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Photographs of which no other has the same bytes, and what to say of the others."""
    first: dict[bytes, Path] = {}
    repeats = []
    for path in paths:
        try:
            digest = hashlib.sha256(read_bytes(path, MAX_IMAGE_BYTES)).digest()
        except OSError as error:
            raise _undecodable(path, error) from None
        if first.setdefault(digest, path) != path:
            repeats.append(f"{shown(path.name)} is a copy of {shown(first[digest].name)}")
    return list(first.values()), repeats


def _check_number(folder: Path, paths: Sequence[Path], repeats: Sequence[str]) -> None:
    if len(paths) >= 2:
        return
    found = f"{printable(str(folder))} holds {counted(len(paths), 'photograph')} (JPEG or PNG)"
    repeated = f"; {repeats[0]}" if repeats else ""
    raise InputError(f"{found}, and cameras need two or more{repeated}{hint(folder)}")


def _read(path: Path, options: Options) -> _Photograph:
    try:
        with open_image(path) as image:
            tag = orientation(image)
            stored = image.size
            length = _focal35(image) if options.focal35 is None else options.focal35
    except IMAGE_ERRORS as error:
        raise _undecodable(path, error) from None
    size = stored[::-1] if tag in (5, 6, 7, 8) else stored
    _, turn = fit(_plain_lens(size), stored, tag)
    size = size if turn == tag else stored
    if options.fov is not None:
        return _Photograph(path, size, turn, max(size) / (2 * np.tan(np.radians(options.fov) / 2)))
    return _Photograph(path, size, turn, None if length is None else length / _FILM_WIDTH * max(size))


def _plain_lens(size: Size) -> Lens:
    values = {"f": float(max(size)), "cx": size[0] / 2, "cy": size[1] / 2}
    return lens_of_values("SIMPLE_PINHOLE", size, values, fisheye=False)


def _focal35(image: Image.Image) -> float | None:
    """The focal length in 35 mm terms that an image names."""
    try:
        length = float(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0))
    except Exception:  # broken EXIF data fail in many ways and cost only what they say
        return None
    return length if 1 < length < 2000 else None


def _copy(photograph: _Photograph) -> Image.Image:
    try:
        with open_image(photograph.path) as image:
            image = upright(to_rgb(image), photograph.turn)
    except IMAGE_ERRORS as error:
        raise _undecodable(photograph.path, error) from None
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return image


def _undecodable(path: Path, error: Exception) -> InputError:
    return InputError(f"{printable(str(path))} cannot be decoded: {why_undecodable(error)}")


def _photo(photograph: _Photograph, placed: Placed, folder: Path) -> Photo:
    name = photograph.path.relative_to(folder).as_posix()
    return Photo(name, placed.w2c, photograph.path, placed.lens.resized(photograph.size))


def _notes(
    structure: Structure, photographs: Sequence[_Photograph], focal: Sequence[float | None], seconds: float
) -> list[str]:
    count = f"  {len(structure.placed)} of {counted(len(photographs), 'photograph')} placed in {seconds:.0f} s"
    error = structure.reprojection_error
    notes = [count if error is None else f"{count}, reprojection error {error:.2f} pixels"]
    angle = f"  points are seen at {structure.angle:.1f}° (median) from the farthest cameras"
    small = structure.angle < _SMALL_ANGLE
    notes.append(f"{angle}: move the camera, do not only turn it" if small else angle)
    first = structure.placed[0]
    found = first.lens.fxfycxcy[0]
    given = focal[first.number]
    if given is None:
        notes.append("  the focal length was guessed and refined: do not trust it; --fov or --focal35 names it")
    elif len(photographs) > 2:
        far = abs(found / given - 1) > _FOCAL_CHANGE
        doubt = ", which is far: one of them is wrong" if far else ""
        notes.append(f"  focal length refined to {found / given:.3f} times the given one{doubt}")
    return notes


def _left_out(
    paths: Sequence[Path], placed: dict[int, Placed], repeats: Sequence[str], unread: Sequence[Path]
) -> list[str]:
    notes = []
    lost = [path.name for number, path in enumerate(paths) if number not in placed]
    if lost:
        notes.append(f"  {counted(len(lost), 'photograph')} not placed: {', '.join(map(shown, lost[:5]))}")
    if repeats:
        notes.append(f"  {counted(len(repeats), 'photograph')} left out: {', '.join(repeats[:3])}")
    if unread:
        notes.append(f"  {counted(len(unread), 'image')} not read ({shown(unread[0].name)}): export JPEG")
    return notes

"""Packed clips: the frames of one in an uncompressed tar, their bytes unchanged, each found by its offset.

One file stands for 150, which file systems of clusters and backups like better; any tar program unpacks it.
"""

import errno
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import atomic_path, open_regular, read_bytes
from utils.text import shown

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PackedImage:
    """An image file inside a tar.

    Attributes:
        pack: the tar.
        name: what the tar calls the image.
        offset: of its first byte in the tar.
        length: in bytes.
    """

    pack: Path
    name: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.name} in {self.pack}"

    @property
    def suffix(self) -> str:
        """As that of a path."""
        return Path(self.name).suffix

    @property
    def end(self) -> int:
        """Where its last byte ends in the tar."""
        return self.offset + self.length

    def stat(self) -> os.stat_result:
        """The state of the tar."""
        return self.pack.stat()

    def read(self, limit: int) -> bytes:
        """The content of the image file, of at most `limit` bytes; the tar is open no longer than that takes.

        Raises:
            OSError: the tar is missing, may not be read or is no regular file, or the image is larger.
            ValueError: the tar ends too early or has something else there.
        """
        if self.length > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(self))
        with open_regular(self.pack) as file:
            size = os.fstat(file.fileno()).st_size
            if self.end > size:
                raise ValueError(f"the tar ends at byte {size}, the image at {self.end}: get the tar anew")
            file.seek(self.offset - _BLOCK)
            header = file.read(_BLOCK)
            self._check(header)
            return file.read(self.length)

    def _check(self, header: bytes) -> None:
        """Raises ValueError unless the tar says of the bytes after `header` what is known of the image."""
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError:
            raise ValueError(f"the tar has no file at byte {self.offset}: get the tar and the metadata anew") from None
        if not found.isreg() or (found.name, found.size) != (self.name, self.length):
            raise ValueError(
                f"at byte {self.offset} the tar has {shown(found.name)} of {found.size} bytes, "
                f"not this image of {self.length}: get the tar and the metadata anew"
            )


# Where the image of a frame lies.
ImageFile = Path | PackedImage


def packed_image(pack: Path, name: Any, offset: Any, length: Any) -> PackedImage | None:
    """The image that a file names so; None if no image can lie there."""
    sound = isinstance(name, str) and type(offset) is int and type(length) is int
    if not sound or offset < _BLOCK or length < 1 or "/" in name:
        return None
    return PackedImage(pack, name, offset, length)


def read_image_file(image: ImageFile, limit: int) -> bytes:
    """The content of an image file of at most `limit` bytes.

    Raises:
        OSError: as `utils.files.read_bytes` does.
        ValueError: as `PackedImage.read` does.
    """
    return image.read(limit) if isinstance(image, PackedImage) else read_bytes(image, limit)


def file_of(image: ImageFile) -> Path:
    """The file of the file system that holds an image."""
    return image.pack if isinstance(image, PackedImage) else image


class NewPack:
    """A tar in the making."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._images: dict[str, PackedImage] = {}
        self._has_gaps = False

    def write(self, name: str, data: bytes) -> None:
        """Add an image."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._file.write(header.tobuf(tarfile.USTAR_FORMAT))
        self._images[name] = PackedImage(self._path, name, self._file.tell(), len(data))
        self._file.write(data)
        self._file.write(bytes(-len(data) % _BLOCK))

    def remove(self, name: str) -> None:
        """Leave an image out again."""
        del self._images[name]
        self._has_gaps = True

    def image(self, name: str) -> PackedImage:
        """Where an image lies, once the tar is finished."""
        return self._images[name]

    def finish(self) -> None:
        """Write the end of the tar."""
        if self._has_gaps:
            self._close_gaps()
        self._file.write(bytes(2 * _BLOCK))

    def _close_gaps(self) -> None:
        """Move images to the front, each to where the one before it ends, and cut what is left."""
        end = 0
        for name, image in self._images.items():
            length = _BLOCK + image.length + -image.length % _BLOCK
            self._file.seek(image.offset - _BLOCK)
            content = self._file.read(length)
            self._file.seek(end)
            self._file.write(content)
            self._images[name] = PackedImage(self._path, name, end + _BLOCK, image.length)
            end += length
        self._file.seek(end)
        self._file.truncate()


@contextmanager
def new_pack(path: Path) -> Iterator[NewPack]:
    """A tar to write images to, which takes its place at `path` whole and on disk, or not at all.

    Raises:
        OSError: as `utils.files.atomic_path` does.
    """
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        pack = NewPack(path, file)
        yield pack
        pack.finish()


def holds(pack: Path, images: Sequence[PackedImage]) -> bool:
    """Whether a tar is a file, no link, of this name, that does not end before the last of the images."""
    if pack.is_symlink() or not pack.is_file():
        return False
    size = pack.stat().st_size
    return all(image.pack.name == pack.name and image.end <= size for image in images)


def first_name(pack: Path) -> str | None:
    """The name of the first file in a tar; None for what is no tar.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(pack) as file:
        try:
            return tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "replace").name
        except tarfile.HeaderError:
            return None

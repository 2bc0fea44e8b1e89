"""Files: read only if they are regular files and not beyond a bound, written whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from utils.errors import InputError
from utils.text import printable, shown

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")
# What this project's own temporary files are called, and nothing else.
_TEMPORARY = re.compile(r"\..+\.lvsm-[0-9a-f]{8}\.tmp(\.[\w-]*)?", re.ASCII)
# Largest text file that is read at once: metadata of a clip takes 50 kB, the published evaluation index 1 MB.
_TEXT_LIMIT = 1 << 30
# More digits than a frame number, a focal length or a score can have; beyond 4,300 Python gives up, too.
_INTEGER_DIGITS = 30


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading in binary, if it is a regular file.

    A pipe would wait for a writer, a device never end.

    Raises:
        OSError: as `open` does, and for anything but a regular file.
    """
    return os.fdopen(_open_descriptor(path, os.O_RDONLY), "rb")


def open_to_append(path: Path) -> TextIO:
    """Open a regular UTF-8 file, made if it is missing, to add lines; each goes out when it ends.

    A last line that was cut short gets its end, so that no other joins it.

    Raises:
        OSError: as `open` does, and for anything but a regular file.
    """
    descriptor = _open_descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    if os.lseek(descriptor, 0, os.SEEK_END):
        os.lseek(descriptor, -1, os.SEEK_END)
        if os.read(descriptor, 1) != b"\n":
            os.write(descriptor, b"\n")
    return os.fdopen(descriptor, "a", buffering=1, encoding="utf-8")


def _open_descriptor(path: Path, flags: int) -> int:
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        OSError: as `open_regular` does, and for a file that is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Files that the system makes up claim no size; a buffer of the limit's size for all would take 0.1 ms.
        content = file.read((size or limit) + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
    return content


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file, without a byte order mark.

    Raises:
        OSError: as `read_bytes` does.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, _TEXT_LIMIT).decode("utf-8-sig")


def expand_path(text: str) -> Path:
    """The path that a user's text means: `~` (`~name`) at its beginning, `$NAME` and `${NAME}` anywhere are replaced.

    Raises:
        InputError: a variable is not set, there is no such user, or the text holds a null byte.
    """
    if "\0" in text:
        raise InputError(f"the path {shown(text)} holds a null byte: write it anew")
    replaced = _VARIABLE.sub(lambda match: _variable(match[1] or match[2], text), text)
    # Path would drop the ./ of ./~ before.
    path = os.path.expanduser(replaced)  # noqa: PTH111
    if text.startswith("~") and path.startswith("~"):
        raise InputError(f"{shown(text)} names the home folder of a user that does not exist: ./~ means a plain ~")
    return Path(path)


def _variable(name: str, text: str) -> str:
    if name not in os.environ:
        raise InputError(f"{shown(text)}: the environment variable {name} is not set: set it or write the path out")
    return os.environ[name]


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` lies in `folder` once all links are followed; what links lead nowhere for does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def filled_files(folder: Path) -> set[str]:
    """The names of the regular files in `folder`, links left out, that have anything in them."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
        return {entry.name for entry in files if entry.stat(follow_symlinks=False).st_size}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, else remove it.

    A link at `path` is replaced itself.

    Raises:
        OSError: something else than a file stands at `path`, which is left alone; or whatever the file system refuses
            (no space, no permission), after the temporary is gone.
    """
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since libraries choose the file format by it; two writers do not meet.
    temporary = temporary_path(path)
    with errors_name(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    """Raises OSError for a device, a pipe, a socket or a folder, or a link to one, which no file may replace."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing is there, or nothing can be written there, as writing will tell
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file, so it is not replaced", str(path))


def temporary_path(path: Path) -> Path:
    """A name beside `path` for its content while that is not whole; `remove_stale` knows it again."""
    return path.with_name(f".{path.stem}.lvsm-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut; Windows cannot and need not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Make an OSError inside name `path` if it names no file, as a full disk's does not, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not (error.filename is None or _is_temporary(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_temporary(filename: object) -> bool:
    return isinstance(filename, str) and any(map(_TEMPORARY.fullmatch, Path(filename).parts))


def remove_stale(folder: Path) -> None:
    """Remove what processes that were killed while writing left in `folder`; nobody may be writing there now.

    Only names of `temporary_path` go; links are neither followed nor removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (NaN is refused) atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a regular file's content, in hexadecimal."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """A digest of a regular file's content, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def fingerprint(path: Path) -> list[int]:
    """Size and CRC-32 of a regular file's content: enough to notice that it is not what was written."""
    size = 0
    checksum = 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def append_json_line(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(path) as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; `what` names its role in error messages.

    Raises:
        InputError: the file is missing, unreadable, not JSON, nested beyond reason, or names a key twice in an object.
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        raise InputError(f"{what} not found: {printable(str(path))}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} cannot be read: {printable(str(path))}: {printable(str(error), 300)}") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, nested beyond reason, or names a key twice in an object.
    """
    try:
        return json.loads(text, parse_int=_parse_integer, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _parse_integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"{shown(name)} stands there twice")
        seen.add(name)
    raise AssertionError("a dictionary lost no key")


def is_plain_name(name: object) -> bool:
    """Whether `name` is safe as one path component: a string of letters, digits, `_`, `-` and inner dots."""
    return isinstance(name, str) and len(name) <= 200 and bool(_PLAIN_NAME.fullmatch(name))


def check_plain_name(name: Any, where: str) -> str:
    """Return `name` if it is a plain name, such as a scene key.

    Raises:
        InputError: it is not.
    """
    if is_plain_name(name):
        return name
    raise InputError(f"{where}: {shown(name)} is not a plain name (letters, digits, '_', '-', '.')")

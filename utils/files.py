"""Files appear whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import InputError

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, else remove it.

    Raises:
        OSError: whatever the file system refuses (no space, no permission), after the temporary is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since libraries choose the file format by it; two writers do not meet.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with errors_name(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Make an OSError inside name `path` if it names no file, as a full disk's does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_stale(folder: Path) -> None:
    """Remove what processes that were killed while writing left in `folder`; nobody may be writing there now."""
    for path in folder.glob(".*.tmp*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (NaN is refused) atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_json_line(path: Path, value: Any) -> None:
    """Add one line to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; `what` names its role in error messages.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} cannot be read: {path}: {error}") from None


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
    raise InputError(f"{where}: {name!r} is not a plain name (letters, digits, '_', '-', '.')")

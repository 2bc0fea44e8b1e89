"""One writer a folder: a lock that the system itself takes back when its holder dies."""

import datetime
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import InputError
from utils.files import errors_name
from utils.text import shown

if os.name == "nt":
    import msvcrt
else:
    import fcntl

log = logging.getLogger("lvsm")

LOCK_NAME = ".lvsm.lock"
# What a file system says that cannot lock.
_CANNOT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# What it says of a lock that another process holds.
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
# Where Windows, whose locks forbid reading, locks a byte: beyond the text.
_FAR = 1 << 30
# Bytes of the file that are read.
_MOST = 4096


@contextmanager
def only_writer(folder: Path, key: str) -> Iterator[None]:
    """Be the only process that writes to `folder`, which is made if it is missing.

    The lock is the operating system's, on the file `.lvsm.lock`, so it ends with the process, however that ends; worker
    processes do not inherit it. The file says who holds it (host, pid, start), for messages. What a dead process left
    is taken over, with a word. Where the file system cannot lock, the file's word alone counts.

    Args:
        key: what named the folder (a configuration key, an argument), for the message.

    Raises:
        InputError: another process writes to the folder; the message says which.
        OSError: the folder cannot be made or written to.
    """
    made = not folder.exists()
    path = folder / LOCK_NAME
    descriptor = _acquire(path, folder, key)
    try:
        before = _holder(descriptor)
        if before:
            log.warning("taking over %s from a run that did not end by itself (%s)", folder, before)
        with errors_name(path):
            _write_holder(descriptor)
        yield
    finally:
        # Removed while still held: whoever opened it meanwhile sees that the name is gone, and opens anew.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            # A run that was refused leaves no folder behind.
            with suppress(OSError):
                folder.rmdir()


def _acquire(path: Path, folder: Path, key: str) -> int:
    """The descriptor of the locked file that stands at `path` now."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:
            # Its last holder removed the folder meanwhile.
            continue
        try:
            if not _lock(descriptor):
                raise InputError(
                    f"another run writes to {folder} ({_holder(descriptor) or 'it has just begun'}): "
                    f"wait for it, stop it, or choose another {key}"
                )
            if _is_still(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process has the lock now."""
    try:
        if os.name == "nt":
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            # Not flock: worker processes would inherit that and hold it on after this process died.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _CANNOT:
            raise
        return not _is_alive(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the locked file still has its name; its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "start": now, "program": Path(sys.argv[0]).name}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(holder).encode())


def _fields(descriptor: int) -> dict[str, object]:
    """What the file says; never opened anew, since closing it again would give the lock back (POSIX)."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(descriptor, _MOST))
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _holder(descriptor: int) -> str:
    """Who the file says holds the lock; empty if it does not say."""
    fields = _fields(descriptor)
    return ", ".join(f"{name} {shown(fields[name])}" for name in ("program", "pid", "host", "start") if name in fields)


def _is_alive(descriptor: int) -> bool:
    """Whether the file names a process that may still run, as far as this machine can tell."""
    fields = _fields(descriptor)
    pid = fields.get("pid")
    if not isinstance(pid, int) or pid < 1 or fields.get("host") != socket.gethostname():
        return bool(fields)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

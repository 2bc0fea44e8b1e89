"""Files from the web: bounded in time and size, checked while they arrive, stored whole or not at all."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from utils.files import atomic_path, file_digest
from utils.text import printable

# Seconds without an answer or a byte before a server is given up.
_PATIENCE = 30.0
# Bytes a second, on average, below which a download would not end.
_SLOWEST = 1000
# Bytes that are read at once.
_PIECE = 1 << 18
# Largest file that is fetched unless the caller says less: the networks of the losses take half of it.
_LIMIT = 1 << 30


class DownloadError(Exception):
    """A file that cannot be had from the web; the message says why in one line."""


def download(url: str, path: Path, digest: str, algorithm: str = "sha256", limit: int = _LIMIT) -> None:
    """Fetch `url` to `path`, which appears only once it is whole and its digest right.

    Args:
        digest: of the content, in hexadecimal, or how it begins.
        limit: bytes beyond which it cannot be the file.

    Raises:
        DownloadError: the server is not reached, refuses, stalls, or gives something else.
        OSError: `path` cannot be written.
    """
    found = hashlib.new(algorithm, usedforsecurity=False)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            for piece in _receive(url, limit):
                file.write(piece)
                found.update(piece)
        if not found.hexdigest().startswith(digest):
            raise DownloadError(f"it has {_difference(algorithm, found.hexdigest(), digest)}: nothing was stored")


def _difference(algorithm: str, found: str, expected: str) -> str:
    name = algorithm.upper().replace("SHA", "SHA-")
    return f"{name} {found}, expected {expected}"


@dataclass(frozen=True)
class PublishedFile:
    """A file on the web that is known by its content.

    Args:
        digest: of the content, in hexadecimal, or how it begins.
        limit: bytes beyond which it cannot be the file.
    """

    url: str
    digest: str
    algorithm: str = "sha256"
    limit: int = _LIMIT

    def fetch(self, path: Path) -> None:
        """Download it to `path` if nothing is there; raises as `download` does."""
        if not path.exists():
            download(self.url, path, self.digest, self.algorithm, self.limit)

    def fault(self, path: Path) -> str | None:
        """Why the file at `path` is not this one; None if it is."""
        found = file_digest(path, self.algorithm)
        return None if found.startswith(self.digest) else _difference(self.algorithm, found, self.digest)


def is_reachable(url: str, patience: float = 5.0) -> bool:
    """Whether a server answers within `patience` seconds, whatever it says."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=patience).close()
    except HTTPError:
        return True
    except (OSError, HTTPException, ValueError):
        return False
    return True


def _receive(url: str, limit: int) -> Iterator[bytes]:
    """The pieces of a file as they come; shows progress where a person is watching."""
    received = 0
    start = time.monotonic()
    try:
        with urlopen(url, timeout=_PATIENCE) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=expected or None, unit="B", unit_scale=True, disable=None) as bar:
                while piece := response.read1(_PIECE):
                    received += len(piece)
                    _check_progress(received, time.monotonic() - start, limit)
                    bar.update(len(piece))
                    yield piece
    except (OSError, HTTPException, ValueError) as error:
        reason = printable(" ".join(f"{error}".split()), 200)
        raise DownloadError(reason or type(error).__name__) from None
    if received < expected:
        raise DownloadError(f"the connection ended after {received} of {expected} bytes")


def _check_progress(received: int, seconds: float, limit: int) -> None:
    if received > limit:
        raise DownloadError(f"it is larger than {limit} bytes")
    if received < _SLOWEST * (seconds - _PATIENCE):
        raise DownloadError(f"the server gave {received} bytes in {seconds:.0f} s")

"""Files of tensors (`torch.save`, safetensors): read without executing anything, each fault told apart; written."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import DamagedError
from utils.files import atomic_path, open_regular
from utils.text import printable, shown
from utils.torch_archive import ARCHIVE_START, LEGACY_MAGIC, OtherFileError, TorchArchive

_AGAIN = "copy or download it again"
# Bytes at the start of a file that tell what it is.
_HEAD = 512
_STARTS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`",
    b"<": f"it is a web page, perhaps one to log in: {_AGAIN}, logged in",
    b"{": f"it is text, perhaps an error of a server: {_AGAIN}",
    b"\x1f\x8b": "it is compressed (gzip): unpack it",
    b"BZh": "it is compressed (bzip2): unpack it",
    b"\xfd7zXZ": "it is compressed (xz): unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd): unpack it",
    b"7z\xbc\xaf": "it is compressed (7z): unpack it",
    b"\x89HDF": "it is an HDF5 file, not one of torch.save: convert it",
}
# A number near the start of what torch.save wrote before it wrote zip archives.
_LEGACY = pickle.dumps(LEGACY_MAGIC, 2)[2:-1]
_TAR = "it is a tar archive: unpack it; if an old torch.save wrote it, load and save it with torch 1.6 to 2.5"
_PICKLE = (
    "it is a plain pickle, which could run anything: if you trust it, convert it: "
    "python -c \"import pickle, torch; torch.save(pickle.load(open('IN', 'rb')), 'OUT.pt')\""
)
_CONVERT = (
    'only tensors and plain values are read; if you trust the file, convert it: python -c "import torch; '
    "torch.save({'model': torch.load('IN.pt', map_location='cpu', weights_only=False)['model']}, 'OUT.pt')\""
)
# What torch says of a class or function that it does not know, and of one that it never loads.
_UNKNOWN = re.compile(r"GLOBAL ([^\s`']+)")
_BLOCKED = re.compile(r"GLOBAL ([^\s`']+) whose module .* is blocked")
_NEWER = re.compile(r"maximum supported (file format )?version")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLAIN_NUMBER = re.compile(r"b1|[iu][1248]|f[248]")


class TensorFileError(ValueError):
    """A file that cannot be read; the message says in one line what it is and what to do."""


def read_tensors(path: Path) -> Any:
    """What a file of `torch.save` or safetensors holds, on the CPU; only tensors and plain values are accepted.

    Numbers of NumPy become plain ones; arrays and other values of NumPy become a `NumpyValue`. Archives are mapped, so
    that only what is used takes memory, after all their checksums were compared.

    Raises:
        OSError: there is no such file, or not a regular one.
        TensorFileError: it is damaged, or not such a file.
    """
    head = _read_head(path)
    if fault := _fault_of_start(head):
        raise TensorFileError(fault)
    if _is_safetensors(head):
        return _read_safetensors(path)
    archive = head.startswith(ARCHIVE_START)
    if archive:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # Of kinds of tensors that torch is not done with; whoever cannot use them says so.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, weights_only=True, map_location="cpu", mmap=archive)
    except Exception as error:  # what is damaged fails in as many ways as there are bytes in it
        raise TensorFileError(_reason(error)) from None


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself: texts by name. Any other file says nothing.

    Raises:
        OSError: there is no such file, or not a regular one.
        TensorFileError: it is damaged.
    """
    if not _is_safetensors(_read_head(path)):
        return {}
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts that say what they are, whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors.torch import save

    # The format asks for tensors that share no memory.
    apart = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    content = save(apart, {"format": "pt", **metadata})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _read_head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_HEAD)


def _fault_of_start(head: bytes) -> str | None:
    """What a file is instead, by its first bytes."""
    if not head:
        return f"it is empty: {_AGAIN}"
    if _is_safetensors(head) or head.startswith(ARCHIVE_START):
        return None
    for start, fault in _STARTS.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            return fault
    if head[257:262] == b"ustar":
        return _TAR
    if head.startswith(b"\x80") and _LEGACY not in head[:32]:
        return _PICKLE
    if not head.startswith(b"\x80"):
        return f"it is damaged, or not a file of torch.save or safetensors: {_AGAIN}"
    return None


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """The open file; raises TensorFileError where the package is missing or what is read inside is damaged."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise TensorFileError("it is a safetensors file: `pip install safetensors`") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TensorFileError(f"it is a truncated or damaged safetensors file ({_brief(error)}): {_AGAIN}") from None


def _check_archive(path: Path) -> None:
    """Compare the checksums of an archive of `torch.save`.

    Raises:
        TensorFileError: one differs, or it is another archive.
    """
    try:
        TorchArchive(path, path.stat().st_size, compressed=False).check_all()
    except OtherFileError as error:
        raise TensorFileError(str(error)) from None
    except (DamagedError, OSError) as error:
        raise TensorFileError(f"it is truncated or damaged ({printable(str(error), 120)}): {_AGAIN}") from None


def _reason(error: Exception) -> str:
    """What torch's error says, and what to do."""
    text = str(error)
    if match := _BLOCKED.search(text):
        return f"it would run {shown(match[1])} while it is read: do not use it"
    if match := _UNKNOWN.search(text):
        return f"it holds an object of {shown(match[1])}; {_CONVERT}"
    if _NEWER.search(text):
        return "a newer torch wrote it: upgrade torch"
    return f"it is truncated or damaged, or holds more than tensors and plain values ({_brief(error)}): {_AGAIN}"


def _brief(error: Exception) -> str:
    """An error's kind and the beginning of what it says, without torch's general advice."""
    text = _COLOUR.sub("", str(error)).split("WeightsUnpickler error:")[-1].strip()
    return printable(f"{type(error).__name__}: {text}".splitlines()[0], 120)


class NumpyValue:
    """Stands where a file holds an array, a text or a date of NumPy, whose own reading could be made to run code."""

    def __setstate__(self, _state: object) -> None:
        pass


class _NumpyType:
    """Stands for a type of NumPy while a file is read."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(kind: object, content: object = b"") -> bool | int | float | NumpyValue:
    """The plain value of a number of NumPy."""
    if not (isinstance(kind, _NumpyType) and isinstance(content, bytes) and _PLAIN_NUMBER.fullmatch(str(kind.name))):
        return NumpyValue()
    return np.frombuffer(content, np.dtype(f"{kind.order}{kind.name}"), count=1)[0].item()


def _numpy_array(*_: object) -> NumpyValue:
    return NumpyValue()


# NumPy 2 gave its core another name.
_STAND_INS: list[Any] = [
    (_NumpyType, "numpy.dtype"),
    (NumpyValue, "numpy.ndarray"),
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_numpy_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]

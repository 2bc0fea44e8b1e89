"""Files of torch.save, read as plain values and dense tensors; nothing from them runs.

`torch.load` reads a file whole, does not look at its checksums, and refuses all of it for one value of another kind.
Here such a value becomes a `Foreign`, which costs nobody anything who does not need it, and a tensor is read, and its
checksum compared, when it is asked for.
"""

import math
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import DamagedError
from utils.files import open_regular
from utils.text import shown
from utils.torch_archive import ARCHIVE_START, LEGACY_MAGIC, TorchArchive, damage_told

# What a file may unpack to, if it is not larger itself.
LARGEST_CONTENT = 1 << 30
# Of the part that says what the file holds: about 100 bytes a tensor.
_LARGEST_STRUCTURE = 64 << 20
# Kinds of values in one file; a sound one has five or so.
_MOST_KINDS = 1000
_DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}


# Bytes an element of storages whose tensors are not read, but which a legacy file has before those that are.
_OTHER_ITEMSIZES = {
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
    "torch.UntypedStorage": 1,
}
# Gives the first bytes of a storage, named by its key and how many they are.
_Fetch = Callable[[str, int], bytearray]


class Foreign:
    """Stands for a value of a kind that is not read; takes whatever the file wants to do with it, and does nothing."""

    kind = "something else"

    def __new__(cls, *_args: Any, **_named: Any) -> "Foreign":
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_named: Any) -> None:
        pass

    def __call__(self, *_args: Any) -> "Foreign":
        return self

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _value: Any) -> None:
        """Like a list's."""

    extend = add = append


@dataclass(frozen=True)
class StoredTensor:
    """A dense tensor that is still in its file; `stored` is the number of elements that its storage holds."""

    fetch: _Fetch
    key: str
    dtype: torch.dtype
    stored: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, _state: Any) -> None:
        """What else a file says of a tensor is not read, and changes nothing here."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory once it is contiguous: an expanded one far more than in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor; whoever reads it contiguously looks at `nbytes` first.

        Raises:
            DamagedError: the file does not hold it, or not what was written.
        """
        content = self.fetch(self.key, self.stored * self.dtype.itemsize)
        flat = torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)
        try:
            return flat.as_strided(self.shape, self.stride, self.offset)
        except RuntimeError:
            raise DamagedError(f"a tensor {list(self.shape)} reaches beyond what is stored of it") from None


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    stored: int


@dataclass(frozen=True)
class TorchFile:
    """What a file holds: lists, dictionaries, plain values, `StoredTensor`s, which need the file open, and `Foreign`s.

    `largest` is how many bytes may come from it.
    """

    content: Any
    largest: int


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of torch.save, of the present form or the one before torch 1.6.

    Raises:
        OSError: it is missing, not a regular file, or cannot be read.
        DamagedError: it is damaged, not such a file, or unpacks to more than `LARGEST_CONTENT` and its own size.
    """
    with open_regular(path) as file:
        yield _read_structure(file)


def _read_structure(file: BufferedReader) -> TorchFile:
    largest = max(LARGEST_CONTENT, file.seek(0, 2))
    file.seek(0)
    with damage_told():
        if file.read(len(ARCHIVE_START)) == ARCHIVE_START:
            archive = _Storages(TorchArchive(file, largest))
            return TorchFile(_Reader(BytesIO(archive.structure()), archive.storage).load(), largest)
        return TorchFile(_Legacy(file).content, largest)


class _Reader(pickle.Unpickler):
    """Reads the structure of a file: whatever it names is looked up here, and nothing is imported."""

    def __init__(self, file: BufferedReader | BytesIO, fetch: _Fetch) -> None:
        super().__init__(file)
        self._fetch = fetch
        self._kinds: dict[str, Any] = {
            "collections.OrderedDict": dict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "_codecs.encode": lambda text, _: text.encode("latin1") if isinstance(text, str) else Foreign(),
        }
        self.itemsizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name: one of the few that are known, else a new kind of `Foreign`."""
        kind = f"{module}.{name}"
        if kind not in self._kinds:
            if len(self._kinds) > _MOST_KINDS:
                raise DamagedError(f"it holds values of more than {_MOST_KINDS} kinds")
            self._kinds[kind] = type("Foreign", (Foreign,), {"kind": kind})
        return self._kinds[kind]

    def persistent_load(self, pid: Any) -> Any:
        """A storage, `("storage", type, key, device, elements)`; a sixth entry in old files says of what it is part."""
        match pid:
            case ("storage", type() as kind, str() as key, _, int() as stored, *view) if view in ([], [None]):
                name = getattr(kind, "kind", "")
                dtype = _DTYPES.get(name)
                self.itemsizes[key] = dtype.itemsize if dtype is not None else _OTHER_ITEMSIZES.get(name, 1)
                if dtype is not None and stored >= 0:
                    return _Storage(key, dtype, stored)
        return Foreign()

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Any:
        # Behind whether gradients are wanted and hooks: whether values are conjugated or negated when they are read.
        flags = more[2] if len(more) > 2 else None
        sound = isinstance(storage, _Storage) and _are_counts((offset,)) and _are_counts(shape) and _are_counts(stride)
        if not sound or len(shape) != len(stride) or (isinstance(flags, dict) and any(flags.values())):
            return Foreign()
        return StoredTensor(self._fetch, storage.key, storage.dtype, storage.stored, offset, shape, stride)


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


class _Storages:
    """The storages of an archive, each read once."""

    def __init__(self, archive: TorchArchive) -> None:
        if "byteorder" in archive and archive.read("byteorder") != b"little":
            raise DamagedError("its numbers are big-endian: save it again on another machine")
        self._archive = archive
        self._seen: dict[str, bytearray] = {}

    def structure(self) -> bytes:
        """The pickle that says what the archive holds."""
        size = self._archive.size("data.pkl")
        if size > _LARGEST_STRUCTURE:
            raise DamagedError(f"its data.pkl has {size} bytes, which is more than {_LARGEST_STRUCTURE}")
        return self._archive.read("data.pkl")

    def storage(self, key: str, nbytes: int) -> bytearray:
        """The first `nbytes` bytes of a storage."""
        if key not in self._seen:
            self._seen[key] = bytearray(self._archive.read(f"data/{key}"))
        content = self._seen[key]
        if len(content) < nbytes:
            raise DamagedError(f"data/{shown(key)} has {len(content)} bytes of {nbytes}")
        return content if len(content) == nbytes else content[:nbytes]


class _Legacy:
    """A file of the form before torch 1.6: pickles, the last of which lists the storages that follow it."""

    def __init__(self, file: BufferedReader) -> None:
        file.seek(0)
        reader = _Reader(file, self.storage)
        if reader.load() != LEGACY_MAGIC:
            raise DamagedError("not a file of torch.save")
        for _ in ("version", "system"):
            _Reader(file, self.storage).load()
        reader = _Reader(file, self.storage)
        self.content = reader.load()
        keys = _Reader(file, self.storage).load()
        self._file = file
        self._places = dict(_places(file, keys, reader.itemsizes))

    def storage(self, key: str, nbytes: int) -> bytearray:
        """The first `nbytes` bytes of a storage."""
        start, size = self._places.get(key, (0, -1))
        if size < nbytes:
            raise DamagedError(f"storage {shown(key)} is not all there")
        self._file.seek(start)
        return bytearray(self._file.read(nbytes))


def _places(file: BufferedReader, keys: Any, itemsizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where each storage begins, and how many bytes of it there are."""
    start = file.tell()
    end = file.seek(0, 2)
    for key in keys:
        file.seek(start)
        (stored,) = struct.unpack("<q", file.read(8))
        size = stored * itemsizes[key]
        if not 0 <= size <= end - start - 8:
            raise DamagedError(f"storage {shown(key)} is not all there")
        yield key, (start + 8, size)
        start += 8 + size

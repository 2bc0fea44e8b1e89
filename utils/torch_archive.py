"""Archives that torch.save writes: their entries, bounds and checksums; what is no such archive, or a damaged one."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from utils.errors import DamagedError
from utils.text import printable, shown

ARCHIVE_START = b"PK\x03\x04"
# What torch before 1.6 wrote first, in a pickle of its own.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Characters of a library's reason that a message quotes.
_REASON = 200


class OtherFileError(DamagedError):
    """A sound file of another kind; the message says what it is and what to do."""


@contextmanager
def damage_told() -> Iterator[None]:
    """Raise whatever a library makes of damaged content as a DamagedError; a damaged file fails in many ways.

    Raises:
        OSError: the system cannot read the file.
    """
    try:
        yield
    except (OSError, DamagedError):
        raise
    except Exception as error:
        raise DamagedError(error_text(error)) from None


def error_text(error: Exception, limit: int = _REASON) -> str:
    """An error's kind and the beginning of what it says, in one line."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[: 4 * limit], limit)


class TorchArchive:
    """The entries of an archive: `data.pkl` says what it holds, `data/KEY` are storages.

    Args:
        largest: bytes that it may unpack to.
        compressed: whether entries may be compressed, as torch.save never does.

    Raises:
        DamagedError: it is damaged, or unpacks to more.
        OtherFileError: it is an archive of something else.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path | BufferedReader | BytesIO, largest: int, compressed: bool = True) -> None:
        with damage_told():
            self._zip = ZipFile(file)
        self._entries = {entry.filename: entry for entry in self._zip.infolist()}
        self._folder = self._find_folder()
        if not compressed and any(entry.compress_type != ZIP_STORED for entry in self._entries.values()):
            raise OtherFileError("another program packed it anew: name the file as torch.save wrote it")
        unpacked = sum(entry.file_size for entry in self._zip.infolist())
        if unpacked > largest:
            raise DamagedError(f"it would unpack to {unpacked} bytes, which is more than {largest}")

    def _find_folder(self) -> str:
        """The folder of all entries, with a slash at its end."""
        if any(name.endswith("/constants.pkl") for name in self._entries):
            raise OtherFileError("it is a TorchScript program, not tensors: save the model's state_dict instead")
        structures = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(structures) != 1:
            raise OtherFileError("it is a zip archive, but not of torch.save: unpack it, or download the file again")
        return structures[0].removesuffix("data.pkl")

    def __contains__(self, name: str) -> bool:
        return f"{self._folder}{name}" in self._entries

    def size(self, name: str) -> int:
        """Bytes of an entry, as the archive claims."""
        return self._entries[f"{self._folder}{name}"].file_size

    def read(self, name: str) -> bytes:
        """An entry, its checksum compared.

        Raises:
            DamagedError: there is none, or its checksum differs.
        """
        try:
            return self._zip.read(f"{self._folder}{name}")
        except Exception as error:  # the system's own errors, too: an offset may lie before the file's beginning
            raise DamagedError(error_text(error)) from None

    def check_all(self) -> None:
        """Compare all checksums, unless the archive was written without them.

        Raises:
            DamagedError: one differs.
        """
        if not any(entry.CRC for entry in self._entries.values()):
            return
        with damage_told():
            damaged = self._zip.testzip()
        if damaged is not None:
            raise DamagedError(f"the checksum of {shown(damaged)} differs")

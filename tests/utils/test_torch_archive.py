"""What both readers of files of torch.save share: an archive's entries, bounds and checksums."""

import io
import zipfile

import pytest
import torch

from tests.messages import refused
from utils.errors import DamagedError
from utils.torch_archive import ARCHIVE_START, LEGACY_MAGIC, OtherFileError, TorchArchive


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(content, largest=1 << 20, **options):
    return TorchArchive(io.BytesIO(content), largest, **options)


def zipped(compression=zipfile.ZIP_STORED, **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


def test_an_archive_gives_its_entries():
    content = saved({"a": torch.arange(4)})
    assert content.startswith(ARCHIVE_START)
    found = archive(content)
    found.check_all()
    assert "data.pkl" in found and "data/0" in found and "data/1" not in found
    assert found.size("data/0") == 32 and found.read("data/0") == torch.arange(4).numpy().tobytes()
    with pytest.raises(DamagedError, match="data/1"):
        found.read("data/1")


def test_a_flipped_bit_differs_from_the_checksum():
    content = bytearray(saved({"a": torch.full((100,), 7, dtype=torch.uint8)}))
    content[content.index(b"\7" * 100) + 50] ^= 1
    damaged = archive(bytes(content))
    with pytest.raises(DamagedError, match="CRC"):
        damaged.read("data/0")
    with pytest.raises(DamagedError, match="data/0"):
        damaged.check_all()


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_cut_archive_is_damaged_and_no_other_file(share):
    content = saved(torch.zeros(1000))
    with pytest.raises(DamagedError) as caught:
        archive(content[: int(share * len(content))])
    assert not isinstance(caught.value, OtherFileError)


@pytest.mark.parametrize(
    ("content", "options", "culprit"),
    [
        (zipped(readme="hello"), {}, "not of torch.save"),
        (zipped(a__data_pkl="", b__data_pkl=""), {}, "not of torch.save"),
        (zipped(a__data_pkl="", a__constants_pkl=""), {}, "TorchScript"),
        (zipped(zipfile.ZIP_DEFLATED, a__data_pkl="x" * 99), {"compressed": False}, "packed it anew"),
    ],
)
def test_archives_of_something_else_are_told_apart(content, options, culprit):
    with pytest.raises(OtherFileError, match=culprit):
        archive(content, **options)


def test_an_archive_is_bounded_by_what_it_unpacks_to():
    with refused("2000 bytes", 1999, error=DamagedError):
        archive(zipped(zipfile.ZIP_DEFLATED, a__data_pkl="x" * 2000), largest=1999)


def test_old_files_begin_with_the_magic_number():
    content = saved(torch.zeros(1), _use_new_zipfile_serialization=False)
    assert LEGACY_MAGIC.to_bytes(10, "little") in content[:32]

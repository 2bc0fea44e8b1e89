"""Files of torch.save, read without torch.load: the same tensors, nothing runs, damage is noticed."""

import argparse
import io
import os
import pickle
import random
import warnings
import zipfile

import numpy as np
import pytest
import torch

from utils import torch_file
from utils.errors import DamagedError
from utils.torch_file import Foreign, StoredTensor, open_torch_file

warnings.filterwarnings("ignore", category=UserWarning, module="torch")
BASE = torch.arange(60, dtype=torch.float32)
DENSE = {
    "float32": BASE.reshape(6, 10),
    "slice": BASE[7:20],
    "transposed": BASE.reshape(6, 10).T,
    "steps": BASE[::7],
    "expanded": torch.ones(1, 3).expand(5, 3),
    "scalar": torch.tensor(4.0),
    "empty": torch.empty(0, 18),
    "gradient": torch.ones(3, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "complex": torch.ones(3, dtype=torch.complex64) * 1j,
    **{str(t): torch.ones(3).to(t) for t in (torch.bfloat16, torch.half, torch.double, torch.uint8, torch.bool)},
}
with warnings.catch_warnings(action="ignore"):
    FOREIGN = {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conjugated": torch.ones(3, dtype=torch.complex64).conj(),
        "negated": torch.ones(3, dtype=torch.complex64).conj().imag,
        "array": np.arange(3),
        "objects": np.array([{}, print], dtype=object),
        "number": np.float32(3),
        "namespace": argparse.Namespace(a=1),
        "set": {1, 2},
    }


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_dense_tensors_and_plain_values_are_those_of_torch_load(tmp_path, archive):
    plain = {"text": "é", "bytes": b"\0\xff", "numbers": [1, -2.5, 10**30, True, None], "pair": (1, ("a",))}
    path = save(tmp_path / "file", {**DENSE, **plain}, _use_new_zipfile_serialization=archive)
    with open_torch_file(path) as file:
        assert {name: file.content[name] for name in plain} == plain
        for name, tensor in DENSE.items():
            read = file.content[name].read()
            assert read.dtype == tensor.dtype and torch.equal(read, tensor.detach()), name


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_values_cost_nobody_anything(tmp_path, kind, archive):
    if not archive and kind in ("nested", "meta"):
        pytest.skip("torch writes no such file")
    content = {"odd": FOREIGN[kind], "good": torch.ones(2)}
    with open_torch_file(save(tmp_path / "file", content, _use_new_zipfile_serialization=archive)) as file:
        assert isinstance(file.content["odd"], Foreign) and torch.equal(file.content["good"].read(), torch.ones(2))


class Runs:
    """A value that calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self._call = (function, arguments)

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("function", [os.system, exec, eval, getattr, torch.load, np.load, io.open])
def test_nothing_in_a_file_runs(tmp_path, function, archive):
    canary = tmp_path / "canary"
    arguments = {
        os.system: (f"touch {canary}",),
        io.open: (str(canary), "w"),
        getattr: ("text", "upper"),
    }.get(function, (f"open({str(canary)!r}, 'w')",))
    content = {"odd": Runs(function, *arguments), "good": torch.ones(2)}
    with open_torch_file(save(tmp_path / "file", content, _use_new_zipfile_serialization=archive)) as file:
        assert isinstance(file.content["odd"], Foreign) and torch.equal(file.content["good"].read(), torch.ones(2))
    assert not canary.exists()


def read_all(path):
    with open_torch_file(path) as file:
        return [value.read() if isinstance(value, StoredTensor) else value for value in file.content]


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    content = [torch.arange(300), "name", torch.ones(50, dtype=torch.uint8)]
    whole = save(tmp_path / "file", content).read_bytes()
    rng, noticed = random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "file").write_bytes(damaged)
        try:
            read = read_all(tmp_path / "file")
            assert torch.equal(read[0], content[0]) and read[1] == "name" and torch.equal(read[2], content[2])
        except DamagedError:
            noticed += 1
    # The rest hit padding and fields that nobody reads.
    assert noticed > 75


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path, archive, share):
    path = save(tmp_path / "file", [torch.arange(3000)], _use_new_zipfile_serialization=archive)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedError):
        read_all(path)


def repack(path, compression=zipfile.ZIP_DEFLATED, **entries):
    """Write an archive anew with some of its entries (without folder, dots as underscores) replaced."""
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in contents.items():
            new.writestr(name, entries.get(name.split("/", 1)[1].replace("/", "_").replace(".", "_"), content))
    return path


def test_a_compressed_archive_is_read_up_to_a_bound(tmp_path, monkeypatch):
    path = repack(save(tmp_path / "file", [torch.zeros(1 << 20)]))
    assert path.stat().st_size < 1 << 16 and read_all(path)[0].shape == (1 << 20,)
    monkeypatch.setattr(torch_file, "LARGEST_CONTENT", 1 << 20)
    with pytest.raises(DamagedError, match="unpack"):
        read_all(path)


def test_what_an_archive_claims_is_checked(tmp_path, monkeypatch):
    path = save(tmp_path / "file", [torch.arange(1000)])
    for entries in (
        {"data_0": b"short"},
        {"byteorder": b"big"},
        {"data_pkl": b"."},
        {"data_pkl": b"\x80\x02cos\nsystem\n."},
    ):
        with pytest.raises((DamagedError, TypeError)):
            read_all(repack(save(path, [torch.arange(1000)]), **entries))
    with monkeypatch.context() as patched:
        patched.setattr(torch_file, "_LARGEST_STRUCTURE", 10)
        with pytest.raises(DamagedError, match=r"data\.pkl"):
            read_all(save(path, [torch.arange(1000)]))
    names = b"".join(f"cmodule{number}\nname\na".encode() for number in range(2000))
    with pytest.raises(DamagedError, match="kinds"):
        read_all(repack(path, data_pkl=b"\x80\x02]" + names + b"."))


def test_a_tensor_beyond_its_storage_is_damaged(tmp_path):
    with open_torch_file(save(tmp_path / "file", [torch.arange(10)])) as file:
        (tensor,) = file.content
        for shape, stride, offset in [((11,), (1,), 0), ((10,), (1,), 1), ((2,), (1 << 40,), 0), ((1 << 40,), (1,), 0)]:
            beyond = StoredTensor(tensor.fetch, tensor.key, tensor.dtype, 10, offset, shape, stride)
            with pytest.raises(DamagedError):
                beyond.read()


def test_an_expanded_tensor_says_its_size_without_taking_it(tmp_path):
    with open_torch_file(save(tmp_path / "file", [torch.zeros(1, dtype=torch.uint8).expand(10**13)])) as file:
        assert file.content[0].nbytes == 10**13 and file.content[0].stored == 1


@pytest.mark.parametrize(
    "content", [b"PK\3\4", b"\x80\x02.", pickle.dumps([1]), b"version https://git-lfs", b"\0" * 99]
)
def test_other_files_are_no_files_of_torch_save(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedError):
        read_all(tmp_path / "file")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError):
            read_all(path)

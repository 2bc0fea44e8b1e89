"""Checkpoints as others leave them: damaged, foreign, of another form; each named, nothing executed."""

import argparse
import copy
import datetime
import errno
import gzip
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from model.weights import load_published, published_state
from tests.helpers import small_model, write_toy_set
from tests.messages import check_names, refused
from tests.processes import run
from tests.runs import build
from tests.runs import training_command as command
from training.optim import OptimConfig, build_optimizer, clip_and_step, load_optimizer
from utils.checkpoint import (
    checkpoint_name,
    find_checkpoint,
    newest_readable,
    read_checkpoint,
    training_state,
    write_weights,
)
from utils.errors import InputError
from utils.random_state import random_state, random_state_fault, seed_everything, set_random_state
from utils.tensor_file import NumpyValue, read_tensors
from utils.tensors import first_not_finite, tensor_fault
from utils.text import printable

WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}


class Canary:
    """Leaves a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def refusal(path):
    """What is said of a checkpoint that cannot be read: one line with its path, nothing for a terminal to act on."""
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    check_names(message, printable(str(path)))
    assert len(message) < 600, message
    return message


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def packed_anew():
    buffer = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved({"model": WEIGHTS})))
    with source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return buffer.getvalue()


def of_a_newer_torch():
    """A sound archive that says it is of version 99."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"model": WEIGHTS}))) as source, zipfile.ZipFile(buffer, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"99\n" if name.endswith("/version") else source.read(name))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2050000000\n"
FOREIGN = {
    "empty": (b"", "it is empty"),
    "lfs": (LFS, "git lfs pull"),
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    "page after blanks": (b"\r\n\n <html>Sign in</html>", "web page"),
    "xml": (b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "json": (b'{"error": "Repository not found"}', "text"),
    "gzip": (gzip.compress(b"weights"), "unpack it"),
    "tar": (tar(), "tar archive"),
    "pickle": (pickle.dumps({"model": {}}), "plain pickle"),
    "pickle of protocol 2": (pickle.dumps({"model": {}}, protocol=2), "plain pickle"),
    "npz": (npz(), "not of torch.save"),
    "zip": (zipped(readme="hello"), "not of torch.save"),
    "script": (zipped(model__data="", model__constants__pkl="").replace(b"/pkl", b".pkl"), "TorchScript"),
    "packed anew": (packed_anew(), "packed it anew"),
    "newer torch": (of_a_newer_torch(), "upgrade torch"),
    "zeros": (bytes(1000), "damaged"),
    "text": (b"hello\x1b[31m", "damaged"),
    "half": (saved({"model": {"a": torch.zeros(1000)}})[:2500], "truncated or damaged"),
    "half of old": (saved({"model": {"a": torch.zeros(1000)}}, _use_new_zipfile_serialization=False)[:900], "damaged"),
    "start of old": (saved({"model": {}}, _use_new_zipfile_serialization=False)[:20], "damaged"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_a_checkpoint_is_told_apart(tmp_path, name):
    content, said = FOREIGN[name]
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert said in refusal(path)


def test_names_of_files_are_escaped(tmp_path):
    path = tmp_path / "\x1b[2J.pt"
    path.write_bytes(b"")
    with refused(printable(str(path)), "empty"):
        read_checkpoint(path)


def test_torchs_general_advice_is_left_out(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": {}})[:300] + bytes(1000))
    said = refusal(path)
    assert "weights_only" not in said and "[1m" not in said and said.endswith("copy or download it again")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (Path("x"), "PosixPath" if os.name != "nt" else "WindowsPath"),
        (datetime.timedelta(1), "datetime.timedelta"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_foreign_objects_are_named_with_a_way_to_convert(tmp_path, value, named):
    path = tmp_path / "x.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path.write_bytes(saved({"model": WEIGHTS, "args": value}, **options))
        said = refusal(path)
        assert named in said and "weights_only=False" in said and said.endswith("'OUT.pt')\"")


def test_what_would_run_something_is_named_and_does_not_run(tmp_path):
    path = tmp_path / "x.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path.write_bytes(saved({"model": WEIGHTS, "args": Canary(tmp_path / "executed")}, **options))
        assert "mkdir" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (np.float32(1.5), 1.5),
        (np.float64(-math.inf), -math.inf),
        (np.float16(0.5), 0.5),
        (np.int64(-3), -3),
        (np.uint8(255), 255),
        (np.bool_(True), True),
        (np.array([258], ">u2")[0], 258),
    ],
)
def test_numbers_of_numpy_become_plain_ones(tmp_path, value, read):
    path = tmp_path / "x.pt"
    for module in ("numpy._core", "numpy.core"):
        content = saved({"model": WEIGHTS, "best": value})
        path.write_bytes(rename_module(content, module))
        found = read_checkpoint(path)["best"]
        assert found == read and type(found) is type(read)


def rename_module(content, module):
    """The archive as a NumPy would have written it that calls its core so."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            for known in (b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"):
                data = data.replace(known, b"c" + module.encode() + b".multiarray")
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "value",
    [np.arange(3), np.array(["a", None, {}], dtype=object), np.str_("a"), np.datetime64("2020-01-01"), np.void(b"ab")],
)
def test_other_values_of_numpy_cost_nothing_where_nobody_reads_them(tmp_path, value):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": WEIGHTS, "history": value}))
    assert isinstance(read_checkpoint(path)["history"], NumpyValue)
    path.write_bytes(saved({"model": published_state(small_model("decoder_only")) | {"n_light": value}}))
    with refused(path, "n_light"):
        load_published(small_model("decoder_only"), read_checkpoint(path)["model"], path)


class Scalar:
    """Pickled as a scalar of NumPy whose type lies about what its bytes are."""

    def __init__(self, kind, flags, content):
        self.kind, self.flags, self.content = kind, flags, content

    def __reduce__(self):
        kind = Kind(self.kind, (3, "|", None, None, None, -1, -1, self.flags))
        return np.float64(0).__reduce__()[0], (kind, self.content)


class Kind:
    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        return np.dtype, (self.name, False, True), self.state


@pytest.mark.parametrize("kind", ["O8", "f8", "V8", "nonsense", "M8"])
@pytest.mark.parametrize("content", [b"\x41" * 8, b"", "text"])
def test_types_of_numpy_that_lie_reach_no_memory(tmp_path, kind, content):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": WEIGHTS, "best": Scalar(kind, 0, content)}))
    try:
        assert isinstance(read_checkpoint(path)["best"], float | NumpyValue)
    except InputError as error:
        check_names(str(error), path)


def test_objects_inside_an_array_of_numpy_do_not_run(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"model": WEIGHTS, "a": np.array([Canary(tmp_path / "executed")], dtype=object)}))
    assert "mkdir" in refusal(path)
    assert not (tmp_path / "executed").exists()


# Other forms of the same weights


@pytest.mark.parametrize(
    "content",
    [WEIGHTS, OrderedDict(WEIGHTS), {"state_dict": WEIGHTS}, {"state_dict": WEIGHTS, "epoch": 3}, {"model": WEIGHTS}],
)
def test_state_dicts_are_checkpoints_of_weights_alone(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    state = read_checkpoint(tmp_path / "x.pt")
    assert state["model"].keys() == WEIGHTS.keys()
    with refused(tmp_path / "x.pt", "weights alone", "training.reset_training_state=true"):
        training_state(state, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"model": 3}, {"weights": {}}, {"a": torch.ones(1), "b": 3}, None, {"\x1b[2J": 1}]
)
def test_what_holds_no_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    assert "not a checkpoint" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["model", "state_dict"])
@pytest.mark.parametrize(("value", "kind"), [(3, "3"), ([1], "list"), (None, "None"), (torch.ones(2), "Tensor")])
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, name, value, kind):
    torch.save({name: value, "step": 1}, tmp_path / "x.pt")
    check_names(refusal(tmp_path / "x.pt"), f'"{name}"', kind)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_torch_says_nothing_beside_the_error(tmp_path):
    torch.save({"model": {"a": torch.eye(3).to_sparse_csr(), "b": torch.eye(3).to_sparse()}}, tmp_path / "x.pt")
    # Torch warns once a process.
    assert run("-m", "tests.programs.run_read", tmp_path / "x.pt").stderr == ""


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(WEIGHTS, tmp_path / name, metadata={"format": "pt"})
    assert torch.equal(read_checkpoint(tmp_path / name)["model"]["b"], WEIGHTS["b"])
    assert find_checkpoint(tmp_path, "training.checkpoint_dir").name == name
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[:-4], whole[:40], whole.replace(b"F32", b"F99"), whole + b"more"):
        (tmp_path / name).write_bytes(damaged)
        assert "safetensors" in refusal(tmp_path / name)


def test_safetensors_say_of_themselves_what_a_checkpoint_says(tmp_path):
    state = {
        "model": WEIGHTS,
        "function": {"variant": "prefix", "rays": ["camera"]},
        "config": "model: {}\n",
        "step": 3,
    }
    for name in ("x.safetensors", "x.pt"):
        write_weights(tmp_path / name, state)
        found = read_checkpoint(tmp_path / name)
        assert found.keys() == {"model", "function", "config"} and found["function"] == state["function"]
        assert found["config"] == "model: {}\n" and torch.equal(found["model"]["b"], WEIGHTS["b"])
        with refused(tmp_path / name, "weights alone", "training.reset_training_state=true"):
            training_state(found, tmp_path / name)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "function", ["", "{", "prefix", "[" * 100_000, '{"a": 1, "a": 2}', "9" * 5000, "\x1b[2J", "\ud7ff"]
)
def test_metadata_that_are_not_json_are_named(tmp_path, function):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(WEIGHTS, tmp_path / "x.safetensors", metadata={"function": function})
    check_names(refusal(tmp_path / "x.safetensors"), "function")


def test_a_full_disk_leaves_no_half_of_a_safetensors_file(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError) as caught:
        write_weights(tmp_path / "x.safetensors", {"model": WEIGHTS})
    assert caught.value.filename == str(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_safetensors_without_the_package_say_what_to_install(tmp_path, monkeypatch):
    header = json.dumps({"__metadata__": {}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    check_names(refusal(tmp_path / "x.safetensors"), "`pip install safetensors`")


@pytest.mark.parametrize("variant", ["decoder_only", "encoder_decoder"])
@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.module.{}", "{}._orig_mod", "module.{}.module"])
def test_names_of_wrapped_models_are_accepted(variant, wrap):
    source, target = small_model(variant, seed=0), small_model(variant, seed=1)
    state = {}
    for name, value in published_state(source).items():
        stack, *rest = name.split(".")
        state[".".join([wrap.format(stack) if rest else stack, *rest])] = value
    load_published(target, state, "file.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


# Every tensor of the weights


def quantized():
    return torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8)


def nested():
    return torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)])


BAD_TENSORS = {
    "NaN": (lambda: torch.full((64,), math.nan), "not finite"),
    "infinity": (lambda: torch.full((64,), -math.inf), "not finite"),
    "infinity in the model's type": (lambda: torch.full((64,), 1e300, dtype=torch.float64), "not finite"),
    "integers": (lambda: torch.zeros(64, dtype=torch.int64), "torch.int64"),
    "bytes": (lambda: torch.zeros(64, dtype=torch.int8), "torch.int8"),
    "booleans": (lambda: torch.zeros(64, dtype=torch.bool), "torch.bool"),
    "complex": (lambda: torch.zeros(64, dtype=torch.complex64), "torch.complex64"),
    "sparse": (lambda: torch.zeros(64).to_sparse(), "not dense"),
    "CSR": (lambda: torch.zeros(1, 64).to_sparse_csr(), "not dense"),
    "meta": (lambda: torch.zeros(64, device="meta"), "holds no numbers"),
    "quantised": (quantized, "quantised"),
    "nested": (nested, "nested"),
    "list": (lambda: [0.0] * 64, "of type list"),
    "none": (lambda: None, "of type NoneType"),
    "shape": (lambda: torch.zeros(3), "(3,), expected (64,)"),
    "no dimension": (lambda: torch.zeros(()), "(), expected (64,)"),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", BAD_TENSORS)
@pytest.mark.parametrize("name", ["transformer_blocks.1.norm2.weight", "image_token_decoder.0.weight"])
def test_weights_that_are_not_plain_finite_numbers_are_named(tmp_path, kind, name):
    make, said = BAD_TENSORS[kind]
    model = small_model("decoder_only")
    before = [parameter.clone() for parameter in model.parameters()]
    try:
        torch.save({"model": published_state(model) | {name: make()}}, tmp_path / "x.pt")
        state = read_checkpoint(tmp_path / "x.pt")["model"]
    except InputError:
        return  # torch itself does not read such a tensor
    with refused(tmp_path / "x.pt", name, said):
        load_published(model, state, tmp_path / "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_other_widths_are_accepted(tmp_path, dtype):
    model = small_model("decoder_only")
    torch.save({"model": {name: value.to(dtype) for name, value in published_state(model).items()}}, tmp_path / "x.pt")
    load_published(model, read_checkpoint(tmp_path / "x.pt")["model"], "x.pt")


def test_expanded_and_shared_weights_are_copied(tmp_path):
    model = small_model("decoder_only")
    state = published_state(model)
    row = torch.arange(64.0)
    state["transformer_blocks.0.norm1.weight"] = state["transformer_blocks.0.norm2.weight"] = row
    state["transformer_blocks.1.norm1.weight"] = torch.tensor(2.0).expand(64)
    torch.save({"model": state}, tmp_path / "x.pt")
    load_published(model, read_checkpoint(tmp_path / "x.pt")["model"], "x.pt")
    loaded = published_state(model)
    loaded["transformer_blocks.0.norm1.weight"].zero_()
    loaded["transformer_blocks.1.norm1.weight"][0] = 5
    assert torch.equal(loaded["transformer_blocks.0.norm2.weight"], row)
    assert loaded["transformer_blocks.1.norm1.weight"][1:].unique().tolist() == [2]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_one_name_twice_is_refused(prefix):
    state = published_state(small_model("decoder_only"))
    name = "transformer_blocks.0.norm1.weight"
    with refused("file.pt", f"'{name}'", f"'{prefix}{name}'"):
        load_published(small_model("decoder_only"), state | {prefix + name: torch.zeros(64)}, "file.pt")


def test_names_from_a_file_are_escaped_and_cut():
    state = published_state(small_model("decoder_only"))
    with pytest.raises(InputError) as caught:
        load_published(small_model("decoder_only"), state | {"\x1b[2J" + "x" * 10_000: torch.zeros(1), 3: 4}, "f.pt")
    message = str(caught.value)
    check_names(message, "f.pt", "2 unknown")
    assert len(message) < 400


# Moments


def trained(seed=0):
    """A model after two updates, and its optimiser."""
    model = small_model("decoder_only", seed=seed)
    optimizer = build_optimizer(model, OptimConfig())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
        clip_and_step(optimizer, model.parameters(), 0.1, OptimConfig())
    return model, optimizer


def update(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    clip_and_step(optimizer, model.parameters(), 0.1, OptimConfig())


def test_moments_come_back_whatever_their_layout(tmp_path):
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():
        moments["exp_avg"] = (
            moments["exp_avg"].mT.contiguous().mT if moments["exp_avg"].ndim > 1 else moments["exp_avg"]
        )
        moments["exp_avg_sq"] = moments["exp_avg_sq"].double()
    state["state"][1]["step"] = 2
    torch.save({"optimizer": state}, tmp_path / "x.pt")
    other = small_model("decoder_only")
    other.load_state_dict(model.state_dict())
    fresh = build_optimizer(other, OptimConfig())
    load_optimizer(fresh, read_tensors(tmp_path / "x.pt")["optimizer"], "x.pt")
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(fresh.state[mine][name], optimizer.state[theirs][name])
            assert fresh.state[mine][name].stride() == mine.stride() and fresh.state[mine][name].dtype == mine.dtype
    update(model, optimizer)
    update(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_expanded_and_shared_moments_get_memory_of_their_own(tmp_path):
    model, optimizer = trained()
    state = copy.deepcopy(optimizer.state_dict())
    first, second = state["state"][0], state["state"][0] | {}
    first["exp_avg"] = torch.zeros(()).expand(first["exp_avg"].shape)
    second["exp_avg_sq"] = first["exp_avg_sq"]
    load_optimizer(optimizer, state, "x.pt")
    parameter = optimizer.param_groups[0]["params"][0]
    before = optimizer.state[parameter]["exp_avg_sq"].data_ptr()
    assert optimizer.state[parameter]["exp_avg"].is_contiguous() and before != first["exp_avg_sq"].data_ptr()
    update(model, optimizer)
    assert not first["exp_avg"].any()


MOMENT_FAULTS = {
    "shape": ("exp_avg", lambda value: torch.zeros(3)),
    "flat": ("exp_avg_sq", lambda value: value.flatten()),
    "transposed": ("exp_avg", lambda value: value.T),
    "no dimension": ("exp_avg_sq", lambda value: torch.zeros(())),
    "integers": ("exp_avg", lambda value: value.long()),
    "sparse": ("exp_avg", lambda value: value.to_sparse()),
    "meta": ("exp_avg_sq", lambda value: value.to("meta")),
    "quantised": ("exp_avg", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)),
    "NaN": ("exp_avg", lambda value: value * math.nan),
    "infinite": ("exp_avg_sq", lambda value: value + math.inf),
    "negative": ("exp_avg_sq", lambda value: value - 1),
    "list": ("exp_avg", lambda value: value.tolist()),
    "none": ("exp_avg_sq", lambda value: None),
    "step of text": ("step", lambda value: "2"),
    "step of none": ("step", lambda value: None),
    "step below 0": ("step", lambda value: -1),
    "step of NaN": ("step", lambda value: math.nan),
    "step of infinity": ("step", lambda value: torch.tensor(math.inf)),
    "step of truth": ("step", lambda value: True),
    "step of many": ("step", lambda value: torch.ones(5)),
    "step of integers": ("step", lambda value: torch.tensor(2)),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", MOMENT_FAULTS)
def test_moments_that_do_not_fit_are_named(kind):
    name, change = MOMENT_FAULTS[kind]
    _, optimizer = trained()
    state = optimizer.state_dict()
    state["state"][3][name] = change(state["state"][3][name])
    with refused("x.pt", f"optimizer.state[3].{name}", "training.reset_training_state=true"):
        load_optimizer(optimizer, state, "x.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state"].pop(2),
        lambda state: state["state"].update({99: state["state"][0]}),
        lambda state: state["state"].update({"0": state["state"].pop(0)}),
        lambda state: state["state"][2].pop("exp_avg"),
        lambda state: state["state"][2].update(max_exp_avg_sq=torch.zeros(1)),
        lambda state: state["state"].update({2: 5}),
        lambda state: state.update(state={}),
        lambda state: state.update(state=None),
        lambda state: state.update(state=[1, 2]),
        lambda state: state.update(param_groups=None),
        lambda state: state.update(param_groups="text"),
        lambda state: state.update(param_groups=[3, 4]),
        lambda state: state.update(param_groups=[{}, {}]),
        lambda state: state.update(param_groups=state["param_groups"][:1]),
        lambda state: state["param_groups"][0].update(params=[1, 0]),
        lambda state: state.pop("param_groups"),
        lambda state: state.pop("state"),
    ],
)
def test_an_optimiser_of_another_form_is_refused(change):
    _, optimizer = trained()
    state = optimizer.state_dict()
    change(state)
    with refused("x.pt", re.compile("optimi[sz]er"), "training.reset_training_state=true"):
        load_optimizer(optimizer, state, "x.pt")


# Counts and random states


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run after two updates."""
    folder = tmp_path_factory.mktemp("begun")
    train.main(command(write_toy_set(folder / "scenes"), folder / "run"))
    return folder / "run"


@pytest.fixture
def run_folder(begun, tmp_path):
    """A copy of it, to go on from."""
    return shutil.copytree(begun, tmp_path / "run")


def resume(scenes, folder, change):
    """What is said of a run whose newest checkpoint was changed."""
    path = folder / checkpoint_name(2)
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        train.main(command(scenes, folder, "training.train_steps=3"))
    check_names(str(caught.value), path)
    return str(caught.value)


NORM = "transformer_blocks.0.norm1.weight"
STATE_FAULTS = {
    "step": ["2", None, -1, 2.0, math.nan, True, 10**400, torch.tensor(2), [2], 1 << 60],
    "samples": ["4", None, -4, 4.5, False, -(10**400), {}],
    "optimizer": [None, [], 3, "state", torch.zeros(3)],
    "random_states": [None, {}, "states", 3, torch.zeros(3)],
}


def test_every_field_of_the_training_state_is_checked(tmp_path):
    good = {"model": {}, "step": 2, "samples": 4, "optimizer": {}, "random_states": [random_state()]}
    assert training_state(good, tmp_path).samples == 4
    for name, values in STATE_FAULTS.items():
        for value in values:
            with refused(tmp_path / "x.pt", f"{name} is"):
                training_state(good | {name: value}, tmp_path / "x.pt")
        if name != "random_states":
            with refused(tmp_path / "x.pt", "weights alone"):
                training_state({key: value for key, value in good.items() if key != name}, tmp_path / "x.pt")


RANDOM_FAULTS = {
    "python": [
        None,
        "text",
        [1, 2],
        (2, (0,) * 625, None),
        (3, (0,) * 624, None),
        (3, (0.5,) * 625, None),
        (3, (1 << 32,) + (0,) * 624, None),
        (3, (-1,) + (0,) * 624, None),
        (3, (0,) * 624 + (10**6,), None),
        (3, (0,) * 625, "text"),
        (3, (0,) * 625, math.nan),
    ],
    "numpy": [
        None,
        ["PCG64", [0] * 624, 0, 0, 0.0],
        ["MT19937", [0] * 623, 0, 0, 0.0],
        ["MT19937", [0] * 624, 10**6, 0, 0.0],
        ["MT19937", [0] * 624, -1, 0, 0.0],
        ["MT19937", [0] * 624, 0, 5, 0.0],
        ["MT19937", [0] * 624, 0, 0, "text"],
        ["MT19937", [None] * 624, 0, 0, 0.0],
        ["MT19937", torch.zeros(624), 0, 0, 0.0],
        ["MT19937", [0] * 624, True, 0, 0.0],
    ],
    "torch": [
        None,
        [0] * 5056,
        torch.zeros(5056),
        torch.zeros(16, dtype=torch.uint8),
        torch.zeros(5056, dtype=torch.uint8),
        torch.zeros(5056, dtype=torch.uint8).to_sparse(),
        torch.zeros(5056, dtype=torch.uint8, device="meta"),
        torch.zeros(2, 2528, dtype=torch.uint8),
    ],
    "cuda": [None, 3, torch.zeros(3, dtype=torch.uint8), torch.zeros(16), torch.zeros(4, 4, dtype=torch.uint8)],
}


@pytest.mark.parametrize("name", RANDOM_FAULTS)
def test_random_states_that_no_generator_gave_are_named(name):
    for value in RANDOM_FAULTS[name]:
        assert random_state_fault(random_state() | {name: value}) == f".{name} is not a state of that generator"
    if name != "cuda":
        assert random_state_fault({key: v for key, v in random_state().items() if key != name}) == f".{name} is missing"


@pytest.mark.parametrize("value", [None, 3, "text", [], torch.zeros(3)])
def test_a_random_state_is_a_mapping(value):
    assert "not the state of a process" in random_state_fault(value)


def test_sound_random_states_are_accepted_at_any_moment():
    seed_everything(3)
    state = random_state()
    for _ in range(700):
        assert random_state_fault(random_state()) is None
        random.gauss(0, 1)
        np.random.randn()
    torch.randn(5)
    assert random_state_fault(random_state()) is None
    set_random_state(state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.update(step="2"), "step is '2'"),
        (lambda state: state.update(samples=-1), "samples is -1"),
        (lambda state: state["optimizer"]["state"][1].update(exp_avg=torch.zeros(3)), "optimizer.state[1].exp_avg"),
        (lambda state: state["random_states"][0]["numpy"].__setitem__(2, 10**6), "random_states[0].numpy"),
        (lambda state: state["model"][NORM].fill_(math.nan), NORM),
    ],
)
def test_training_does_not_go_on_from_a_broken_state(scenes, run_folder, change, said):
    check_names(resume(scenes, run_folder, change), said)
    assert [path.name for path in run_folder.glob("*.pt")] == [checkpoint_name(2)]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_older_checkpoint_is_taken_for_one_with_broken_weights(scenes, run_folder, value, caplog):
    newest, older = run_folder / checkpoint_name(2), run_folder / checkpoint_name(1)
    shutil.copy(newest, older)
    state = torch.load(newest, weights_only=True)
    state["model"]["transformer_blocks.0.norm1.weight"].fill_(value)
    torch.save(state, newest)
    train.main(command(scenes, run_folder, "training.train_steps=3"))
    (line,) = (line for line in caplog.messages if str(newest) in line and "SKIPPED" in line)
    check_names(line, "transformer_blocks.0.norm1.weight", "checkpoint before")
    assert "another model" not in caplog.text


def test_only_weights_of_other_sizes_are_of_another_model(scenes, run_folder):
    def break_weights(state):
        state["model"]["transformer_blocks.0.norm1.weight"].fill_(math.nan)

    assert "another model" not in resume(scenes, run_folder, break_weights)


def test_a_run_that_diverged_keeps_its_checkpoints(scenes, tmp_path):
    folder = tmp_path / "run"
    trainer = build(scenes, tmp_path, "training.checkpoint_every=1", "training.train_steps=3")
    step = trainer.update

    def diverge():
        numbers = step()
        if trainer.step == 2:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.nan)
        return numbers

    trainer.update = diverge
    with refused("step 2", next(name for name, _ in trainer.model.named_parameters()), folder, "training.lr"):
        trainer.run()
    assert [path.name for path in folder.glob("*.pt")] == [checkpoint_name(1)]
    optimizer = trainer.optimizer
    parameter = optimizer.param_groups[0]["params"][0]
    next(trainer.model.parameters()).data.zero_()
    optimizer.state[parameter]["exp_avg"].fill_(math.inf)
    with refused(re.compile(r"exp_avg of \w+")):
        trainer.save()


# Archives


def test_a_flipped_bit_is_noticed(tmp_path):
    """Wherever it matters: what still loads is what was saved."""
    path, rng = tmp_path / "x.pt", random.Random(0)
    whole = saved({"model": {"a": torch.arange(300.0), "b": torch.ones(50)}})
    damaged = 0
    for _ in range(150):
        content = bytearray(whole)
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            state = read_checkpoint(path)["model"]
        except InputError as error:
            check_names(str(error), path)
            damaged += 1
            continue
        assert torch.equal(state["a"], torch.arange(300.0)) and torch.equal(state["b"], torch.ones(50))
    assert damaged > 60


def test_archives_written_without_checksums_are_read(tmp_path):
    options = pytest.importorskip("torch.serialization")
    options.set_crc32_options(False)
    try:
        torch.save({"model": WEIGHTS}, tmp_path / "x.pt")
    finally:
        options.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "x.pt")["model"]["b"], WEIGHTS["b"])


def test_a_checkpoint_is_read_once(scenes, run_folder, monkeypatch):
    checked = []
    testzip = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: checked.append(self.filename) or testzip(self))
    train.main(command(scenes, run_folder, "training.train_steps=3"))
    assert checked == [str(run_folder / checkpoint_name(2))]


def test_the_state_outlives_the_file(run_folder):
    path, state = newest_readable(run_folder)
    before = {name: value.clone() for name, value in state["model"].items()}
    path.unlink()
    assert all(torch.equal(before[name], value) for name, value in state["model"].items())


# What is no file


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_link_to_zeros(path):
    path.symlink_to("/dev/zero")


def make_link_to_itself(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_link_to_zeros, make_link_to_itself])
def test_only_regular_files_are_checkpoints(tmp_path, make):
    path = tmp_path / checkpoint_name(3)
    make(path)
    refusal(path)
    with refused(path):
        read_checkpoint(find_checkpoint(path, "training.checkpoint_dir"))
    torch.save({"model": WEIGHTS}, tmp_path / checkpoint_name(2))
    found = newest_readable(tmp_path)
    assert found is not None and found[0].name == checkpoint_name(2)


def test_faults_of_tensors_are_found_without_a_copy():
    assert tensor_fault(torch.zeros(3), (3,), 0.0) is None
    assert tensor_fault(torch.zeros(0)) is None
    assert "below 0" in tensor_fault(torch.tensor([1.0, -1e-30]), (2,), 0.0)
    tensors = {"a": torch.zeros(2), "b": torch.zeros(0), "c": torch.tensor([1.0, math.nan])}
    assert first_not_finite(tensors) == "c" and first_not_finite({"a": tensors["a"]}) is None
    assert first_not_finite({}) is None

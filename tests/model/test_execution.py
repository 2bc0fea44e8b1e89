"""How a model runs must not matter: saved activations, kernels and compilation leave the numbers alone."""

import copy
import importlib.util
import json
import logging
import pickle
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.optim.swa_utils import AveragedModel

from model import compilation, transformer
from model.compilation import run_compiled, run_plainly
from model.execution import (
    ExecutionConfig,
    _warn_once,
    attention_kernel,
    compile_model,
    compiles,
)
from model.saving import SavePolicy, plan_saving
from model.transformer import _PREFERENCES, Block, CrossBlock, Transformer
from tests.helpers import MODELS, PLAIN, PUBLISHED, VARIANTS, Count, random_cameras, random_views, small_model
from tests.lanes import ONE_FAST_VARIANT
from tests.messages import refused
from tests.processes import run
from utils.precision import PrecisionConfig, autocast
from utils.sections import check_values, flatten


def test_what_is_saved_follows_the_share():
    assert plan_saving(4, 0.0) == [SavePolicy.NOTHING] * 4
    assert plan_saving(4, 1.0) == [SavePolicy.MATMULS] * 4
    assert plan_saving(4, 1 / 9) == [SavePolicy.ATTENTION] * 4
    assert plan_saving(4, 1 / 18) == [SavePolicy.NOTHING] * 2 + [SavePolicy.ATTENTION] * 2
    assert plan_saving(4, 1 / 9 + 8 / 36) == [SavePolicy.ATTENTION] * 3 + [SavePolicy.MATMULS]
    assert plan_saving(4, 1.24) == [SavePolicy.MATMULS] * 4
    assert plan_saving(4, 1.25) == [SavePolicy.MATMULS] * 3 + [SavePolicy.EVERYTHING]
    assert plan_saving(3, 1 + 2 / 3) == [SavePolicy.MATMULS] + [SavePolicy.EVERYTHING] * 2
    assert plan_saving(4, 2.0) == [SavePolicy.EVERYTHING] * 4


@pytest.mark.parametrize(
    ("available", "capability", "first"),
    [
        (True, (9, 0), "cudnn_by_shape"),
        (True, (10, 0), "cudnn"),
        (True, (8, 0), "flash"),
        (False, None, "flash"),
    ],
)
def test_the_attention_kernel_follows_the_card(monkeypatch, caplog, available, capability, first):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    attention_kernel.cache_clear()
    with caplog.at_level(logging.INFO, "lvsm"):
        chosen = attention_kernel("auto")
    attention_kernel.cache_clear()
    assert chosen == first
    assert ("attention: " in caplog.text) == available
    assert attention_kernel("math") == "math"


def test_every_kernel_leaves_what_it_cannot_take_to_all_others():
    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    backends |= dict.fromkeys(("fa4", "by_shape", "cudnn_by_shape"), SDPBackend.CUDNN_ATTENTION)
    for name, preferred in _PREFERENCES.items():
        assert preferred[0] == backends[name] and set(preferred) == set(backends.values())
    assert _PREFERENCES.keys() == backends.keys()


def test_the_kernel_asked_for_runs_from_the_first_attention_on(monkeypatch):
    """At the first one on a GPU torch puts its kernels in an order of its own, over the one that is asked for."""
    before = torch._C._get_sdp_priority_order()
    plainly = F.scaled_dot_product_attention
    cudnn = SDPBackend.CUDNN_ATTENTION.value
    ran = []

    def attention(*heads, **rest):
        if not ran:
            torch._C._set_sdp_priority_order([cudnn, *set(before) - {cudnn}])
        ran.append(torch._C._get_sdp_priority_order()[0])
        return plainly(*heads, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(transformer, "_GPU", "cpu")
    transformer.settle_torchs_order.cache_clear()
    model = small_model("decoder_only", execution=replace(PLAIN, attention_backend="efficient", mlp_backend="torch"))
    try:
        model(random_views(1, 2), random_cameras(1, 2, seed=1))
    finally:
        torch._C._set_sdp_priority_order(before)
        transformer.settle_torchs_order.cache_clear()
    assert set(ran[1:]) == {SDPBackend.EFFICIENT_ATTENTION.value} and len(ran) > 3


def test_compilation_is_for_gpus_unless_asked_for(monkeypatch):
    assert not compiles(ExecutionConfig()) and compiles(ExecutionConfig(compile="on"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "Python.h")
    monkeypatch.setenv("CC", "cc")
    assert compiles(ExecutionConfig()) and not compiles(ExecutionConfig(compile="off"))


@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_without_a_c_compiler_nothing_is_compiled_and_a_word_says_so(monkeypatch, caplog, missing):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if missing == "compiler" else f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "is_file", lambda path: missing != "headers")
    _warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "lvsm"):
        assert not compiles(ExecutionConfig()) and not compiles(ExecutionConfig())
    (record,) = caplog.records
    assert "gcc and python3-dev" in record.getMessage()
    assert compiles(ExecutionConfig(compile="on"))


@pytest.mark.parametrize(
    ("values", "culprits"),
    [
        ({"keep_activations": 2.5}, ["training.keep_activations", 2.5]),
        ({"attention_backend": "xformers"}, ["training.attention_backend", "'xformers'", "auto", "cudnn"]),
        ({"compile": "yes"}, ["training.compile", "'yes'", "auto", "on", "off"]),
        ({"residual_dtype": "bf16"}, ["training.residual_dtype", "'bf16'", "fp32", "amp"]),
        ({"grad_checkpoint_every": -1}, ["training.grad_checkpoint_every", -1]),
        ({"compile_layers": 0}, ["training.compile_layers", 0]),
    ],
)
def test_impossible_choices_are_refused(values, culprits):
    with refused(*culprits):
        check_values(ExecutionConfig, flatten(ExecutionConfig()) | values, "training.")


# Of three layers, or of two and two: all over inputs but the last one's and over targets, own and cross.
ATTENTIONS = {"decoder_only": 3, "encoder_decoder": 4, "prefix": 2 + 3, "cross": 2 + 2 * 2}


def counted_gradients(variant, execution):
    """Images and gradients, and how often each operation ran."""
    model = small_model(variant, execution=execution).train()
    with Count() as count:
        images = model(random_views(1, 2), random_cameras(1, 2, seed=1))
        images.square().sum().backward()
    return [images.detach(), *(p.grad for p in model.parameters())], count.calls


@pytest.mark.parametrize("variant", ONE_FAST_VARIANT)
def test_what_is_saved_is_not_computed_again(variant):
    layers = ATTENTIONS[variant]
    expected, plain = counted_gradients(variant, PLAIN)
    attention, matmuls = "_scaled_dot_product_flash_attention_for_cpu", "mm"
    assert plain[attention] == layers
    # keep_activations -> attention computed again, matmuls of a block computed again (the last one never is).
    for share, again, more in ((0.0, layers, 3), (1 / 9, 0, 3), (1.0, 0, 0), (1.5, 0, 0)):
        execution = replace(PLAIN, grad_checkpoint_every=1, keep_activations=share)
        found, calls = counted_gradients(variant, execution)
        assert calls[attention] - plain[attention] == again
        recomputed = calls[matmuls] - plain[matmuls]
        # The last block of a stack projects queries apart from keys and values: one matmul more.
        stacks = 1 if variant == "decoder_only" else 2
        extra = stacks if more else 0
        if variant in PUBLISHED:
            assert recomputed in (more * layers + extra, (more + 1) * layers + extra)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 1.5])
def test_plain_checkpoints_of_sixteen_bits_change_no_number(variant, share):
    """As the trainer has them: backward outside of autocast. Layers that come twice share their weights."""
    results = []
    for execution in (PLAIN, replace(PLAIN, grad_checkpoint_every=1, keep_activations=share)):
        model = small_model(variant, execution=execution).train()
        with autocast(PrecisionConfig(), torch.device("cpu")):
            images = model(random_views(1, 2), random_cameras(1, 2, seed=1))
        images.float().square().sum().backward()
        results.append([images.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_blocks_get_no_part_of_a_tensor_beside_it(variant):
    # torch 2.11 failed on it, when its cache held blocks of the other variant.
    model, calls = small_model(variant), []
    for stack in (module for module in model.modules() if isinstance(module, Transformer)):
        stack.run = lambda function, *args: calls.append(args) or function(*args)
    model(random_views(1, 2), random_cameras(1, 2, seed=1))
    assert len(calls) == {"decoder_only": 3, "prefix": 6}.get(variant, 4)
    for args in calls:
        (tokens,) = (arg for arg in args if isinstance(arg, torch.Tensor))
        assert tokens._base is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_larger_pieces_change_no_number(variant):
    single, _ = counted_gradients(variant, PLAIN)
    larger, _ = counted_gradients(variant, replace(PLAIN, compile_layers=2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(larger, single, strict=True))


@pytest.mark.parametrize(("layers", "calls"), [(1, 20), (4, 6), (5, 4), (100, 2)])
def test_larger_pieces_are_fewer_calls(layers, calls):
    model = small_model("prefix+prope", execution=replace(PLAIN, compile_layers=layers), n_layer=10)
    count = []
    model.transformer.run = lambda function, *args: count.append(function) or function(*args)
    model(random_views(1, 2), random_cameras(1, 2, seed=1))
    assert len(count) == calls


def dtypes(tokens, out):
    """Of a block's tokens before and after; keys and values may come with them."""
    return tokens.dtype, (out[0] if isinstance(out, tuple) else out).dtype


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_between_blocks_are_wide_unless_asked_for(variant):
    inputs, targets, renders = random_views(1, 2), random_cameras(1, 2, seed=1), {}
    for residual, dtype in (("fp32", torch.float32), ("amp", torch.bfloat16)):
        model, seen = small_model(variant, execution=replace(PLAIN, residual_dtype=residual)), []
        for block in (module for module in model.modules() if isinstance(module, Block | CrossBlock)):
            block.register_forward_hook(lambda _, args, out, seen=seen: seen.extend(dtypes(args[0], out)))
        renders[residual] = model(inputs, targets)
        assert set(seen) == {torch.float32}
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(inputs, targets).float()
        assert set(seen) == {dtype}
        # bfloat16 keeps 8 bits: a render of three or four blocks is off by a few of its steps at most.
        torch.testing.assert_close(rounded, renders[residual], rtol=0, atol=0.05)
        assert (rounded - renders[residual]).abs().mean() < 0.01
    assert torch.equal(renders["fp32"], renders["amp"])


@pytest.mark.long
def test_compiled():
    """One process tells of every claim: what takes long, to compile, is warm after the first."""
    result = run("-m", "tests.programs.run_compiled")
    assert result.returncode == 0, result.stderr[-2000:]
    verdicts = json.loads(result.stdout.splitlines()[-1])
    assert verdicts and not any(verdicts.values()), "\n".join(filter(None, verdicts.values()))
    # Nothing was left uncompiled for having too many forms.
    assert "_limit" not in result.stderr, result.stderr[-2000:]


@pytest.fixture
def compiler(monkeypatch):
    """A function that sets what compiled code does, in a process that has not given up on compilers."""
    monkeypatch.setattr(compilation, "_failed", [])
    compilation._compile.cache_clear()
    yield lambda error: monkeypatch.setattr(torch, "compile", lambda _function: lambda *_: throw(error))
    compilation._compile.cache_clear()


def throw(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        torch._dynamo.exc.InternalTorchDynamoError("a bug in the compiler\x1b[31m"),
        torch._dynamo.exc.TorchRuntimeError("shapes that only the compiler finds odd"),
        subprocess.CalledProcessError(1, ["gcc"]),
    ],
)
def test_every_failure_of_a_compiler_leaves_plain_code(compiler, caplog, error):
    compiler(error)
    assert [run_compiled(abs, -3), run_compiled(abs, -4), run_compiled(str, 5)] == [3, 4, "5"]
    (record,) = caplog.records
    assert "training.compile=off" in record.getMessage() and "\x1b" not in record.getMessage()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("device-side assert")])
def test_other_errors_of_compiled_code_are_not_the_compilers(compiler, caplog, error):
    compiler(error)
    with pytest.raises(type(error), match=str(error)):
        run_compiled(abs, -3)
    assert not caplog.records


def test_an_error_of_the_model_is_not_taken_for_the_compilers(compiler, caplog):
    compiler(torch._dynamo.exc.TorchRuntimeError("shapes do not fit"))
    with pytest.raises(ZeroDivisionError):
        run_compiled(lambda: 1 / 0)
    assert not caplog.records


# Copies of models


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def averaged(model):
    """The moving average that `model` begins."""
    return AveragedModel(model).module


@pytest.mark.parametrize("compiler_works", [True, False])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, averaged])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_of_a_compiled_model_is_a_model_of_its_own(compiler, monkeypatch, variant, copied, compiler_works):
    if compiler_works:
        monkeypatch.setattr(torch, "compile", lambda function: function)
    else:
        compiler(torch._dynamo.exc.InternalTorchDynamoError("a bug in the compiler"))
    model = compile_model(small_model(variant), ExecutionConfig(compile="on"))
    inputs, targets = random_views(1, 2), random_cameras(1, 2, seed=1)
    with torch.no_grad():
        expected = model(inputs, targets)
        other = copied(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other(inputs, targets), expected)
        assert not torch.equal(model(inputs, targets), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(other(inputs, targets), model(inputs, targets))
    assert all(part.run is run_compiled for part in other.modules() if hasattr(part, "run"))
    compile_model(other, PLAIN)
    assert all(part.run is run_plainly for part in other.modules() if hasattr(part, "run"))
    assert model.head.run is run_compiled


def test_each_function_is_compiled_once_whatever_runs_it(compiler, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    for variant in (*VARIANTS, *VARIANTS):
        model = compile_model(small_model(variant), ExecutionConfig(compile="on"))
        model(random_views(1, 2), random_cameras(1, 2, seed=1))
    # The tokenizer of both kinds of maps, the sequences of two variants, groups of layers, a layer's context, the head.
    assert len(compiled) == len(set(compiled)) == 6

"""The two forms of PRoPE's turn; its formula is in test_encode_once.py, its kernel in test_triton.py."""

import importlib
import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

from geometry.relative import token_cameras
from model import optional_kernels
from model import prope as room
from model.prope import Prope, PropeByMatmul, prope, turn_plainly
from model.saving import SavePolicy, _decide
from tests.helpers import forget_until_undone, needs_triton, random_cameras


@needs_triton
@pytest.mark.parametrize("sequences, tokens", [(3, 70_000), (48, 3072), (1, 3_000_000)])
def test_a_grid_of_programs_is_no_wider_than_gpus_allow(sequences, tokens):
    """2³¹ - 1 along its first dimension, 65,535 along the second."""
    from model.prope_kernel import _grid

    first, second = _grid(torch.empty(sequences, tokens, 1, 8, device="meta"))
    assert first * second == sequences * tokens
    assert first < 2**31
    assert second < 2**16


def test_sixteen_bits_are_turned_in_float32_and_come_back():
    cameras = token_cameras([random_cameras(1, 2)], 4, 32)
    x = torch.randn(1, 48, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = turn_plainly(x.double(), None, cameras.inverse.double(), cameras.cos.double(), cameras.sin.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forms = [turn_plainly(x, None, cameras.inverse, cameras.cos, cameras.sin), prope(cameras).values(x)]
    for found in forms:
        assert found.dtype == torch.bfloat16
        # Half a step of the last of eight bits.
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("d_head", [8, 32])
@pytest.mark.parametrize("parts", [[0, 3], [0, 1], [5, 3], [48, 3]], ids=str)
def test_the_form_for_cpus_is_the_plain_one(parts, d_head):
    """Of views alone, of one, and behind tokens without a camera, as many as those of views and not."""
    tokens, views = parts
    cameras = token_cameras([*[tokens] * (tokens > 0), random_cameras(2, views)], 4, d_head)
    plain = Prope(cameras, turn_plainly)
    found = prope(cameras)
    assert isinstance(found, PropeByMatmul)
    generator = torch.Generator().manual_seed(0)
    # A view of queries, keys and values side by side, as attention has them.
    x = torch.randn(2, len(cameras.cos), 3, 2, d_head, generator=generator, requires_grad=True)
    norm = nn.RMSNorm(d_head, eps=1e-5)
    nn.init.normal_(norm.weight, 1, 0.3, generator=generator)
    heads = x[:, :, 1]
    for some in (None, slice(-24, None), slice(tokens + 12, tokens + 20)):
        own = heads if some is None else heads[:, some]
        pairs = [[form.queries(own, norm, some), form.results(own, some)] for form in (plain, found)]
        if some is None:
            for form, pair in zip((plain, found), pairs, strict=True):
                pair += [form.keys(own, norm), form.values(own)]
        for expected, ours in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
            outer = torch.randn(expected.shape, generator=generator)
            gradients = [torch.autograd.grad(y, x, outer, retain_graph=True)[0] for y in (ours, expected)]
            torch.testing.assert_close(*gradients, atol=2e-5, rtol=1e-5)


def test_without_triton_the_plain_form_runs(monkeypatch):
    forget_until_undone(monkeypatch, optional_kernels, "written_in_triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert room._turn_on_gpus() is turn_plainly


@needs_triton
@pytest.mark.parametrize("policy", SavePolicy)
def test_turned_heads_are_kept_where_matmuls_are(policy):
    importlib.import_module("model.prope_kernel")
    decision = _decide(policy, True, None, torch.ops.lvsm.turn_heads.default)
    assert (decision == CheckpointPolicy.MUST_SAVE) == (policy >= SavePolicy.MATMULS)

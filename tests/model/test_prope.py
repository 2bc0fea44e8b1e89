"""The two forms of PRoPE's turn, and of other kernels in Triton; PRoPE's formula is in test_encode_once.py."""

import importlib.util
import json

import pytest
import torch

from geometry.relative import token_cameras
from model import prope as room
from model.prope import prope, turn_plainly
from tests.helpers import random_cameras
from tests.processes import run_fresh


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")
def test_kernels_are_their_plain_forms():
    result = run_fresh("-m", "tests.programs.run_triton", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    differences = json.loads(result.stdout)
    assert {name: len(cases) for name, cases in differences.items()} == {"turned": 24, "merged": 3}
    assert max(max(cases) for cases in differences.values()) < 1e-5


def test_sixteen_bits_are_turned_in_float32_and_come_back():
    cameras = token_cameras([random_cameras(1, 2)], 4, 32)
    x = torch.randn(1, 48, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = turn_plainly(x.double(), None, cameras.inverse.double(), cameras.cos.double(), cameras.sin.double())
    found = turn_plainly(x, None, cameras.inverse, cameras.cos, cameras.sin)
    assert found.dtype == torch.bfloat16
    # Half a step of the last of eight bits.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_without_a_gpu_or_triton_the_plain_form_runs(monkeypatch):
    cameras = token_cameras([random_cameras(1, 2)], 4, 32)
    assert prope(cameras).turn is turn_plainly
    room._fast_turn.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert room._fast_turn() is turn_plainly
    room._fast_turn.cache_clear()

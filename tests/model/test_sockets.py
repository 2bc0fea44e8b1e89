"""Attention, block and stack with context, cameras, and keys and values given back, against formulas in float64."""

import functools
import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, rms_norm

from model.execution import ExecutionConfig, apply_execution
from model.transformer import Attention, Block, Transformer
from tests.helpers import small_config
from tests.messages import refused
from tests.sockets import CHANNELS, HEADS, TurnedByCameras, random_context

# The norms of queries and keys are computed in float32.
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)

QUERIES = [None, slice(0, 3), slice(-4, None)]
TOKENS = 7


def heads(x):
    b, n, _ = x.shape
    return x.view(b, n, HEADS, CHANNELS).transpose(1, 2)


def turn(matrices, x):
    """Every token's head times the token's matrix, one token at a time."""
    return torch.stack([x[:, :, i] @ matrices[:, i, 0].mT for i in range(x.shape[2])], dim=2)


def plain_attention(attn, x, queries, context, cameras):
    """softmax(Q Kᵀ / √c) V written out; returns the result, and the keys and values of `x`."""
    q, k, v = (heads(part) for part in (x @ attn.qkv.weight.T).chunk(3, -1))
    q = rms_norm(q, (CHANNELS,), attn.q_norm.weight, 1e-5)
    k = rms_norm(k, (CHANNELS,), attn.k_norm.weight, 1e-5)
    if cameras is not None:
        q = turn(cameras.matrix.mT, q)
        k = turn(cameras.inverse, k)
        v = turn(cameras.inverse, v)
    all_k, all_v = k, v
    if context is not None:
        all_k = torch.cat([k, context.k], 2)
        all_v = torch.cat([v, context.v], 2)
    scores = (q @ all_k.mT / math.sqrt(CHANNELS)).exp()
    attended = scores / scores.sum(-1, keepdim=True) @ all_v
    if cameras is not None:
        attended = turn(cameras.matrix, attended)
    result = attended.transpose(1, 2).flatten(2) @ attn.out.weight.T
    return result[:, queries or slice(None)], (k, v)


def plain_block(block, x, queries, context, cameras):
    norm1 = layer_norm(x, (64,), block.norm1.weight, eps=1e-5)
    attended, own = plain_attention(block.attn, norm1, queries, context, cameras)
    x = x[:, queries or slice(None)] + attended
    hidden = layer_norm(x, (64,), block.norm2.weight, eps=1e-5) @ block.mlp.up.weight.T
    return x + gelu(hidden) @ block.mlp.down.weight.T, own


def drawn(module):
    """The module in float64 with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 1.0, std=0.15)
    return module.double()


def tokens(n=TOKENS):
    return torch.randn(2, n, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=[False, True], ids=["alone", "context"])
def context(request):
    return random_context(2, layers=3, dtype=torch.float64) if request.param else None


@pytest.fixture(params=[False, True], ids=["bare", "cameras"])
def cameras(request):
    return TurnedByCameras(2, TOKENS, torch.float64) if request.param else None


@pytest.mark.parametrize("queries", QUERIES)
def test_attention(queries, context, cameras):
    attn, x, one = drawn(Attention(64, 32, True)), tokens(), context and context[0]
    expected, own = plain_attention(attn, x, queries, one, cameras)
    assert_close(attn(x, queries, one, cameras), expected)
    result, kept = attn(x, queries, one, cameras, return_kv=True)
    assert_close(result, expected)
    assert_close(tuple(kept), own)


@pytest.mark.parametrize("queries", QUERIES)
def test_block(queries, context, cameras):
    block, x, one = drawn(Block(small_config("decoder_only").transformer)), tokens(), context and context[1]
    expected, own = plain_block(block, x, queries, one, cameras)
    assert_close(block(x, queries, one, cameras), expected)
    result, kept = block(x, queries, one, cameras, return_kv=True)
    assert_close(result, expected)
    assert_close(tuple(kept), own)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_stack(every, context, cameras):
    """Results, keys and values, and gradients, those of the context included, whatever is computed again."""
    stack, queries = drawn(Transformer(small_config("decoder_only").transformer, 3)), slice(-4, None)
    apply_execution(stack, ExecutionConfig(every, 0.3, compile="off")).train()
    wanted = [*stack.parameters(), *(part for kv in context or () for part in kv)]
    x, expected = tokens(), []
    for number, block in enumerate(stack):
        x, own = plain_block(block, x, queries if number == 2 else None, context and context[number], cameras)
        expected += own
    expected = [x, *expected]
    result, kept = stack(tokens(), queries, context, cameras, return_kv=True)
    found = [result, *(part for kv in kept for part in kv)]
    assert_close(found, expected)
    assert_close(stack(tokens(), queries, context, cameras), x)
    theirs = torch.autograd.grad(sum(t.square().sum() for t in expected), wanted)
    ours = torch.autograd.grad(sum(t.square().sum() for t in found), wanted)
    assert_close(ours, theirs, atol=1e-4)


def test_keys_and_values_of_some_tokens_are_context_for_others():
    """Two streams that share weights: the second attends to both, as in one sequence whose first half is blind."""
    stack, x = drawn(Transformer(small_config("decoder_only").transformer, 3)), tokens(11)
    with torch.no_grad():
        _, kept = stack(x[:, :6], return_kv=True)
        later = stack(x[:, 6:], context=kept)
        first, second = x[:, :6], x[:, 6:]
        for block in stack:
            both = torch.cat([first, second], 1)
            first, second = block(first), block(both)[:, 6:]
    assert_close(later, second)


def test_context_is_of_every_layer():
    stack = Transformer(small_config("decoder_only").transformer, 3)
    with refused("2 layers", 3, error=ValueError):
        stack(torch.zeros(2, 7, 64), context=random_context(2, layers=2))

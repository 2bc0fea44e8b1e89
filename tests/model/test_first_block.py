"""The first block of a stack over a scene's tokens and a target's: what concerns the scene alone is computed once."""

import pytest
import torch
import torch.nn.functional as F

from model.attention_kernel import attend_known
from model.transformer import Attention, Block, Transformer, TransformerConfig
from tests import flash4
from tests.helpers import random_cameras, random_views, small_model

TOKENS = 7


@pytest.fixture
def measured(monkeypatch):
    """FlashAttention-4 in plain formulas, measured to win everywhere."""
    package = flash4.install(monkeypatch)
    flash4.measure_small(monkeypatch)
    return package


@pytest.fixture
def apart(monkeypatch):
    """The numbers of scenes and sequences that first blocks had apart."""
    found = []
    inherited = Block.with_known
    monkeypatch.setattr(
        Block, "with_known", lambda self, x, known: found.append((len(known), len(x))) or inherited(self, x, known)
    )
    return found


def heads(b, n):
    return torch.randn(b, 3, n, 16)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "calls"), [("fa4", 2), ("by_shape", 0), ("cudnn_by_shape", 0)])
def test_a_scenes_tokens_get_what_they_get_beside_each_sequence(measured, kernel, calls):
    q, k, v = (heads(2, 5) for _ in range(3))
    others = [heads(6, 4) for _ in range(2)]
    keys, values = (torch.cat([x.repeat_interleave(3, dim=0), y], dim=2) for x, y in zip((k, v), others, strict=True))
    expected = F.scaled_dot_product_attention(q.repeat_interleave(3, dim=0), keys, values)
    torch.testing.assert_close(attend_known(kernel, q, k, v, others), expected)
    assert measured.calls["forward"] == calls


def stack(n_layer=2, kernel="fa4", block=Block):
    sizes = TransformerConfig(d=64, d_head=32)
    torch.manual_seed(0)
    return flash4.use(Transformer(sizes, n_layer, block), kernel).eval()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["fa4", "by_shape", "cudnn_by_shape"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("queries", [None, slice(0, 4)])
def test_a_stack_gives_the_same_tokens(measured, kernel, layers, queries):
    x, known = torch.randn(6, 4, 64), torch.randn(2, TOKENS, 64)
    plain = stack(3, "flash")
    ours = stack(3, kernel)
    ours.layers_per_piece = layers
    expected = plain(torch.cat([x, known.repeat_interleave(3, dim=0)], dim=1), queries=queries)
    torch.testing.assert_close(ours.with_known(x, known, queries), expected)


@torch.no_grad()
@pytest.mark.parametrize(("scenes", "targets"), [(1, 3), (2, 3), (2, 2)])
@pytest.mark.parametrize("kernel", ["fa4", "by_shape", "cudnn_by_shape"])
def test_images_are_the_same(measured, apart, kernel, scenes, targets):
    inputs, cameras = random_views(scenes, 2), random_cameras(scenes, targets, seed=1)
    found, expected = (flash4.use(small_model("encoder_decoder"), by)(inputs, cameras) for by in (kernel, "flash"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert apart == [(scenes, scenes * targets)]


@pytest.mark.parametrize(
    ("variant", "kernel", "targets", "training", "sizes"),
    [
        ("encoder_decoder", "fa4", 1, False, {}),
        ("encoder_decoder", "fa4", 3, True, {}),
        ("encoder_decoder", "cudnn", 3, False, {}),
        ("encoder_decoder", "flash", 3, False, {}),
        ("encoder_decoder", "fa4", 3, False, {"decoder_n_layer": 1}),
        ("encoder_decoder+prope", "fa4", 3, False, {}),
    ],
)
def test_where_it_gains_nothing_or_does_not_hold_the_block_runs_as_it_is(
    measured, apart, variant, kernel, targets, training, sizes
):
    inputs, cameras = random_views(1, 2), random_cameras(1, targets, seed=1)
    with torch.set_grad_enabled(training):
        found, expected = (flash4.use(small_model(variant, **sizes), by)(inputs, cameras) for by in (kernel, "flash"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not apart


def with_own_attention():
    model = stack()
    model[0].attn.__class__ = type("Other", (Attention,), {})
    return model


def with_own_stack():
    model = stack()
    model.__class__ = type("Other", (Transformer,), {})
    return model


@pytest.mark.parametrize(
    "own",
    [lambda: stack(block=type("Other", (Block,), {})), with_own_attention, with_own_stack],
    ids=["block", "attention", "stack"],
)
def test_blocks_of_ones_own_run_as_they_are(measured, own):
    like, counts = torch.zeros(1, 1, 1, 1), (1, TOKENS, 3, 4)
    assert stack().side_by_side_kernel(like, counts) and own().side_by_side_kernel(like, counts) is None
    with torch.no_grad():
        assert stack().takes_known(like, counts) and not own().takes_known(like, counts)

"""The first block of a stack over a scene's tokens and a target's: what concerns the scene alone is computed once."""

import pytest
import torch
import torch.nn.functional as F

from geometry.relative import token_cameras
from model.attention_kernel import attend_known
from model.lvsm import EncoderDecoder
from model.prope import prope
from model.transformer import Transformer, TransformerConfig
from tests import flash4
from tests.helpers import random_cameras, random_views, small_model

TOKENS = 7


@pytest.fixture
def measured(monkeypatch):
    """FlashAttention-4 in plain formulas; heads and tokens of small models count as measured."""
    package = flash4.install(monkeypatch)
    flash4.measure_small(monkeypatch)
    return package


@pytest.fixture
def apart(monkeypatch):
    """The numbers of scenes and sequences that first blocks had apart."""
    found = []
    inherited = Transformer.with_known

    def with_known(self, x, known, queries):
        found.append((len(known), len(x)))
        return inherited(self, x, known, queries)

    monkeypatch.setattr(Transformer, "with_known", with_known)
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


def stack(n_layer=2, kernel="fa4"):
    sizes = TransformerConfig(d=64, d_head=32)
    torch.manual_seed(0)
    return flash4.use(Transformer(sizes, n_layer), kernel).eval()


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
@pytest.mark.parametrize("multiprocessors", [0, 132])
def test_images_are_the_same(measured, apart, monkeypatch, kernel, scenes, targets, multiprocessors):
    monkeypatch.setattr("model.attention_kernel._MULTIPROCESSORS", multiprocessors)
    inputs, cameras = random_views(scenes, 2), random_cameras(scenes, targets, seed=1)
    found, expected = (flash4.use(small_model("encoder_decoder"), by)(inputs, cameras) for by in (kernel, "flash"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert apart == [(scenes, scenes * targets)]
    assert (measured.calls["forward"] > 0) == (kernel == "fa4" or (kernel == "by_shape" and multiprocessors > 0))


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


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_refused(measured, training):
    model = stack().train(training)
    model.checkpoint_groups(1, 0.5)
    with pytest.raises(RuntimeError, match="with_known"):
        model.with_known(torch.randn(6, 4, 64), torch.randn(2, TOKENS, 64), None)


@torch.no_grad()
def test_hooks_of_the_first_block_run(measured):
    model, seen = stack(), []
    for module in (model[0], model[0].attn):
        module.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    model.with_known(torch.randn(6, 4, 64), torch.randn(2, TOKENS, 64), None)
    assert seen == [(6, 4 + TOKENS, 64)] * 2


@torch.no_grad()
def test_a_variant_that_turns_heads_by_itself_does_so(measured, apart):
    inputs, cameras = random_views(1, 2), random_cameras(1, 3, seed=1)
    images = []
    for kernel in ("fa4", "flash"):
        model = flash4.use(small_model("encoder_decoder"), kernel)
        model.__class__ = type("Other", (EncoderDecoder,), {"_relative": turn_by_cameras})
        images.append(model(inputs, cameras))
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-4)
    assert not apart
    assert (small_model("encoder_decoder")(inputs, cameras) - images[0]).abs().max() > 0.01


def turn_by_cameras(self, *parts):
    return prope(token_cameras(parts, self.image_tokenizer.patch_size, self.cfg.transformer.d_head))


def changed(part, **methods):
    """A subclass of a module's type, with methods of its own."""
    part.__class__ = type("Other", (type(part),), methods)


PARTS = {"stack": lambda model: model, "block": lambda model: model[0], "attention": lambda model: model[0].attn}


@pytest.mark.parametrize("part", PARTS)
def test_a_forward_of_ones_own_is_not_passed_by(measured, part):
    like, counts = torch.zeros(1, 1, 1, 1), (1, TOKENS, 3, 4)
    for methods, ours in (({"more": lambda self: None}, True), ({"forward": lambda self, x: x}, False)):
        model = stack()
        changed(PARTS[part](model), **methods)
        assert (model.side_by_side_kernel(like, counts) is not None) == ours
        with torch.no_grad():
            assert model.takes_known(torch.zeros(3, 4, 64), torch.zeros(1, TOKENS, 64)) == ours

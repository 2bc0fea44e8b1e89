"""Norms and attention in one operator, sequences beside their context: the numbers of both apart; when it runs."""

import pytest
import torch
import torch.nn.functional as F

from model import normed_attention as room
from model.execution import ExecutionConfig
from model.lvsm import Prefix
from model.normed_attention import attend_normed
from model.transformer import Transformer, TransformerConfig
from tests import flash4
from tests.helpers import PLAIN, Count, drawn_norm, random_cameras, random_views, small_model
from utils.precision import PrecisionConfig, autocast

OPERATORS = ("normed_attention", "normed_attention_backward")
# Sequences and their tokens; with others that have them as context, two in a row for each, or none.
COUNTS = {"alone": (3, 5, 0, 0), "beside": (3, 7, 6, 4)}


@pytest.fixture
def package(monkeypatch):
    """FlashAttention-4 in plain formulas."""
    return flash4.install(monkeypatch)


@pytest.fixture
def norming(monkeypatch):
    """A list that gets an entry whenever the operator normalises queries and keys."""
    calls, plainly = [], room.normalize_plainly
    monkeypatch.setattr(room, "normalize_plainly", lambda *args: calls.append(1) or plainly(*args))
    return calls


@pytest.fixture
def measured(package, monkeypatch):
    """FlashAttention-4 in plain formulas, measured to win everywhere."""
    flash4.measure_small(monkeypatch)
    return package


def drawn(*size):
    return torch.randn(size).requires_grad_()


def heads_of(counts):
    s, m, b, n = counts
    return drawn(1, s * m + b * n, 9, 16)


def apart(heads, q_norm, k_norm, counts):
    """What the operator computes, by torch."""
    s, m, b, n = counts
    q, k, v = heads[0].chunk(3, dim=1)
    q, k = q_norm(q), k_norm(k)
    first = [x[: s * m].unflatten(0, (s, m)).transpose(1, 2) for x in (q, k, v)]
    results = [F.scaled_dot_product_attention(*first)]
    if b:
        q, k, v = (x[s * m :].unflatten(0, (b, n)).transpose(1, 2) for x in (q, k, v))
        context = (x.repeat_interleave(b // s, dim=0) for x in first[1:])
        keys, values = (torch.cat(pair, dim=2) for pair in zip(context, (k, v), strict=True))
        results.append(F.scaled_dot_product_attention(q, keys, values))
    return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in results])[None]


@pytest.mark.parametrize("save_normed", [False, True])
@pytest.mark.parametrize("kernel", ["fa4", "cudnn"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_it_gives_what_norms_and_attention_give(package, norming, kernel, counts, save_normed):
    """Norms are computed again for backward, unless what they give is saved."""
    torch.manual_seed(0)
    heads, norms = heads_of(counts), [drawn_norm(16), drawn_norm(16)]
    wanted = [heads, *(each.weight for each in norms)]
    results = []
    for found in (attend_normed(kernel, heads, *wanted[1:], counts, save_normed), apart(heads, *norms, counts)):
        outer = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        results.append([found, *torch.autograd.grad(found, wanted, outer)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert package.calls["backward"] == (0 if kernel == "cudnn" else 3 if counts[2] else 1)
    assert len(norming) == (1 if save_normed else 2)


@pytest.mark.parametrize("save_normed", [False, True])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_operator_is_what_it_says_of_itself(package, counts, save_normed):
    heads = heads_of(counts)[0].detach().unflatten(1, (3, -1)).requires_grad_()
    args = (heads, drawn(16), drawn(16), "fa4", *counts, save_normed)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(room.normed_attention, args, test_utils=tests)


def test_values_and_their_gradient_are_not_copied(package):
    heads = heads_of(COUNTS["alone"])
    out = attend_normed("fa4", heads, drawn(16), drawn(16), COUNTS["alone"])
    assert package.places[2] == heads[0, :, 6:].data_ptr()
    out.sum().backward()
    assert package.places[-1] == heads.grad[0, :, 6:].data_ptr()


# The whole model


FP32 = PrecisionConfig(use_amp=False)


def images_and_gradients(variant, kernel, execution=PLAIN, precision=FP32, **transformer):
    """As the trainer has them: backward outside of autocast."""
    model = flash4.use(small_model(variant, execution=execution, **transformer), kernel).train()
    with Count() as count:
        with autocast(precision, torch.device("cpu")):
            images = model(random_views(2, 2), random_cameras(2, 3, seed=1))
        images.float().square().sum().backward()
    return [images.detach(), *(p.grad for p in model.parameters())], [count.calls[name] for name in OPERATORS]


# Calls for three layers, or for two and two: of those whose tokens are all queries, both kinds of tokens at once.
CALLS = {"decoder_only": 2, "encoder_decoder": 2, "prefix": 2, "cross": 2 + 2}


@pytest.mark.parametrize("variant", CALLS)
@pytest.mark.parametrize("kernel", ["by_shape", "fa4"])
def test_models_in_training_attend_by_it(measured, variant, kernel):
    found, calls = images_and_gradients(variant, kernel)
    assert calls == [CALLS[variant]] * 2
    for ours, theirs in zip(found, images_and_gradients(variant, "flash")[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_prefix_goes_side_by_side_by_cudnn_too(measured):
    found, calls = images_and_gradients("prefix", "cudnn_by_shape")
    assert calls == [2, 2] and measured.calls["forward"] == 0
    for ours, theirs in zip(found, images_and_gradients("prefix", "flash")[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "kernel", "transformer"),
    [
        ("prefix", "flash", {}),
        ("prefix", "cudnn", {}),
        ("prefix+prope", "fa4", {}),
        ("prefix", "fa4", {"use_qk_norm": False}),
    ],
)
def test_other_kernels_cameras_and_models_without_norms_do_without_it(package, variant, kernel, transformer):
    assert images_and_gradients(variant, kernel, **transformer)[1] == [0, 0]


# Sequences, and scenes of 2,048 tokens; the sequences of 1,024 tokens, and whether few scores are too few.
SHAPES = [(48, 8, "fa4"), (12, 4, "fa4"), (8, 4, None), (48, 48, None)]


@pytest.mark.parametrize(("b", "s", "kernel"), SHAPES)
def test_sequences_go_beside_their_context_where_scores_are_many(monkeypatch, b, s, kernel):
    monkeypatch.setattr("model.attention_kernel._DEVICES", {"cpu"})
    stack = flash4.use(Transformer(TransformerConfig(d=768, n_layer=1), 1), "by_shape")
    like, counts = torch.zeros(1, 1, 1, 1), (s, 2048, b, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        assert stack.side_by_side_kernel(like, counts) == kernel
        # The context's tokens count.
        assert stack.side_by_side_kernel(like, (s, 1, b, 1024)) == (kernel if b == 48 else None)
        with torch.no_grad():
            assert stack.side_by_side_kernel(like, counts) is None
    assert stack.side_by_side_kernel(like, counts) is None


@pytest.mark.parametrize(("method", "times"), [("encode", 1), ("target_tokens", 1), ("_relative", 2)])
def test_a_variant_that_encodes_otherwise_trains_as_it_renders(measured, method, times):
    model = flash4.use(small_model("prefix"), "by_shape").train()
    inherited, calls = getattr(Prefix, method), []
    other = type("Other", (Prefix,), {method: lambda self, *args: calls.append(1) or inherited(self, *args)})
    model.__class__ = other
    model(random_views(2, 2), random_cameras(2, 3, seed=1)).sum().backward()
    assert calls == [1] * times


def test_gradients_have_the_types_of_weights(package):
    weights = [x.detach().bfloat16().requires_grad_() for x in (drawn(16), drawn(16))]
    attend_normed("fa4", heads_of(COUNTS["alone"]), *weights, COUNTS["alone"]).sum().backward()
    assert all(weight.grad.dtype == torch.bfloat16 for weight in weights)


@torch.no_grad()
@pytest.mark.parametrize("variant", CALLS)
def test_rendering_does_without_it(measured, variant):
    model = flash4.use(small_model(variant), "by_shape").eval()
    with Count() as count:
        model(random_views(2, 2), random_cameras(2, 3, seed=1))
    assert not any(count.calls[name] for name in OPERATORS)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_side_by_side_whatever_is_checkpointed_together(measured, every, layers):
    """Groups of more layers than there are, and a last one of several, too."""
    execution = ExecutionConfig(every, 0.5, compile="off")
    found, calls = images_and_gradients("prefix", "by_shape", execution, n_layer=layers)
    assert calls[1] == layers - 1
    expected, _ = images_and_gradients("prefix", "flash", n_layer=layers)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
@pytest.mark.parametrize(("every", "share", "again"), [(0, 1.0, 0), (1, 1.0, 2), (1, 1.67, 1), (1, 2.0, 0)])
def test_norms_are_saved_where_everything_is(measured, norming, variant, every, share, again):
    _, calls = images_and_gradients(variant, "by_shape", ExecutionConfig(every, share, compile="off"))
    assert calls == [2, 2] and len(norming) == 2 + again


@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
@pytest.mark.parametrize(("share", "again"), [(0.0, 2), (1 / 9, 0), (1.0, 0)])
def test_what_is_saved_is_not_computed_again(measured, variant, share, again):
    _, calls = images_and_gradients(variant, "by_shape", ExecutionConfig(1, share, compile="off"))
    assert calls == [2 + again, 2]
    # Of three layers; of prefix two with three attentions, and one with two.
    attentions = {"decoder_only": 3, "prefix": 2 * 3 + 2}[variant]
    assert measured.calls == {"forward": attentions * (2 if again else 1), "backward": attentions}


@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
def test_sixteen_bits_stay_so(measured, monkeypatch, variant):
    monkeypatch.setattr("model.attention_kernel._DTYPES", (torch.bfloat16,))
    exact = images_and_gradients(variant, "flash")[0]
    distances = []
    for kernel in ("flash", "by_shape"):
        found, calls = images_and_gradients(variant, kernel, precision=PrecisionConfig())
        assert (calls[0] > 0) == (kernel == "by_shape")
        assert all(gradient.dtype == torch.float32 for gradient in found[1:])
        distances.append([(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(found, exact, strict=True)])
    for theirs, ours in zip(*distances, strict=True):
        assert ours < 1.5 * theirs + 2e-3

"""Norms and attention in one operator: the numbers of both apart, gradients included, and when it runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import normed_attention as room
from model.execution import ExecutionConfig
from model.normed_attention import attend_normed, normed_by
from tests import flash4
from tests.helpers import PLAIN, Count, random_cameras, random_views, small_model

OPERATORS = ("normed_attention", "normed_attention_backward")


@pytest.fixture
def package(monkeypatch):
    """FlashAttention-4 in plain formulas."""
    return flash4.install(monkeypatch)


def drawn(*size):
    return torch.randn(size).requires_grad_()


def norm():
    made = nn.RMSNorm(16, eps=1e-5)
    nn.init.normal_(made.weight, 1, 0.3)
    return made


def apart(heads, q_norm, k_norm, context):
    """What the operator computes, by torch: results, normalised keys and values [b h n c]."""
    q, k, v = (x.transpose(1, 2) for x in heads.chunk(3, dim=2))
    q, k = q_norm(q), k_norm(k)
    keys, values = k, v
    if context is not None:
        repeated = (x.repeat_interleave(len(heads) // len(x), dim=0) for x in context)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(repeated, (k, v), strict=True))
    return [F.scaled_dot_product_attention(q, keys, values).transpose(1, 2), k, v]


@pytest.mark.parametrize("kernel", ["fa4", "cudnn"])
@pytest.mark.parametrize("scenes", [None, 2, 6])
@pytest.mark.parametrize("shared", [False, True])
def test_it_gives_what_norms_and_attention_give(package, kernel, scenes, shared):
    torch.manual_seed(0)
    heads, norms = drawn(6, 5, 9, 16), [norm(), norm()]
    context = None if scenes is None else [drawn(scenes, 3, 7, 16), drawn(scenes, 3, 7, 16)]
    wanted = [heads, *(each.weight for each in norms), *(context or [])]
    results = []
    for found in (attend_normed(kernel, heads, *norms, context, shared), apart(heads, *norms, context)):
        found = found if shared else found[:1]
        outer = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) for x in found]
        results.append([*found, *torch.autograd.grad(found, wanted, outer)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert package.calls["backward"] == (0 if kernel == "cudnn" else 1 if scenes is None else 2)


TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("shared", [False, True])
def test_the_operator_is_what_it_says_of_itself(package, shared):
    heads, weights = drawn(4, 5, 3, 2, 16), [drawn(16), drawn(16)]
    for context in ((None, None), (drawn(2, 7, 2, 16), drawn(2, 7, 2, 16))):
        torch.library.opcheck(room.normed_attention, (heads, *weights, *context, 1e-5, "fa4", shared), test_utils=TESTS)


def test_values_get_their_gradient_without_a_copy(package):
    heads = drawn(2, 5, 9, 16)
    (out,) = attend_normed("fa4", heads, norm(), norm(), None, False)
    assert package.places[2] == heads[:, :, 6:].data_ptr()
    out.sum().backward()
    *_, dv = package.places
    assert dv == heads.grad[:, :, 6:].data_ptr()


def images_and_gradients(variant, kernel, execution=PLAIN, **transformer):
    model = flash4.use(small_model(variant, execution=execution, **transformer), kernel).train()
    with Count() as count:
        images = model(random_views(2, 2), random_cameras(2, 3, seed=1))
        images.square().sum().backward()
    return [images.detach(), *(p.grad for p in model.parameters())], [count.calls[name] for name in OPERATORS]


# Of three layers, or of two and two: those whose tokens are all queries, and keys as well.
LAYERS = {"decoder_only": 2, "encoder_decoder": 2, "prefix": 2 + 3, "cross": 2 + 2}


@pytest.mark.parametrize("variant", LAYERS)
def test_models_in_training_attend_by_it(package, monkeypatch, variant):
    monkeypatch.setattr("model.attention_kernel._MEASURED_HEAD", 32)
    monkeypatch.setattr("model.attention_kernel._SCORES", 1)
    found, calls = images_and_gradients(variant, "by_shape")
    assert calls == [LAYERS[variant]] * 2
    for ours, theirs in zip(found, images_and_gradients(variant, "flash")[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "kernel", "transformer"),
    [
        ("prefix", "flash", {}),
        ("prefix+prope", "fa4", {}),
        ("prefix", "fa4", {"use_qk_norm": False}),
    ],
)
def test_other_kernels_cameras_and_models_without_norms_do_without_it(package, variant, kernel, transformer):
    assert images_and_gradients(variant, kernel, **transformer)[1] == [0, 0]


def test_rendering_does_without_it(package):
    heads = torch.randn(2, 5, 9, 16)
    assert normed_by("fa4", heads, None) == "fa4"
    with torch.no_grad():
        assert normed_by("fa4", heads, None) is None


@pytest.mark.parametrize(("share", "again"), [(0.0, 2), (1 / 9, 0), (1.0, 0), (2.0, 0)])
def test_what_is_saved_is_not_computed_again(package, share, again):
    _, calls = images_and_gradients("decoder_only", "fa4", ExecutionConfig(1, share, compile="off"))
    assert calls == [2 + again, 2]


@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
def test_sixteen_bits_stay_so(package, monkeypatch, variant):
    monkeypatch.setattr("model.attention_kernel._DTYPES", (torch.bfloat16,))
    exact = images_and_gradients(variant, "flash")[0]
    distances = []
    for kernel in ("flash", "fa4"):
        with torch.autocast("cpu", torch.bfloat16):
            found, calls = images_and_gradients(variant, kernel)
        assert (calls[0] > 0) == (kernel == "fa4")
        assert all(gradient.dtype == torch.float32 for gradient in found[1:])
        distances.append([(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(found, exact, strict=True)])
    for theirs, ours in zip(*distances, strict=True):
        assert ours < 1.5 * theirs + 2e-3

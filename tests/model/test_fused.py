"""Forms written out for the compiler compute what torch's own do."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from model.fused import gelu, layer_norm

pytestmark = pytest.mark.slow


def compiled(function, backend="inductor"):
    # Without the type checks that tests run under, which older compilers stumble over.
    return torch.compile(inspect.unwrap(function), backend=backend)


def every_bfloat16():
    """Every finite number of the type that is not too small to be told from 0."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return numbers[numbers.isfinite() & (numbers.abs() > 1e-30)]


def values_and_slopes(function, x):
    """Values, and slopes times 2: gradients for an outer one that is not 1."""
    x = x.clone().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(2 * y.sum(), x)
    return y.detach().double(), slope.double()


def test_compiled_gelu_is_as_near_to_the_formula_as_torchs_own():
    x = every_bfloat16()
    exact, exact_slope = values_and_slopes(F.gelu, x.double())
    ours, slope = values_and_slopes(compiled(gelu), x)
    theirs, their_slope = values_and_slopes(F.gelu, x)
    # Half a step of a type with 8 binary digits, and what the polynomial is off by.
    assert ((ours - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all()
    assert (ours != theirs).double().mean() < 0.01
    assert (slope - exact_slope).abs().max() <= (their_slope - exact_slope).abs().max() + 1e-6


def test_compiled_forms_keep_the_type_of_their_input():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        x, weight = torch.linspace(-3, 3, 64, dtype=dtype), torch.ones(64, dtype=dtype)
        for function, arguments in ((gelu, ()), (layer_norm, (weight, 1e-5))):
            # All of the compiler but the generation of code, which would take most of the time.
            ours = compiled(function, "aot_eager_decomp_partition")(x, *arguments)
            theirs = function(x, *arguments)
            assert ours.dtype == theirs.dtype == dtype
            torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=2e-6)


def test_gelu_is_torchs_own_where_nothing_is_compiled_or_rounded():
    x = torch.linspace(-6, 6, 101)
    assert torch.equal(gelu(x.bfloat16()), F.gelu(x.bfloat16()))
    torch.testing.assert_close(compiled(gelu)(x), F.gelu(x), rtol=1e-6, atol=1e-6)


def test_compiled_layer_norm_equals_torchs_own():
    torch.manual_seed(0)
    # Far from 0, where a careless variance would lose all digits.
    x, outer, weight = 100 + torch.randn(5, 7, 64), torch.randn(5, 7, 64), torch.rand(64)
    results = []
    for function in (compiled(layer_norm), layer_norm):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = function(a, w, 1e-5)
        results.append([y, *torch.autograd.grad(y, (a, w), outer)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)

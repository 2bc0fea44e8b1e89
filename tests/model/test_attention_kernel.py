"""Attention by FlashAttention-4 and cuDNN, here in plain formulas: when they run, and that no number depends on it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model import attention_kernel as room
from model import execution
from model.attention_kernel import apart_by, attend_apart, attend_by, takes_fa4, why_no_fa4
from model.execution import ExecutionConfig, attention_kernel
from tests import flash4
from tests.cards import broken, chosen, gone, newer, older, on_hopper
from tests.helpers import PLAIN, VARIANTS, random_cameras, random_views, small_model


@pytest.fixture
def package(monkeypatch):
    """FlashAttention-4 in plain formulas."""
    return flash4.install(monkeypatch)


def heads(*tokens, b=2, h=3, c=16, dtype=torch.float32):
    """Heads [b h n c] as projections give them: views of one tensor whose gradient is wanted."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(b, n, 2, h, c, generator=generator, dtype=dtype).requires_grad_() for n in tokens]
    return [x[:, :, 1].transpose(1, 2) for x in whole], whole


def counted(kernel, runs):
    """Calls of FlashAttention-4 where so many attentions run."""
    return {"forward": runs, "backward": runs} if kernel == "fa4" else {}


@pytest.mark.parametrize("kernel", ["fa4", "cudnn"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 8)])
def test_both_kernels_give_attention_and_its_gradients(package, kernel, queries, keys):
    (q, k, v), whole = heads(queries, keys, keys)
    outer = torch.randn(2, 3, queries, 16, generator=torch.Generator().manual_seed(1))
    expected = F.scaled_dot_product_attention(q, k, v)
    found = attend_by(kernel, q, k, v)
    torch.testing.assert_close(found, expected)
    theirs = torch.autograd.grad(expected, whole, outer, retain_graph=True)
    for ours, plain in zip(torch.autograd.grad(found, whole, outer), theirs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert package.calls == counted(kernel, 1)


# That they compile is in run_compiled.py.
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_operators_are_what_they_say_of_themselves(package):
    (q, k, v), _ = heads(4, 6, 6)
    args = [x.detach().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(room.attention, (*args, "fa4"), test_utils=TESTS)
    context = [x[:1].detach().requires_grad_() for x in args[1:]]
    torch.library.opcheck(room.attention_apart, (*args, *context, "fa4"), test_utils=TESTS)


@pytest.mark.parametrize("kernel", ["fa4", "cudnn"])
def test_attention_apart_is_attention_to_all_keys_together(package, kernel):
    (q, k, v), whole = heads(5, 5, 5, b=6)
    (context_k, context_v), whole_context = heads(7, 7, b=2)
    repeated = [x.repeat_interleave(3, dim=0) for x in (context_k, context_v)]
    expected = F.scaled_dot_product_attention(
        q, *(torch.cat(pair, dim=2) for pair in zip(repeated, (k, v), strict=True))
    )
    found = attend_apart(kernel, q, k, v, (context_k, context_v))
    torch.testing.assert_close(found, expected)
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = [*whole, *whole_context]
    theirs = torch.autograd.grad(expected, wanted, outer)
    for ours, plain in zip(torch.autograd.grad(found, wanted, outer), theirs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_no_heads_are_copied_on_their_way(package):
    (q, k, v), _ = heads(5, 5, 5)
    out = attend_by("fa4", q, k, v)
    assert package.places == [x.data_ptr() for x in (q, k, v)]
    # The projection behind takes the heads of a token side by side.
    assert out.transpose(1, 2).is_contiguous()


# Of the table in benchmarks/RECORDS.md: sequences, queries, keys, and whether FlashAttention-4 runs, with gradients and
# without.
MEASURED = [
    (48, 3072, 3072, True, True),
    (12, 3072, 3072, True, True),
    (8, 6144, 2048, True, True),
    (8, 2048, 2048, True, True),
    (48, 1024, 3072, True, False),
    (48, 1024, 1024, True, False),
    (1, 3072, 3072, False, True),
    (1, 4096, 4096, False, True),
    (1, 2560, 3072, False, False),
    (8, 1024, 3072, False, False),
    # In one round of the multiprocessors.
    (1, 1024, 3072, False, True),
    (1, 1024, 2048, False, True),
    (1, 1024, 1024, False, False),
    (1, 1408, 2048, False, True),
    (1, 1409, 2048, False, False),
    (2, 256, 768, False, False),
]


def empty_heads(b, n, c=64, dtype=torch.bfloat16):
    return torch.empty(b, 12, n, c, dtype=dtype, device="meta")


@pytest.mark.parametrize(("b", "queries", "keys", "training", "rendering"), MEASURED)
def test_the_kernel_follows_the_shape_as_measured(monkeypatch, b, queries, keys, training, rendering):
    monkeypatch.setattr(room, "_DEVICES", {"meta"})
    q = empty_heads(b, queries)
    assert takes_fa4("fa4", q, keys) and takes_fa4("by_shape", q, keys) == training
    with torch.no_grad():
        assert takes_fa4("fa4", q, keys) and takes_fa4("by_shape", q, keys) == rendering


@pytest.mark.parametrize(
    ("b", "queries", "c", "tile"),
    [
        (1, 1024, 64, (128, 128)),
        (1, 1408, 64, (128, 128)),
        (1, 1409, 64, None),
        (2, 1024, 64, None),
        (1, 1024, 96, None),
    ],
)
def test_few_queries_are_taken_in_one_round(package, b, queries, c, tile):
    q, k = torch.zeros(b, 12, queries, c), torch.zeros(b, 12, 2, c)
    attend_by("fa4", q, k, k)
    assert package.tile == tile


# Sequences, scenes, and what attends apart where the choice is by shape, with gradients and without.
SHARED = [
    (48, 8, "fa4", "cudnn"),
    (12, 4, "fa4", "cudnn"),
    (8, 1, None, "cudnn"),
    (7, 1, None, None),
    (48, 48, None, None),
]


@pytest.mark.parametrize(("b", "scenes", "training", "rendering"), SHARED)
def test_several_sequences_spare_copies_of_their_context(monkeypatch, b, scenes, training, rendering):
    monkeypatch.setattr(room, "_DEVICES", {"meta"})
    q, context = empty_heads(b, 1024), empty_heads(scenes, 2048)
    assert apart_by("fa4", q, q, context) == ("fa4" if b > scenes else None)
    assert apart_by("by_shape", q, q, context) == training
    assert apart_by("cudnn_by_shape", q, q, context) == (training and "cudnn")
    # A kernel that was named runs as torch has it.
    assert apart_by("cudnn", q, q, context) is None
    with torch.no_grad():
        assert apart_by("by_shape", q, q, context) == apart_by("cudnn_by_shape", q, q, context) == rendering
    exact = empty_heads(b, 1024, dtype=torch.float32)
    assert apart_by("fa4", exact, exact, context) is apart_by("by_shape", exact, exact, context) is None


def test_what_was_not_measured_or_cannot_be_is_left_to_torch(monkeypatch):
    wide = empty_heads(48, 3072)
    assert not takes_fa4("fa4", wide, 3072)
    monkeypatch.setattr(room, "_DEVICES", {"meta"})
    for kernel in ("cudnn", "flash", "efficient", "math"):
        assert not takes_fa4(kernel, wide, 3072)
    for c, dtype, taken in ((128, torch.float16, True), (20, torch.float16, False), (256, torch.bfloat16, False)):
        other = empty_heads(48, 3072, c, dtype)
        assert not takes_fa4("by_shape", other, 3072)
        assert takes_fa4("fa4", other, 3072) == taken
    assert not takes_fa4("fa4", empty_heads(48, 3072, dtype=torch.float32), 3072)


# The whole model


def images_and_gradients(variant, kernel, execution=PLAIN):
    model = flash4.use(small_model(variant, execution=execution), kernel).train()
    images = model(random_views(2, 2), random_cameras(2, 3, seed=1))
    images.square().sum().backward()
    return [images.detach(), *(p.grad for p in model.parameters())]


@pytest.fixture
def measured(package, joins, monkeypatch):
    """FlashAttention-4 in plain formulas, measured to win everywhere; what was joined."""
    flash4.measure_small(monkeypatch)
    return SimpleNamespace(calls=package.calls, joins=joins)


@pytest.mark.parametrize("variant", [*VARIANTS, "prefix+prope"])
@pytest.mark.parametrize("kernel", ["fa4", "by_shape"])
def test_models_compute_the_same(measured, variant, kernel):
    found = images_and_gradients(variant, kernel)
    assert measured.calls["backward"] == measured.calls["forward"] > 0 and not measured.joins
    for ours, theirs in zip(found, images_and_gradients(variant, "flash"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "calls"), [("fa4", 8), ("by_shape", 0), ("cudnn_by_shape", 0)])
def test_rendering_by_shape_leaves_few_queries_to_torch(measured, kernel, calls):
    model = flash4.use(small_model("prefix"), kernel).eval()
    model(random_views(2, 2), random_cameras(2, 3, seed=1))
    assert measured.calls["forward"] == calls and not measured.joins


@pytest.mark.parametrize(("share", "again"), [(0.0, 3), (1 / 9, 0), (1.0, 0)])
def test_what_is_saved_is_not_computed_again(package, share, again):
    images_and_gradients("decoder_only", "fa4", ExecutionConfig(1, share, compile="off"))
    assert package.calls == {"forward": 3 + again, "backward": 3}


# Where it cannot run


@pytest.fixture
def card(monkeypatch, package):
    """A Hopper, on which FlashAttention-4 is installed."""
    cached = (attention_kernel, why_no_fa4, room._fa4, execution._warn_once)
    yield from on_hopper(monkeypatch, *(function.cache_clear for function in cached))


def test_it_is_chosen_where_it_can_run(card, caplog):
    kernels, lines = chosen(attention_kernel, "fa4", caplog)
    assert kernels == ["by_shape", "fa4"]
    assert len(lines) == 1 and "by shape" in lines[0]


def test_a_card_that_was_not_measured_has_to_be_asked(card, caplog):
    newer(card)
    assert chosen(attention_kernel, "fa4", caplog)[0] == ["cudnn", "fa4"]


def missing(card):
    card.setitem(sys.modules, "flash_attn", None)
    card.delitem(sys.modules, "flash_attn.cute.interface")


def other_package(card):
    card.setitem(sys.modules, "flash_attn.cute.interface", ModuleType("flash_attn.cute.interface"))


@pytest.mark.parametrize(
    ("change", "by_itself", "instead", "lines", "culprit"),
    [
        (missing, "cudnn_by_shape", "cudnn", 2, "requirements-fast.txt"),
        (broken, "cudnn_by_shape", "cudnn", 2, "OSError: libcute.so: cannot open shared object\\x1b"),
        (other_package, "cudnn_by_shape", "cudnn", 2, "_flash_attn_fwd"),
        (older, "flash", "flash", 2, "older than Hopper"),
        (gone, "flash", "flash", 1, "no GPU"),
    ],
)
def test_where_it_cannot_run_a_line_says_why_and_torchs_fastest_runs(
    card, caplog, change, by_itself, instead, lines, culprit
):
    change(card)
    kernels, said = chosen(attention_kernel, "fa4", caplog)
    assert kernels == [by_itself, instead]
    assert len(said) == lines and culprit in said[-1] and "\n" not in said[-1]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
def test_a_kernel_that_fails_is_done_without_and_it_is_said_once(package, caplog, variant, direction):
    package.errors[direction] = RuntimeError("no compiler\nfor sm_90a")
    expected = images_and_gradients(variant, "flash")
    for ours, theirs in zip(images_and_gradients(variant, "fa4"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    (record,) = caplog.records
    assert "no compiler for sm_90a" in record.getMessage() and "attention_backend=cudnn" in record.getMessage()
    assert package.calls[direction] == 1


def test_full_memory_is_no_failure_of_the_kernel(package, caplog):
    package.errors["forward"] = torch.OutOfMemoryError("CUDA out of memory")
    (q, k, v), _ = heads(5, 5, 5)
    with pytest.raises(torch.OutOfMemoryError):
        attend_by("fa4", q, k, v)
    assert not room.package.failures and not caplog.records

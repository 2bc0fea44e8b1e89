"""The MLP by QuACK's kernels, here in plain formulas: when they run, and that no number depends on it."""

import sys

import pytest
import torch
import torch.nn.functional as F

from model import execution
from model import mlp_kernel as room
from model.execution import ExecutionConfig, apply_execution, mlp_kernel
from model.mlp_kernel import mlp_by_quack, takes_quack
from model.transformer import MLP, Attention
from tests import quack
from tests.cards import broken, chosen, gone, newer, older, on_hopper
from tests.helpers import PLAIN, VARIANTS, Count, random_cameras, random_views, small_model

USERS = (MLP, Attention)
# Epilogues of an update, by whether slopes are saved.
EPILOGUES = {
    False: ("up_gelu_epilogue", "gelu_backward_epilogue"),
    True: ("slope_gelu_epilogue", "slope_backward_epilogue"),
}


@pytest.fixture
def package(monkeypatch):
    """QuACK in plain formulas."""
    return quack.install(monkeypatch)


def tokens_and_weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    # Up to where the tails of GELU are below the last bit.
    sizes = {(2, 5, 16): 1, (64, 16): 1.5, (16, 64): 0.1}
    return [
        (scale * torch.randn(size, generator=generator)).to(dtype).requires_grad_() for size, scale in sizes.items()
    ]


@pytest.mark.parametrize("save_slope", EPILOGUES)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_the_mlp_and_its_gradients(package, dtype, near, save_slope):
    wanted = tokens_and_weights(dtype)
    x, up, down = (each.double() for each in wanted)
    expected = F.gelu(x @ up.T) @ down.T
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = mlp_by_quack(*wanted, save_slope=save_slope)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)
    theirs = torch.autograd.grad(expected, wanted, outer.double())
    for ours, exact in zip(torch.autograd.grad(found, wanted, outer), theirs, strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=near, atol=near * exact.abs().max().item())
    assert package.calls == dict.fromkeys(EPILOGUES[save_slope], 1)
    with torch.no_grad():
        rendered = mlp_by_quack(*wanted, save_slope=save_slope)
    torch.testing.assert_close(rendered.double(), expected, rtol=near, atol=near)
    assert package.calls["gelu_epilogue"] == 1


def test_gelu_and_its_gradient_everywhere(package):
    """At zero, on both sides of it, and far out, of either sign."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 300, -300])])
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    before = x[:, None]
    found = room.gelu_of_up(before, torch.ones(1, 1))
    outer, one = torch.ones(len(x), 1), torch.ones(1, 1)
    gradient, again = room.gelu_backward(outer, one, before)
    saved, with_slope = room.slope_gelu(before, one)
    torch.testing.assert_close(found[:, 0].double(), expected.detach(), rtol=1e-6, atol=5e-7)
    for each in (again, with_slope):
        torch.testing.assert_close(each, found, rtol=0, atol=0)
    for each in (gradient, saved, room.slope_backward(outer, one, saved)):
        torch.testing.assert_close(each[:, 0].double(), slope, rtol=1e-6, atol=5e-7)


def test_tiles_are_those_measured_for_so_many_tokens(package):
    """Few for a frame of prefix, and as many as an update has."""
    up, down = torch.ones(4, 1), torch.ones(1, 4)
    for tokens in (1024, 1152, 65_536, 147_456):
        x, outer = torch.ones(tokens, 1), torch.ones(tokens, 1)
        room.gelu_of_up(x, up)
        room.gelu_backward(outer, down, room.up_gelu(x, up)[0])
        room.slope_backward(outer, down, room.slope_gelu(x, up)[0])
    rendering, forward, backward, *with_slopes = (package.tiles[number::5] for number in range(5))
    assert [each.pingpong for each in rendering] == [False, True, True, True]
    for each in (rendering, forward, backward):
        assert [tiles.is_dynamic_persistent for tiles in each] == [False, False, False, True]
    assert [tiles.cluster_n for tiles in backward] == [1, 1, 1, 2]
    for each in with_slopes:
        assert all(tiles.pingpong and not tiles.is_dynamic_persistent and tiles.cluster_n == 1 for tiles in each)


def test_operators_are_what_they_say_of_themselves(package):
    x, up, down = (each.detach() for each in tokens_and_weights())
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(room.up_gelu, (x[0], up), test_utils=tests)
    torch.library.opcheck(room.gelu_of_up, (x[0], up), test_utils=tests)
    torch.library.opcheck(room.slope_gelu, (x[0], up), test_utils=tests)
    for backward in (room.gelu_backward, room.slope_backward):
        torch.library.opcheck(backward, (x[0], down, torch.randn(5, 64)), test_utils=tests)


def test_what_was_not_measured_or_cannot_be_is_left_to_torch(monkeypatch):
    def takes(tokens, d, dtype=torch.bfloat16, kernel="quack"):
        return takes_quack(kernel, torch.empty(2, tokens // 2, d, dtype=dtype, device="meta"))

    assert not takes(3072, 768)
    monkeypatch.setattr(room, "_DEVICES", {"meta"})
    assert takes(3072, 768) and takes(1024, 1024, torch.float16)
    assert not takes(3072, 768, kernel="torch") and not takes(3072, 768, torch.float32)
    assert not takes(1022, 768) and not takes(3072, 256) and not takes(3072, 772)


# The whole model


def images_and_gradients(model):
    images = model.train()(random_views(2, 2), random_cameras(2, 3, seed=1))
    images.square().sum().backward()
    return [images.detach(), *(p.grad for p in model.parameters())]


def checkpointed(every, share=0.0):
    return ExecutionConfig(grad_checkpoint_every=every, keep_activations=share, compile="off")


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_models_compute_the_same(package, variant, every):
    """Where nothing is checkpointed, with slopes; each of them once."""
    expected = images_and_gradients(small_model(variant, execution=PLAIN))
    assert not package.calls
    model = quack.use(small_model(variant, execution=checkpointed(every)))
    for ours, theirs in zip(images_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    forward, backward = EPILOGUES[every == 0]
    assert set(package.calls) == {forward, backward}
    assert package.calls[forward] == package.calls[backward] * (1 if every == 0 else 2) > 0


def test_what_is_saved_may_be_chosen_anew(package):
    model = small_model("decoder_only", execution=PLAIN)
    for every in (0, 1, 0):
        package.calls.clear()
        images_and_gradients(quack.use(apply_execution(model, checkpointed(every))))
        assert set(package.calls) == set(EPILOGUES[every == 0])


@pytest.mark.parametrize(
    ("layers", "every", "share", "everything"),
    [(3, 1, 1.0, 0), (3, 1, 1.34, 1), (3, 1, 1.67, 2), (3, 1, 2.0, 3), (4, 2, 1.5, 2), (5, 2, 1.4, 1), (5, 2, 1.7, 3)],
)
def test_some_layers_save_everything(package, layers, every, share, everything):
    """GELU's slope is saved in so many layers; images and gradients stay what they are."""
    expected = images_and_gradients(small_model("decoder_only", execution=PLAIN, n_layer=layers))
    model = quack.use(small_model("decoder_only", execution=checkpointed(every, share), n_layer=layers))
    for ours, theirs in zip(images_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    others = layers - everything
    calls = {"slope_gelu": everything, "slope_backward": everything, "up_gelu": 2 * others, "gelu_backward": others}
    assert package.calls == {f"{name}_epilogue": count for name, count in calls.items() if count}


def test_under_autocast_tokens_and_weights_have_its_precision(package):
    results = []
    for model in (small_model("decoder_only"), quack.use(small_model("decoder_only"))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(images_and_gradients(model))
    assert package.calls["slope_gelu_epilogue"] > 0
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


@pytest.mark.parametrize("kernel", ["torch", "quack"])
def test_under_autocast_tokens_are_rounded_once(package, kernel):
    model = quack.use(MLP(16), kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), Count() as count:
        model(torch.randn(2, 5, 16))
    # The tokens, and both weights.
    assert count.calls["_to_copy"] == 3


def test_what_is_saved_under_autocast_changes_no_number(package):
    results = []
    for share in (0.0, 0.4, 1.0):
        model = quack.use(small_model("decoder_only", execution=checkpointed(1, share)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(images_and_gradients(model))
    for ours, *others in zip(*results, strict=True):
        assert all(torch.equal(ours, other) for other in others)


# That compiled code saves it is in run_compiled.py.
@pytest.mark.parametrize("share", [0.0, 1 / 9, 1.0])
def test_plain_checkpoints_do_not_save_gelu_beside_what_goes_in(package, share):
    """Plain ones would hold both results of the operator for the whole group, where backward reads one."""
    model = small_model("decoder_only", execution=checkpointed(1, share))
    images_and_gradients(quack.use(model))
    assert package.calls == {"up_gelu_epilogue": 6, "gelu_backward_epilogue": 3}


# Where it cannot run


@pytest.fixture
def card(monkeypatch, package):
    """A Hopper, on which QuACK is installed."""
    yield from on_hopper(monkeypatch, quack.forget, mlp_kernel.cache_clear, execution._warn_once.cache_clear)


def test_it_is_chosen_where_it_can_run(card, caplog):
    kernels, lines = chosen(mlp_kernel, "quack", caplog)
    assert kernels == ["quack", "quack"] and mlp_kernel("torch") == "torch"
    assert len(lines) == 1 and "quack" in lines[0]


def test_all_that_it_computes_is_given_to_it(card, monkeypatch):
    # What settles torch's order needs a card in earnest.
    monkeypatch.setattr(execution, "settle_torchs_order", lambda: None)
    for name in ("quack", "torch"):
        model = apply_execution(small_model("prefix"), ExecutionConfig(mlp_backend=name, compile="off"))
        users = [
            m.projection if isinstance(m, Attention) else m.kernel for m in model.modules() if isinstance(m, USERS)
        ]
        assert len(users) == 6 and set(users) == {name}


def test_a_card_that_was_not_measured_has_to_be_asked(card, caplog):
    newer(card)
    assert chosen(mlp_kernel, "quack", caplog)[0] == ["torch", "quack"]


def missing(card):
    card.setitem(sys.modules, "quack.epilogue.frontend", None)


def of_another_version(card):
    card.delattr(sys.modules["quack.epilogue.frontend"], "gemm_epilogue")


@pytest.mark.parametrize(
    ("change", "lines", "culprit"),
    [
        (missing, 2, "requirements-fast.txt"),
        (broken, 2, "OSError: libcute.so: cannot open shared object\\x1b"),
        (of_another_version, 2, "gemm_epilogue"),
        (older, 1, "older than Hopper"),
        (gone, 1, "no GPU"),
    ],
)
def test_where_it_cannot_run_a_line_says_why_and_torch_runs(card, caplog, change, lines, culprit):
    change(card)
    kernels, said = chosen(mlp_kernel, "quack", caplog)
    assert kernels == ["torch", "torch"]
    assert len(said) == lines and culprit in said[-1] and "\n" not in said[-1]


@pytest.mark.parametrize(("save_slope", "epilogue"), [(save, name) for save in EPILOGUES for name in EPILOGUES[save]])
def test_a_kernel_that_fails_is_done_without_and_it_is_said_once(package, caplog, save_slope, epilogue):
    package.errors[epilogue] = RuntimeError("no compiler\nfor sm_90a")
    expected = images_and_gradients(small_model("decoder_only"))
    model = quack.use(small_model("decoder_only", execution=checkpointed(0 if save_slope else 1, 1.0)))
    for ours, theirs in zip(images_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    (record,) = caplog.records
    assert "no compiler for sm_90a" in record.getMessage() and "mlp_backend=torch" in record.getMessage()
    assert package.calls[epilogue] == 1


def test_full_memory_is_no_failure_of_the_kernel(package, caplog):
    package.errors["up_gelu_epilogue"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        mlp_by_quack(*tokens_and_weights())
    assert not room.package.failures and not caplog.records

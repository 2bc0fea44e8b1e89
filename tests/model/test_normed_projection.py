"""Norms of queries and keys inside the matmul that gives them, QuACK in plain formulas: when, and the same numbers."""

import copy

import pytest
import torch

from model import normed_projection as room
from model.normed_projection import norm_shares, project_normed, takes_normed_projection
from model.transformer import Attention
from tests import quack
from tests.helpers import VARIANTS, Count, drawn_norm, random_cameras, random_views, small_model
from utils.nests import tensors_of


@pytest.fixture
def package(monkeypatch):
    """QuACK in plain formulas."""
    return quack.install(monkeypatch)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_queries_and_keys_are_normalised_values_are_not(package, dtype, near):
    torch.manual_seed(0)
    x, projection, norms = (
        torch.randn(2, 5, 48).to(dtype),
        torch.randn(144, 48).to(dtype),
        (drawn_norm(16), drawn_norm(16)),
    )
    # Small heads, where what keeps from dividing by zero counts.
    projection[:16] *= 1e-4
    q, k, v = (x.double() @ projection.double().T).unflatten(-1, (-1, 16)).chunk(3, dim=-2)
    expected = torch.cat([norms[0].double()(q), norms[1].double()(k), v], dim=-2).flatten(-2)
    with torch.no_grad():
        found = project_normed(x, projection, norm_shares(*(each.float().weight for each in norms), 48), 16)
    assert found.dtype == dtype and package.calls == {"head_norm_epilogue": 1}
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


def test_the_operator_is_what_it_says_of_itself(package):
    args = (torch.randn(5, 48), torch.randn(144, 48), torch.randn(2, 144), 16)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(room.normed_qkv, args, test_utils=tests)
    torch.library.opcheck(room.normed_qkv_into, (*args, torch.empty(7, 144)), test_utils=tests)


def test_they_are_written_to_the_last_rows_of_what_is_given(package):
    # Tokens that do not lie side by side.
    x, projection, shares = torch.randn(48, 5).T, torch.randn(144, 48), torch.randn(2, 144)
    into = torch.full((7, 144), 9.0)
    room.normed_qkv_into(x, projection, shares, 16, into)
    torch.testing.assert_close(into[2:], room.normed_qkv_plainly(x, projection, shares, 16))
    assert (into[:2] == 9).all()


def test_what_wants_gradients_or_was_not_measured_is_left_to_torch(monkeypatch):
    monkeypatch.setattr("model.mlp_kernel._DEVICES", {"meta"})

    def takes(tokens=3072, d_head=64, dtype=torch.bfloat16, kernel="quack"):
        return takes_normed_projection(kernel, torch.empty(1, tokens, 768, dtype=dtype, device="meta"), d_head)

    assert not takes()
    with torch.no_grad():
        assert takes() and takes(1024)
        others = ({"tokens": 1022}, {"d_head": 32}, {"dtype": torch.float32}, {"kernel": "torch"})
        assert not any(takes(**other) for other in others)


# Layers of all tokens, without cameras in attention; of the decoder-only stack the last has queries of some tokens.
CALLS = {"decoder_only": 2, "encoder_decoder": 2, "prefix": 2 + 3, "cross": 2 + 2}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_renders_are_the_same(package, variant):
    views = (random_views(2, 2), random_cameras(2, 3, seed=1))
    expected = small_model(variant).eval()(*views)
    assert not package.calls
    found = quack.use(small_model(variant)).eval()(*views)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert package.calls["head_norm_epilogue"] == CALLS[variant]


@torch.no_grad()
def test_what_norms_count_is_computed_once_for_a_model_that_renders(package):
    attention = quack.use(Attention(64, 32, True))
    attention.q_norm.weight.normal_()
    x = torch.randn(2, 5, 64)
    with Count() as before:
        expected = attention(x)
    attention.settle_norms()
    with Count() as count:
        assert torch.equal(attention(x), expected)
    assert before.calls["cat"] == 1 and count.calls["cat"] == 0
    # Of other weights they are others, and not prepared in training.
    with torch.no_grad():
        attention.k_norm.weight.normal_()
    attention.load_state_dict(attention.state_dict())
    assert attention._shares is None
    attention.settle_norms()
    assert attention.train()._shares is None
    attention.eval().settle_norms()
    # Not part of what is saved; moves and is copied with the module.
    assert "_shares" not in attention.state_dict() and not attention._shares.requires_grad
    assert copy.deepcopy(attention).to("meta")._shares.is_meta
    without = Attention(64, 32, False)
    without.settle_norms()
    assert without(x).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["torch", "quack"])
def test_tokens_are_rounded_once(package, kernel):
    attention = quack.use(Attention(64, 32, True), kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16), Count() as count:
        attention(torch.randn(2, 5, 64))
    # The tokens, two weights of matmuls; queries and keys to float32 and back, where QuACK does not take the norms.
    assert count.calls["_to_copy"] == 3 + (0 if kernel == "quack" else 4)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["torch", "quack"])
@pytest.mark.parametrize("variant", ["prefix", "cross", "prefix+prope", "cross+prope"])
def test_what_is_kept_of_scenes_takes_no_more_memory_than_it_says(package, variant, kernel):
    """Keys and values, but not the queries that were projected with them."""
    encoded = quack.use(small_model(variant), kernel).eval().encode(random_views(2, 2))
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors_of(encoded)}
    assert sum(storages.values()) == encoded.nbytes > 0


@torch.no_grad()
def test_cameras_in_attention_do_without(package):
    quack.use(small_model("prefix+prope")).eval()(random_views(2, 2), random_cameras(2, 3, seed=1))
    assert package.calls["head_norm_epilogue"] == 0


@torch.no_grad()
def test_where_it_fails_torch_takes_its_place_and_it_is_said_once(package, caplog):
    package.errors["head_norm_epilogue"] = RuntimeError("no compiler")
    views = (random_views(2, 2), random_cameras(2, 3, seed=1))
    found = quack.use(small_model("prefix")).eval()(*views)
    torch.testing.assert_close(found, small_model("prefix").eval()(*views), rtol=1e-4, atol=1e-5)
    (record,) = caplog.records
    assert "mlp_backend=torch" in record.getMessage() and package.calls["head_norm_epilogue"] == 1

"""The memory that many inputs take."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import transformer
from tests.helpers import VARIANTS, random_cameras, random_views, small_model


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operator gives."""

    nbytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.nbytes = max([self.nbytes, *sizes])
        return result


def largest_tensor(model, inputs):
    """Bytes of the largest tensor while a scene of so many inputs is encoded and a target rendered."""
    views = random_views(1, inputs, height=8, width=16)
    with torch.no_grad(), LargestTensor() as largest:
        model.decode(model.encode(views), random_cameras(1, 1, height=8, width=16))
    return largest.nbytes


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_grows_with_the_inputs_and_not_with_their_square(variant):
    model = small_model(f"{variant}+prope")
    few = largest_tensor(model, 8)
    assert largest_tensor(model, 64) <= 8 * few


def test_scores_of_all_tokens_would_be_noticed(monkeypatch):
    monkeypatch.setitem(transformer._PREFERENCES, "flash", [SDPBackend.MATH])
    model = small_model("prefix")
    assert largest_tensor(model, 64) > 16 * largest_tensor(model, 8)

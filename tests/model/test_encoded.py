"""What `encode` gives is taken apart by scenes, moved and copied without knowing what is in it."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from geometry.cameras import Cameras
from model import Encoded
from model.transformer import KeysValues
from tests.helpers import MODELS, random_cameras, random_views, small_model


@dataclass(frozen=True)
class Everything(Encoded):
    """All that a variant may want to keep of three scenes."""

    tokens: Tensor
    layers: tuple[KeysValues, ...]
    cameras: Cameras


@pytest.fixture
def everything():
    layers = tuple(KeysValues(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)) for _ in range(2))
    return Everything(torch.randn(3, 5, 8), layers, random_cameras(3, 2))


def tensors(encoded):
    layers = [part for kv in encoded.layers for part in kv]
    return [encoded.tokens, *layers, encoded.cameras.c2w, encoded.cameras.fxfycxcy]


@pytest.mark.parametrize("index", [slice(0, 2), slice(None), slice(2, None), torch.tensor([2, 0])])
def test_scenes_are_chosen_in_every_part(everything, index):
    some = everything[index]
    assert type(some) is Everything and type(some.layers[0]) is KeysValues
    for chosen, whole in zip(tensors(some), tensors(everything), strict=True):
        assert torch.equal(chosen, whole[index])
    assert (some.cameras.height, some.cameras.width) == (16, 24)
    assert len(everything) == 3 and len(some) == len(some.tokens)


def test_a_number_gives_one_scene_that_can_be_decoded(everything):
    for number in (0, 2, -1, -3):
        for chosen, whole in zip(tensors(everything[number]), tensors(everything), strict=True):
            assert torch.equal(chosen, whole[[number]])
    for number in (3, -4):
        with pytest.raises(IndexError):
            everything[number]
    assert [len(scene) for scene in everything] == [1, 1, 1]


def test_bytes_are_those_of_all_tensors(everything):
    # Tokens [3 5 8], two layers of keys and values [3 2 5 4], cameras [3 2] of 16 and 4 numbers.
    assert everything.nbytes == 4 * (120 + 2 * 2 * 120 + 6 * 20)


def test_moving_and_copying(everything):
    assert {tensor.device.type for tensor in tensors(everything.to("meta"))} == {"meta"}
    copy = everything.clone()
    for ours, theirs in zip(tensors(copy), tensors(everything), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    loaded = pickle.loads(pickle.dumps(everything))
    assert all(torch.equal(a, b) for a, b in zip(tensors(loaded), tensors(everything), strict=True))


@pytest.mark.parametrize("variant", MODELS)
def test_scenes_are_decoded_alone_as_together(variant):
    model, targets = small_model(variant), random_cameras(3, 2, seed=1)
    with torch.no_grad():
        encoded = model.encode(random_views(3, 2))
        together = model.decode(encoded, targets)
        for scene in range(3):
            alone = model.decode(encoded[scene].clone(), targets[scene : scene + 1])
            torch.testing.assert_close(alone[0], together[scene], atol=1e-6, rtol=0)

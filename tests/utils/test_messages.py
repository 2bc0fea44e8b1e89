"""What counts as named in a message."""

import pytest

from tests.messages import is_named


@pytest.mark.parametrize(
    ("culprit", "text"),
    [
        ("frame 1", "scene a, frame 1: no image"),
        ("scene0.json", "/set/metadata/scene0.json is empty"),
        ("/set/", "image not found: /set/images/0.jpg"),
        ("training.lr", "training.lr is nan"),
        ("'two'", "Value 'two' is no number"),
        ("scene0", "the last is scene0."),
        (5, "it has 5 frames"),
    ],
)
def test_what_stands_there_is_named(culprit, text):
    assert is_named(culprit, text)


@pytest.mark.parametrize(
    ("culprit", "text"),
    [
        ("frame 1", "scene a, frame 14: no image"),
        ("/set/scene0", "/set/scene0.json is empty"),
        ("/run", "no checkpoint in /run/ckpt"),
        ("training.lr", "unknown key training.lr_min"),
        ("lr", "training.lr is nan"),
        (5, "it must be at least 0.5"),
        (5, "it has 5.5 frames"),
    ],
)
def test_a_part_of_another_name_is_not(culprit, text):
    assert not is_named(culprit, text)

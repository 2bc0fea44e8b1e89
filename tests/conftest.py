import os

# Numbers in the tests are those of a CPU, in this process and in those it starts.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest

from tests.helpers import write_toy_set


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def scenes(tmp_path):
    """The list of a small set of toy scenes."""
    return write_toy_set(tmp_path / "scenes")

import json

import pytest
from hypothesis import settings

from tests.helpers import INDEX, write_toy_set

settings.register_profile("quick", max_examples=25, deadline=None)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def scenes(tmp_path):
    """The list of a small set of toy scenes."""
    return write_toy_set(tmp_path / "scenes")


@pytest.fixture
def place(tmp_path):
    """Three toy scenes, an index and a folder for a checkpoint."""
    write_toy_set(tmp_path / "scenes")
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    return tmp_path

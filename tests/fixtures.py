"""What every test is run with, and what several ask for."""

import gc
import json
import logging
import re
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import settings

from model import transformer
from tests.helpers import INDEX, write_toy_set
from tests.lanes import avoid_workers, forbid_programs, is_slow

settings.register_profile("quick", max_examples=25, deadline=None)
settings.load_profile("quick")


def pytest_ignore_collect(collection_path, config):
    """`make check` does not import files that are marked as slow: they would take a part of its time."""
    if config.getoption("markexpr") != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(re.search(r"^pytestmark = .*\bmark\.slow\b", collection_path.read_text("utf-8"), re.M)) or None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_slow(item) and not item.get_closest_marker("fast"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish():
    """What was imported stays: garbage is looked for among what tests make, and not at every turn."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
    # pytest listens to every logger that propagates nothing, six times a test, and torch has 57 of them.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture(autouse=True)
def lane(request, monkeypatch):
    """Tests that `make check` runs start no programs, and no process where one does all the work."""
    # A door that ran in this process may have set more.
    torch.set_num_threads(1)
    if not request.node.get_closest_marker("slow"):
        forbid_programs(monkeypatch)
        avoid_workers(monkeypatch)


@pytest.fixture
def scenes(tmp_path):
    """The list of a small set of toy scenes."""
    return write_toy_set(tmp_path / "scenes")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A browser for the tests of a file."""
    from tests.browser import start_browser  # skips where there is none

    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(session) -> Iterator:
    """The shared browser at desktop size, every emulation off; the test fails on anything in the console."""
    from tests.browser import emulate

    session.get("about:blank")
    session.get_log("browser")
    emulate(session, 1280, 900)
    yield session
    assert [entry["message"] for entry in session.get_log("browser")] == []


@pytest.fixture
def place(tmp_path):
    """Three toy scenes, an index and a folder for a checkpoint."""
    write_toy_set(tmp_path / "scenes")
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    return tmp_path


@pytest.fixture
def joins(monkeypatch):
    """The pairs of keys and values that are joined from now on, contexts first."""
    joins, join = [], transformer.join
    monkeypatch.setattr(transformer, "join", lambda *both: joins.append(both) or join(*both))
    return joins


@pytest.fixture
def no_graphs(monkeypatch):
    """Records of kernels are made and played without a GPU: nothing is recorded."""
    for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())

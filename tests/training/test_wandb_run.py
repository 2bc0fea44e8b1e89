"""wandb gets half a minute, and never costs the run."""

import logging
import sys
import time
from types import SimpleNamespace

import pytest

from tests.messages import check_names, check_told
from training import wandb_run
from training.wandb_run import start_wandb


class FakeWandb:
    """A wandb whose `init` notes what it is given, then does as it is told."""

    def __init__(self, then):
        self.then, self.given = then, {}

    def Settings(self, **settings):
        return SimpleNamespace(**settings)

    def init(self, **given):
        self.given = given
        return self.then(given["settings"])


@pytest.fixture
def begin(tmp_path, monkeypatch, caplog):
    """Starts wandb with such an `init`; returns the run and what was given."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def start(then):
        fake = FakeWandb(then)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        with caplog.at_level(logging.INFO, "lvsm"):
            run = start_wandb(
                project="p", name="n", folder=tmp_path, config={"seed": 1}, key_file=tmp_path / "none.yaml"
            )
        return run, fake.given

    return start


def answer(settings):
    return "a run"


def hang(settings):
    time.sleep(settings.init_timeout)
    raise TimeoutError("no answer\nfrom the server")


def fail(settings):
    raise PermissionError("the key is wrong" + "!" * 10_000)


def test_wandb_gets_half_a_minute_and_this_is_said_before(begin, caplog, tmp_path):
    run, given = begin(lambda settings: caplog.messages.copy())
    assert given["settings"].init_timeout == 30
    assert len(run) == 1 and "30 seconds" in run[0] and "WANDB_MODE=offline" in run[0]
    assert (given["project"], given["name"], given["dir"], given["config"]) == ("p", "n", str(tmp_path), {"seed": 1})


def test_a_restarted_training_goes_on_with_its_run(begin):
    _, first = begin(answer)
    run, second = begin(answer)
    assert run == "a run" and first["id"] == second["id"] and second["resume"] == "allow"


@pytest.mark.parametrize("then", [hang, fail])
def test_a_wandb_that_hangs_or_fails_costs_a_line(begin, caplog, monkeypatch, then):
    monkeypatch.setattr(wandb_run, "_PATIENCE", 0.1)
    run, _ = begin(then)
    assert run is None
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    check_names(warning, "wandb is off")
    assert len(warning) < 300


def test_a_broken_wandb_costs_a_line(begin, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start_wandb(project="p", name="n", folder=tmp_path, config={}, key_file=tmp_path / "none.yaml") is None
    check_told(caplog.messages, "wandb is off", "ModuleNotFoundError")

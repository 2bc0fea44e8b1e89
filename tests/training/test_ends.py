"""Runs that cannot go on with any good: every update is skipped, or the last checkpoint is not on disk."""

import errno

import pytest
import torch

import train
from tests.messages import refused
from tests.runs import training_command as command
from training.incidents import Incidents, IncidentsConfig, Update
from training.trainer import Trainer
from utils import checkpoint
from utils.checkpoint import CheckpointConfig, CheckpointWriter, checkpoint_name, numbered_checkpoints
from utils.distributed import Process


def skip_all(monkeypatch):
    """Make every gradient infinite."""
    forward = Trainer._forward

    def infinite(self, *given, **named):
        terms = forward(self, *given, **named)
        return terms | {"loss": terms["loss"] * float("inf")}

    monkeypatch.setattr(Trainer, "_forward", infinite)


@pytest.mark.parametrize(("limit", "every", "steps"), [(3, 1, 3), (3, 2, 4), (5, 4, 8)])
def test_a_run_that_no_longer_learns_stops_at_a_line(scenes, tmp_path, monkeypatch, limit, every, steps):
    skip_all(monkeypatch)
    options = [f"training.max_consecutive_skips={limit}", f"training.print_every={every}", "training.train_steps=20"]
    skipped = tmp_path / "run" / "skipped.jsonl"
    with refused(f"step {steps}", f"training.max_consecutive_skips={limit}", skipped, "training.lr"):
        train.main(command(scenes, tmp_path / "run", *options))
    assert len(skipped.read_text().splitlines()) == steps


def test_without_a_limit_it_goes_on(scenes, tmp_path, monkeypatch):
    skip_all(monkeypatch)
    options = ["training.max_consecutive_skips=0", "training.train_steps=4"]
    train.main(command(scenes, tmp_path / "run", *options))
    assert numbered_checkpoints(tmp_path / "run")


def test_skips_with_updates_between_them_are_no_end(tmp_path):
    process = Process(0, 0, 1, torch.device("cpu"))
    incidents = Incidents(IncidentsConfig(max_consecutive_skips=3), tmp_path, process, 0)
    updates = []
    for step in range(1, 13):
        skipped = torch.tensor(float(step % 3 > 0))
        updates.append(Update(step, step, 0.1, {"loss": torch.tensor(1.0), "skipped": skipped}, [], [], 0.0))
        if step % 2 == 0:
            incidents.note_skipped(sum(int(update.numbers["skipped"]) for update in updates), 9.0, updates)
            updates = []
    assert incidents.skipped == 8


@pytest.mark.parametrize("lost", [[2], [1, 2], [1], []])
def test_the_last_checkpoint_must_be_on_disk(tmp_path, monkeypatch, lost):
    write = checkpoint.write_checkpoint

    def fail(folder, step, state):
        if step in lost:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / checkpoint_name(step)))
        return write(folder, step, state)

    monkeypatch.setattr(checkpoint, "write_checkpoint", fail)
    writer = CheckpointWriter(CheckpointConfig(str(tmp_path), on_full_disk="continue"))
    for step in (1, 2):
        writer.save(step, {"model": {}})
    if 2 not in lost:
        writer.check_last()
    else:
        with refused("step 2", checkpoint_name(2)):
            writer.check_last()

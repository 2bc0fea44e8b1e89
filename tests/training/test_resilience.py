"""Runs that are killed, interrupted, or fed with what they cannot use."""

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import inference
import train
from data import dataset
from setup import load_config
from tests.helpers import PATIENCE, write_toy_set
from tests.messages import check_told, refused
from tests.processes import run, start, torchrun
from tests.runs import build, largest_difference, wait_for, weights
from tests.runs import training_command as command
from training.trainer import TrainerConfig, bucket_mb
from utils import checkpoint, distributed
from utils.checkpoint import (
    CheckpointConfig,
    CheckpointWriter,
    checkpoint_name,
    newest_readable,
    numbered_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from utils.distributed import Process, _agree_on_name, process_group
from utils.random_state import random_state, seed_everything, set_random_state
from utils.watchdog import Watchdog, describe

STEPS = 12


@pytest.fixture
def signals():
    """Handlers that the code under test installs do not outlive the test."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def long_command(scenes, folder, *more):
    saving = ["training.checkpoint_every=2", "training.keep_last=3", f"training.train_steps={STEPS}"]
    return command(scenes, folder, *saving, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights that the run of `long_command` ends with, in one process and without any trouble."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main(long_command(write_toy_set(folder / "scenes"), folder / "run"))
    return weights(folder / "run", STEPS)


@pytest.mark.parametrize("number", range(int(os.environ.get("LVSM_KILLED_RUNS", 1))))
def test_a_run_killed_at_random_moments_ends_like_an_undisturbed_one(scenes, tmp_path, number, undisturbed):
    folder = tmp_path / "killed"
    kills = 0
    for seed in range(40):
        arguments = long_command(scenes, folder, f"training.num_workers={seed % 2}")
        done = run("-m", "tests.programs.run_killed", 1000 * number + seed, *arguments)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills >= 1 and done.returncode == 0
    assert largest_difference(weights(folder, STEPS), undisturbed) == 0
    assert not list(folder.glob(".*"))


def start_slow(scenes, folder, *more, launcher=()):
    """Training slow enough that a signal arrives in the middle."""
    return start(*launcher, "-m", "tests.programs.run_slow", *long_command(scenes, folder, *more))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_its_processes_ends_a_run_cleanly_and_it_goes_on(scenes, tmp_path, number, undisturbed):
    folder = tmp_path / "run"
    process = start_slow(scenes, folder, "training.checkpoint_every=100", "training.num_workers=1")
    wait_for((folder / "metrics.jsonl").exists)
    wait_for(lambda: (folder / "metrics.jsonl").read_text())
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "the same command goes on from there" in said, said
    (saved,) = numbered_checkpoints(folder)
    assert 0 < read_checkpoint(saved)["step"] < STEPS
    train.main(long_command(scenes, folder))
    assert largest_difference(weights(folder, STEPS), undisturbed) == 0


def children(pid):
    return [
        int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    ]


def test_loader_processes_end_with_a_killed_run(scenes, tmp_path):
    folder = tmp_path / "run"
    process = start_slow(scenes, folder, "training.num_workers=2", "training.prefetch_factor=64")
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text())
    loaders = children(process.pid)
    assert len(loaders) >= 2
    # By now they have filled their pipes, which nobody will empty.
    time.sleep(1)
    process.kill()
    wait_for(lambda: not any(Path(f"/proc/{loader}").exists() for loader in loaders))
    process.communicate(timeout=PATIENCE)


def two_process_result(scenes, tmp_path):
    result = run("train.py", *long_command(scenes, tmp_path / "two"), processes=2)
    assert result.returncode == 0, result.stderr
    return weights(tmp_path / "two", STEPS)


def lines(path):
    return len(path.read_text().splitlines())


@pytest.mark.long
def test_two_processes_stop_together_or_restart_when_one_dies(scenes, tmp_path):
    expected, folder = two_process_result(scenes, tmp_path), tmp_path / "run"
    process = start_slow(scenes, folder, launcher=torchrun(2, "--max-restarts", "1"))
    wait_for(lambda: numbered_checkpoints(folder))
    os.kill(random.Random(0).choice(children(process.pid)), signal.SIGKILL)
    before = lines(folder / "metrics.jsonl")
    wait_for(lambda: lines(folder / "starts.jsonl") == 2 and lines(folder / "metrics.jsonl") > before)
    # A scheduler tells one process alone; both agree.
    os.kill(children(process.pid)[1], signal.SIGUSR1)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    newest = numbered_checkpoints(folder)[-1]
    assert read_checkpoint(newest)["step"] < STEPS and len(read_checkpoint(newest)["random_states"]) == 2
    result = run("train.py", *long_command(scenes, folder), processes=2)
    assert result.returncode == 0, result.stderr
    assert largest_difference(weights(folder, STEPS), expected) == 0


def test_a_nan_on_one_rank_is_skipped_by_all_and_written_down(scenes, tmp_path):
    arguments = command(scenes, tmp_path / "run", "training.train_steps=4")
    result = run("-m", "tests.programs.run_nan", *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    update = json.loads(line)
    assert update["step"] == 2 and [batch["rank"] for batch in update["batches"]] == [0, 1]
    assert update["batches"][1]["loss"] == "nan" and float(update["batches"][0]["loss"]) > 0
    assert all(len(batch["scenes"]) == 2 and batch["scenes"][0].startswith("scene") for batch in update["batches"])
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [numbers["skipped"] for numbers in lines] == [0, 1, 1, 1]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run", 4).values())


def test_what_happened_before_a_signal_is_written_down(scenes, tmp_path, signals, monkeypatch):
    trainer = build(scenes, tmp_path, "training.print_every=100", "training.train_steps=100")
    forward = trainer._forward

    def spoiled(batch, show):
        os.kill(os.getpid(), signal.SIGTERM)
        terms = forward(batch, show)
        return terms | {"loss": terms["loss"] * float("nan")}

    monkeypatch.setattr(trainer, "_forward", spoiled)
    trainer.run()
    assert trainer.step == 1
    assert json.loads((tmp_path / "run" / "skipped.jsonl").read_text())["step"] == 1


def joined(store, world_size):
    """The names that as many processes agree on, each a thread here."""
    names = dict.fromkeys(range(world_size), "")

    def join(rank):
        names[rank] = _agree_on_name(store, rank, world_size, timedelta(seconds=20))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names.values()


def test_restarted_processes_do_not_meet_what_dead_ones_left_in_the_store():
    store = dist.HashStore()
    (first,) = set(joined(store, 3))
    store.set("hello/1", "a process that died before it was answered")
    (second,) = set(joined(store, 3))
    assert first and second and first != second


def test_ranks_that_do_not_come_are_named():
    with refused("ranks [1, 2]", "0:00:00.100000", error=TimeoutError):
        _agree_on_name(dist.HashStore(), 0, 3, timedelta(seconds=0.1))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("data", "NO PROGRESS for [0-9]+ seconds: (step 2, computing .rank 0.; )?step 2, waiting for data .rank 1."),
        ("saving", r"saving: ranks \[1\] did not come within 0:00:03"),
    ],
)
def test_a_rank_that_hangs_is_named_and_ends_the_run(scenes, tmp_path, place, message):
    arguments = command(scenes, tmp_path / "run", "training.distributed_timeout_minutes=0.15")
    result = run("-m", "tests.programs.run_hanging", *arguments, processes=2, HANGS_IN=place)
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr


def test_a_rank_is_told_that_the_main_one_did_not_come():
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with refused("rank 0", "0:00:00.100000", error=TimeoutError):
        _agree_on_name(store, 1, 2, timedelta(seconds=0.1))


def test_the_main_process_tells_of_a_stall_while_it_waits_at_a_barrier(monkeypatch, caplog):
    monkeypatch.setattr(distributed, "_PATIENCE", timedelta(seconds=3))
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    process = Process(0, 0, 2, torch.device("cpu"), store)
    told = []
    with Watchdog(process, stalled_after=0.5) as watch, pytest.raises(TimeoutError, match=r"saving: ranks \[1\]"):
        watch.note("saving after step 2")
        checker = threading.Timer(2, lambda: told.append("NO PROGRESS" in caplog.text))
        checker.start()
        process.barrier("saving")
    checker.join()
    assert told == [True]


def test_the_state_of_few_ranks_is_told_first():
    doing = ["step 2, computing"] * 9 + ["step 2, waiting for data"]
    assert describe(doing) == (
        "step 2, waiting for data (rank 9); step 2, computing (rank 0, 1, 2, 3, 4, 5, 6, 7 and 1 more)"
    )


def test_an_unforeseen_error_in_a_loader_process_names_the_scene(scenes, tmp_path, signals, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(dataset, "read_with_alpha", broken)
    with pytest.raises(ZeroDivisionError, match=r"nobody expected this\nsample [01]: scene .*scene[0-2]\.json"):
        train.main(command(scenes, tmp_path / "run", "training.num_workers=1"))


def test_accumulation_communicates_gradients_once_an_update(scenes, tmp_path):
    arguments = command(scenes, tmp_path / "run", "training.grad_accum_steps=4")
    result = run("-m", "tests.programs.run_counted", *arguments, processes=2)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("one_machine", "asked", "expected"), [(True, 0, 3), (False, 0, None), (True, 25, 25), (False, 100, 100)]
)
def test_gradients_are_exchanged_at_once_on_one_machine_and_as_ddp_does_between_several(one_machine, asked, expected):
    process = Process(0, 0, 2, torch.device("cpu"), one_machine=one_machine)
    # 2 MiB and 4 bytes.
    model = torch.nn.Linear(1, 2**18 + 1, bias=True)
    assert bucket_mb(TrainerConfig(gradient_bucket_mb=asked), process, model) == expected


def test_another_batch_goes_on_at_the_same_sample_and_says_so(scenes, tmp_path, caplog):
    train.main(command(scenes, tmp_path / "run"))
    with caplog.at_level("WARNING", "lvsm"):
        train.main(command(scenes, tmp_path / "run", "training.train_steps=3", "training.batch_size_per_gpu=3"))
    check_told(caplog.messages, "2 on average before", "3 now", "sample 4")
    assert read_checkpoint(tmp_path / "run" / checkpoint_name(3))["samples"] == 7


def test_the_newest_checkpoint_that_can_be_read_is_taken(scenes, tmp_path, caplog):
    folder = tmp_path / "run"
    train.main(command(scenes, folder, "training.checkpoint_every=1"))
    whole = (folder / checkpoint_name(2)).read_bytes()
    (folder / checkpoint_name(2)).write_bytes(whole[: len(whole) // 2])
    path, state = newest_readable(folder)
    assert path == folder / checkpoint_name(1) and state["step"] == 1
    check_told(caplog.messages, "SKIPPED", folder / checkpoint_name(2), "checkpoint before")
    assert caplog.text.count("checkpoint before") == 1
    (folder / checkpoint_name(1)).write_bytes(b"")
    caplog.clear()
    with refused(folder, folder / checkpoint_name(2)):
        train.main(command(scenes, folder))
    assert caplog.text.count("SKIPPED") == 2 and caplog.text.count("checkpoint before") == 1
    assert newest_readable(tmp_path / "empty") is None


def test_old_checkpoints_go_and_every_nth_stays(tmp_path):
    copies = ["ckpt_1.pt", "ckpt_00000000000000002.pt", "ckpt_٣.pt", "ckpt_best.pt", "mine.pt"]
    for name in copies:
        (tmp_path / name).write_bytes(b"a person's")
    writer = CheckpointWriter(CheckpointConfig(str(tmp_path), keep_last=2, keep_every=4))
    for step in range(1, 11):
        writer.save(step, {"model": {}})
    kept = {checkpoint_name(step) for step in (4, 8, 9, 10)}
    assert {path.name for path in tmp_path.iterdir()} == kept | set(copies)


def test_a_background_save_holds_the_state_of_its_moment(tmp_path):
    writer = CheckpointWriter(CheckpointConfig(str(tmp_path), save_in_background=True))
    value = torch.zeros(1000)
    writer.save(1, {"model": {"a": value}, "optimizer": {"state": [value]}})
    value += 1
    writer.wait()
    state = read_checkpoint(tmp_path / checkpoint_name(1))
    assert not state["model"]["a"].any() and not state["optimizer"]["state"][0].any()


@pytest.mark.parametrize("background", [True, False])
def test_an_unforeseen_error_while_saving_is_not_lost(tmp_path, monkeypatch, background):
    def broken(*_):
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(checkpoint, "write_checkpoint", broken)
    writer = CheckpointWriter(CheckpointConfig(str(tmp_path), save_in_background=background, on_full_disk="continue"))
    with pytest.raises(RuntimeError, match="nobody expected this"):
        writer.save(1, {"model": {}})
        writer.wait()


@pytest.mark.slow
def test_saving_in_the_background_changes_nothing(scenes, tmp_path, undisturbed):
    train.main(long_command(scenes, tmp_path / "run", "training.save_in_background=true"))
    assert largest_difference(weights(tmp_path / "run", STEPS), undisturbed) == 0


def full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    return folder


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_stops_the_run_or_costs_a_checkpoint(tmp_path, background, caplog):
    folder = full_disk(tmp_path)
    try:
        large, small = {"model": {"a": torch.zeros(100_000)}}, {"model": {"a": torch.zeros(10)}}
        for action in ("stop", "continue"):
            cfg = CheckpointConfig(str(folder), save_in_background=background, on_full_disk=action)
            writer = CheckpointWriter(cfg)
            writer.save(1, small)
            if action == "stop":
                with pytest.raises(OSError, match="No space left on device.*ckpt_0000000000000002.pt"):
                    writer.save(2, large)
                    writer.wait()
            else:
                writer.save(2, large)
                writer.wait()
            check_told(caplog.messages, "STEP 2 NOT SAVED")
            assert [p.name for p in folder.iterdir()] == [checkpoint_name(1)]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_random_states_come_back(tmp_path):
    seed_everything(5)
    write_checkpoint(tmp_path, 1, {"model": {}, "random_states": [random_state()]})
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    seed_everything(6)
    set_random_state(read_checkpoint(tmp_path / checkpoint_name(1))["random_states"][0])
    assert [random.random(), np.random.rand(), torch.rand(1).item()] == drawn


def spoil(scenes, share):
    """Truncate frames of the first scenes."""
    images = scenes.parent / "images"
    for folder in sorted(images.iterdir())[:share]:
        for image in folder.iterdir():
            image.write_bytes(image.read_bytes()[:300])


def test_unusable_scenes_are_replaced_counted_and_named(tmp_path, signals):
    scenes = write_toy_set(tmp_path / "scenes", scenes=4)
    spoil(scenes, 1)
    folder = tmp_path / "run"
    train.main(command(scenes, folder, "training.train_steps=4"))
    named = (folder / "unusable.txt").read_text().splitlines()
    assert len(named) == 2 and all(line.startswith("scene scene0, frame ") for line in named)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["unusable"] == 2
    again = train.build_trainer(load_config(command(scenes, tmp_path / "again"))[0], process_alone())
    assert "scene0" not in [scene for _ in range(4) for scene in next(again.loader).scenes]


def process_alone():
    with process_group() as process:
        return process


def test_too_many_unusable_scenes_stop_the_run(tmp_path, signals):
    scenes = write_toy_set(tmp_path / "scenes", scenes=2)
    spoil(scenes, 1)
    options = ["training.train_steps=30", "training.max_unusable_share=0.005"]
    share = "training.max_unusable_share=0.005"
    with refused(re.compile(r"\b6 of \d+ samples"), share, tmp_path / "run" / "unusable.txt", "scene scene0"):
        train.main(command(scenes, tmp_path / "run", *options))
    assert len((tmp_path / "run" / "unusable.txt").read_text().splitlines()) == 6


def test_nothing_usable_is_an_error(tmp_path, signals):
    scenes = write_toy_set(tmp_path / "scenes", scenes=12)
    spoil(scenes, 12)
    with refused("10 scenes", re.compile(r"scene scene\d+, frame \d+")):
        train.main(command(scenes, tmp_path / "run"))


@pytest.mark.parametrize(("processes", "normalization", "background"), [(1, "median", "random"), (2, "auto", "white")])
def test_validation_gives_the_numbers_of_an_evaluation(tmp_path, processes, normalization, background):
    scenes = write_toy_set(tmp_path / "scenes", alpha=background == "random")
    index = {f"scene{i}": {"context": [0, 12], "target": [4, 6, 9]} for i in range(3)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    held_out = [f"training.validation_path={scenes}", f"training.validation_index={tmp_path}/index.json"]
    options = [*held_out, "training.validate_every=2", "training.train_steps=4"]
    options += [f"training.pose_normalization={normalization}", f"training.background={background}"]
    result = run("train.py", *command(scenes, tmp_path / "run", *options), processes=processes)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["validation/psnr"] for line in lines if "validation/psnr" in line}
    assert list(scores) == [2, 4]
    paths = [f"inference.view_idx_file_path={tmp_path}/index.json", f"inference_out_dir={tmp_path}/out"]
    inference.main([*command(scenes, tmp_path / "run", *paths), "inference.metrics=[psnr]"])
    averages = json.loads((tmp_path / "out" / "results.json").read_text())["averages"]
    assert averages["psnr"] == pytest.approx(scores[4], abs=1e-4)


def test_validation_needs_to_know_on_what(scenes, tmp_path, signals):
    with refused("training.validate_every", "training.validation_path", "training.validation_index"):
        train.main(command(scenes, tmp_path / "run", "training.validate_every=2"))


def test_the_metrics_log_counts_time_and_arithmetic(scenes, tmp_path, signals):
    trainer = build(scenes, tmp_path, "training.train_steps=33")
    for last in (False, False, True):
        trainer.metrics_log.log(trainer.update(), last)
    line = json.loads((trainer.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < line["data_wait"] < 1 and line["samples_per_second"] > 0 and line["seconds_left"] > 0
    assert line["skipped"] == line["unusable"] == 0
    # 267 TFLOP for 8 scenes, counted by hand for the published decoder-only model: 2 inputs, 6 targets of 1024 tokens.
    from model import ModelConfig, decoding_flops, encoding_flops, training_flops

    products = 3 * 2 * 24 * 12 * 768**2 * 3072 * 48
    attention = 3.5 * 24 * 4 * 3072**2 * 768 * 48
    assert 8 * training_flops(ModelConfig(), 2, 6) == pytest.approx(products + attention)
    assert products + attention == pytest.approx(267e12, rel=0.01)
    assert 48 * decoding_flops(ModelConfig(), 2).forward == pytest.approx(products / 3 + attention / 3.5)

    def passes(layers, tokens):
        return layers * (2 * 12 * 768**2 * tokens + 4 * tokens**2 * 768)

    other = ModelConfig(class_name="model.LVSM_scene_encoder_decoder.Images2LatentScene")
    assert encoding_flops(ModelConfig(), 2).forward == 0
    assert encoding_flops(other, 2).forward == pytest.approx(passes(12, 3072 + 2048))
    assert decoding_flops(other, 2).forward == pytest.approx(passes(12, 3072 + 1024))


def test_without_torchrun_the_process_that_holds_the_store_leaves_last():
    # As under srun: the main process serves the store; the other one looks at it for the last time a second later.
    result = run("-m", "tests.programs.run_farewell", processes=2)
    assert result.returncode == 0, result.stderr

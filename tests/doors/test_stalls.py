"""Loader processes that hang, die or cannot hand over what they read; launchers that die."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import get_worker_info

import train
from data import handover, loader
from data.dataset import EvaluationDataset, TrainingDataset, ViewLoader
from data.loader import LoaderConfig, TrainingLoader
from evaluation import scoring
from setup import load_config
from tests.helpers import INDEX, PATIENCE
from tests.messages import check_names, check_told, refused
from tests.processes import run, start, torchrun
from tests.runs import largest_difference, wait_for, weights
from tests.runs import training_command as command
from utils import stop_signal
from utils.checkpoint import numbered_checkpoints, read_checkpoint
from utils.distributed import Process
from utils.stop_signal import Stopped, StopSignal
from utils.watchdog import Watchdog

# They wait for what does not come.
pytestmark = pytest.mark.slow


def dataset(scenes):
    cfg = load_config(command(scenes, scenes.parent / "run"))[0].training
    return TrainingDataset(ViewLoader(cfg.data, 16, 8), cfg.trainer.seed)


def batches(scenes, workers, number=4, patience=60.0):
    stream = TrainingLoader(dataset(scenes), LoaderConfig(workers, 2), 2, 0, 1, 0, patience)
    return [next(stream) for _ in range(number)]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True)) and a.scenes == b.scenes


def no_room(_size):
    return False


def refuse(_tensor):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.fixture
def said(caplog):
    handover._say_once.cache_clear()
    with caplog.at_level("INFO", "lvsm"):
        yield caplog


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patch reaches workers by fork alone")
@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [(handover, "_has_room", no_room), (torch.Tensor, "share_memory_", refuse)],
)
def test_without_shared_memory_batches_come_through_a_pipe_and_it_is_said_once(
    scenes, said, monkeypatch, owner, name, replacement
):
    expected = batches(scenes, 0)
    assert "/dev/shm" not in said.text
    monkeypatch.setattr(owner, name, replacement)
    assert all(map(equal, batches(scenes, 2), expected))
    (line,) = (text for text in said.messages if "/dev/shm" in text)
    check_names(line, "docker run --shm-size=8g", "training.num_workers", "training.prefetch_factor")


def test_with_shared_memory_nothing_is_said(scenes, said):
    assert all(map(equal, batches(scenes, 2), batches(scenes, 0)))
    assert "/dev/shm" not in said.text


@pytest.mark.parametrize(
    ("free", "total", "room"), [(100, 100, True), (51, 100, True), (50, 100, False), (0, 0, False)]
)
def test_half_of_the_shared_memory_is_left_to_others(monkeypatch, free, total, room):
    space = os.statvfs_result((4096, 4096, total, free, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: space)
    assert handover._has_room(4096) == room
    monkeypatch.delattr(os, "statvfs")
    assert handover._has_room(4096)


@pytest.mark.parametrize(("size", "code"), [("256k", 0), ("8k", 1)])
def test_a_small_shared_memory_does_not_hang_a_run(scenes, tmp_path, size, code):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a small shared memory")
    more = ["training.num_workers=2", "training.prefetch_factor=32", "training.train_steps=6"]
    done = run("-m", "tests.programs.run_small_memory", size, *command(scenes, tmp_path / "run", *more))
    assert done.returncode == code and "/dev/shm is " in done.stderr and "--shm-size" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV])
def test_a_loader_process_that_dies_is_named_in_one_line(scenes, monkeypatch, number):
    read = TrainingDataset.__getitem__

    def dying(self, sample):
        if get_worker_info() is not None and sample.number == 2:
            os.kill(os.getpid(), number)
        return read(self, sample)

    monkeypatch.setattr(TrainingDataset, "__getitem__", dying)
    process = re.compile(r"loader process [0-9]+ ")
    with refused(process, "training.num_workers", "training.prefetch_factor", error=ChildProcessError):
        batches(scenes, 1)


def test_a_loader_process_that_dies_while_the_run_computes_is_told_as_well():
    with (
        refused("loader process 12", "Killed", error=ChildProcessError),
        loader.failures_told(),
    ):
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    with refused("loader process 1, 2", "exited", error=ChildProcessError), loader.failures_told():
        raise RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly")
    with pytest.raises(RuntimeError, match="shapes do not fit"), loader.failures_told():
        raise RuntimeError("shapes do not fit")


def test_data_that_does_not_come_is_an_error_in_the_end(scenes, monkeypatch):
    monkeypatch.setattr(TrainingDataset, "__getitem__", lambda _self, _number: time.sleep(1000))
    with refused("0.5 seconds", "training.distributed_timeout_minutes", error=TimeoutError):
        batches(scenes, 1, patience=0.5)


def alone(world_size=1):
    return Process(0, 0, world_size, torch.device("cpu"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_lone_process_stops_waiting_at_once(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopSignal(alone()) as stop:
        threading.Timer(0.2, os.kill, [os.getpid(), number]).start()
        with pytest.raises(Stopped), stop.waiting():
            time.sleep(PATIENCE)
        assert stop.requested and stop.agreed()
        with pytest.raises(Stopped), stop.waiting():
            time.sleep(PATIENCE)
    assert signal.getsignal(number) is before


def test_a_signal_outside_a_wait_leaves_the_step_alone():
    with StopSignal(alone()) as stop:
        with stop.waiting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
        assert list(stop.until_requested(iter([1, 2]))) == []


def test_ranks_agree_without_a_copy_from_the_host_which_would_wait_for_the_gpu(monkeypatch):
    operators = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, operator, _types, args=(), kwargs=None):
            operators.append(operator.overloadpacket)
            return operator(*args, **kwargs or {})

    monkeypatch.setattr(stop_signal.dist, "all_reduce", lambda *_, **__: None)
    process = Process(0, 0, 2, torch.device("meta"))
    with Recorded():
        StopSignal(process).agreed()
    assert operators == [torch.ops.aten.full]


@pytest.mark.parametrize("asked_before", [True, False])
def test_one_of_several_ranks_ends_when_no_data_comes(monkeypatch, asked_before):
    ended = []
    monkeypatch.setattr(stop_signal, "_GRACE", 0.2)
    monkeypatch.setattr(stop_signal, "leave_at_once", lambda *words: ended.append(words))
    with StopSignal(alone(world_size=2)) as stop:
        if asked_before:
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: ended)
        (message, code), *_ = ended
        assert code == 143 and "checkpoint" in message
        ended.clear()
        with stop.waiting():
            pass
        time.sleep(0.5)
        assert not ended


def test_the_second_ctrl_c_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(stop_signal, "leave_at_once", lambda *words: ended.append(words))
    with StopSignal(alone()):
        os.kill(os.getpid(), signal.SIGINT)
        assert not ended
        os.kill(os.getpid(), signal.SIGINT)
    assert [code for _, code in ended] == [130]


def test_a_single_process_is_watched_too(caplog):
    with Watchdog(alone(), stalled_after=0.2) as watch:
        watch.note("step 2, waiting for data")
        wait_for(lambda: "NO PROGRESS" in caplog.text)
    check_told(caplog.messages, "step 2, waiting for data", "file system")


def stalled(kind, tmp_path, *arguments, processes=1):
    launcher = torchrun(processes) if processes > 1 else []
    return start(*launcher, "-m", "tests.programs.run_stalled", kind, tmp_path, *arguments)


def hung(tmp_path):
    return [int(path.stem) for path in tmp_path.glob("*.hangs")]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def place_of(scenes, tmp_path, *more):
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    paths = [f"inference.view_idx_file_path={tmp_path}/index.json", f"inference_out_dir={tmp_path}/out"]
    cfg = ["inference.metrics=[psnr]", "training.train_steps=8", "training.checkpoint_every=100"]
    return command(scenes, tmp_path / "run", "training.num_workers=1", *paths, *cfg, *more)


@pytest.mark.parametrize("where", ["computing", "reading"])
def test_a_signal_during_validation_ends_it_and_the_run(scenes, tmp_path, monkeypatch, where):
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    validation = [f"training.validation_path={scenes}", f"training.validation_index={tmp_path}/index.json"]
    owner, name = (scoring, "render_batch") if where == "computing" else (EvaluationDataset, "__getitem__")
    original, calls = getattr(owner, name), []

    def struck(*arguments):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(owner, name, struck)
    one_by_one = ["training.batch_size_per_gpu=1", "training.validate_every=1"]
    train.main(command(scenes, tmp_path / "run", *validation, *one_by_one))
    assert len(calls) == 1
    assert [read_checkpoint(path)["step"] for path in numbered_checkpoints(tmp_path / "run")] == [1]
    assert "validation/" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_signal_while_waiting_saves_what_an_undisturbed_run_has(scenes, tmp_path, monkeypatch):
    options = ["training.train_steps=4", "training.grad_accum_steps=3", "training.checkpoint_every=100"]
    train.main(command(scenes, tmp_path / "undisturbed", *options))
    read = TrainingDataset.__getitem__

    def struck(self, sample):
        # The second of the three batches of step 3.
        if sample.number == 14:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, sample)

    monkeypatch.setattr(TrainingDataset, "__getitem__", struck)
    quiet = ["training.print_every=100"]
    train.main(command(scenes, tmp_path / "run", *options, *quiet))
    state = read_checkpoint(*numbered_checkpoints(tmp_path / "run"))
    assert (state["step"], state["samples"]) == (2, 12)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["step"] == 2
    monkeypatch.setattr(TrainingDataset, "__getitem__", read)
    train.main(command(scenes, tmp_path / "run", *options))
    assert largest_difference(weights(tmp_path / "run", 4), weights(tmp_path / "undisturbed", 4)) == 0


@pytest.mark.parametrize(
    ("kind", "number", "code", "step"),
    [
        ("train", signal.SIGTERM, 0, 1),
        ("inference", signal.SIGTERM, -signal.SIGTERM, None),
    ],
)
def test_a_run_whose_data_hangs_ends_on_a_signal(scenes, tmp_path, kind, number, code, step):
    if kind == "inference":
        train.main(command(scenes, tmp_path / "run"))
    process = stalled(kind, tmp_path, *place_of(scenes, tmp_path))
    wait_for(lambda: hung(tmp_path) or process.poll() is not None, PATIENCE)
    if step:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").read_text() or process.poll() is not None, PATIENCE)
    # Stopped for good, as in a file system that does not answer: no signal but SIGKILL ends the loader process.
    (loader_process,) = hung(tmp_path)
    os.kill(loader_process, signal.SIGSTOP)
    sent = time.monotonic()
    os.kill(process.pid, number)
    process.wait(PATIENCE)
    # It would keep the pipe open.
    if is_alive(loader_process) and not step:
        os.kill(loader_process, signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    assert time.monotonic() - sent < 300 and "Traceback" not in said, said
    if step:
        assert [read_checkpoint(path)["step"] for path in numbered_checkpoints(tmp_path / "run")] == [step], said
        wait_for(lambda: not is_alive(loader_process))


def test_ranks_end_when_torchrun_is_killed(scenes, tmp_path):
    process = stalled("train", tmp_path, *place_of(scenes, tmp_path), processes=2)
    group = [process.pid]
    try:
        wait_for(lambda: len(hung(tmp_path)) == 2 or process.poll() is not None, PATIENCE)
        group = processes_of(process.pid)
        assert len(group) >= 5, group
        process.kill()
        wait_for(lambda: not any(map(is_alive, group)), PATIENCE)
        assert "torchrun is gone" in process.communicate(timeout=PATIENCE)[1]
    finally:
        for pid in filter(is_alive, group):
            os.kill(pid, signal.SIGKILL)


def processes_of(launcher):
    """Process ids of a launcher and of all that it started, directly or not."""
    found = [launcher]
    for parent in found:
        found += map(int, subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split())
    return found


def test_several_ranks_whose_data_hangs_end_on_a_signal(scenes, tmp_path):
    process = stalled("train", tmp_path, *place_of(scenes, tmp_path), processes=2)
    wait_for(lambda: len(hung(tmp_path)) == 2 or process.poll() is not None, PATIENCE)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").read_text() or process.poll() is not None, PATIENCE)
    group = processes_of(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "asked to stop, but no data came" in said, said
    wait_for(lambda: not any(map(is_alive, group)))


@pytest.mark.parametrize("missing", [["sigwaitinfo"], ["sigwaitinfo", "pthread_sigmask", "SIGUSR1"]])
def test_training_where_the_system_has_fewer_signals(scenes, tmp_path, monkeypatch, missing):
    expected = tmp_path / "expected"
    train.main(command(scenes, expected, "training.num_workers=1"))
    for name in missing:
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(stop_signal, "_SIGNALS", (signal.SIGTERM, signal.SIGINT))
    train.main(command(scenes, tmp_path / "run", "training.num_workers=1"))
    assert largest_difference(weights(expected, 2), weights(tmp_path / "run", 2)) == 0


def test_loader_processes_that_are_spawned_read_the_same(scenes, monkeypatch):
    expected = batches(scenes, 0, number=2)
    made = loader.DataLoader
    monkeypatch.setattr(loader, "DataLoader", lambda *a, **k: made(*a, multiprocessing_context="spawn", **k))
    assert all(map(equal, batches(scenes, 1, number=2), expected))

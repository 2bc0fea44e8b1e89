"""Runs and their folders: one writer each, nothing outside of them, no folder that is everybody's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import inference
import train
from evaluation.results import check_scene_folders
from model import build_model
from model.weights import published_state
from setup import load_config, output_folder
from tests.helpers import PATIENCE, ROOT, small_overrides, write_run
from tests.messages import check_told, refused
from tests.processes import run, start
from tests.runs import wait_for
from utils.checkpoint import numbered_checkpoints, write_checkpoint
from utils.files import temporary_path
from utils.lock import LOCK_NAME

# Two runs at once, so many times: LVSM_LOCKS=10 is a long test.
REPEATS = int(os.environ.get("LVSM_LOCKS", 1))


def training_command(place, *overrides):
    values = [f"training.dataset_path={place}/scenes/full_list.txt", f"training.checkpoint_dir={place}/run"]
    config = ROOT / "configs" / "LVSM_scene_decoder_only.yaml"
    return ["--config", str(config), *small_overrides("decoder_only"), *values, *overrides]


def evaluation_command(place, *overrides):
    values = [
        f"training.checkpoint_dir={place}/checkpoints",
        f"inference.view_idx_file_path={place}/index.json",
        f"inference_out_dir={place}/out",
        "inference.metrics=[psnr]",
    ]
    return training_command(place, *values, *overrides)


def comparison_command(place):
    runs = [write_run(place / name, {"scene0": 20.0}) for name in ("a", "b")]
    return ["--compare", *map(str, runs), "--output", str(place / "page")]


def save_weights(place):
    config, _ = load_config(evaluation_command(place))
    write_checkpoint(place / "checkpoints", 1, {"model": published_state(build_model(config.model))})


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to a folder."""
    command = [sys.executable, "-m", "tests.programs.run_lock", str(folder)]
    holder = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline().strip() == "held"
    yield holder
    holder.communicate("")


@pytest.mark.parametrize("kind", ["training", "evaluation", "comparison"])
def test_a_folder_that_is_written_to_is_refused_and_left_alone(kind, place):
    main, arguments, folder = {
        "training": (train.main, training_command, "run"),
        "evaluation": (inference.main, evaluation_command, "out"),
        "comparison": (inference.main, comparison_command, "page"),
    }[kind]
    with held_elsewhere(place / folder) as holder:
        with refused(place / folder, f"pid {holder.pid}"):
            main(arguments(place))
        assert [path.name for path in (place / folder).iterdir()] == [LOCK_NAME]


def race(script, arguments):
    """Start a command twice at once; returns the one that goes on and what the other said when it was refused."""
    both = [start(script, *arguments) for _ in range(2)]
    deadline = time.monotonic() + PATIENCE
    while all(process.poll() is None for process in both) and time.monotonic() < deadline:
        time.sleep(0.1)
    refused, winner = sorted(both, key=lambda process: process.poll() is None)
    assert refused.wait() == 1 and winner.poll() is None
    return winner, refused.communicate()[1]


def last_line(text):
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("_number", range(REPEATS))
def test_of_two_trainings_at_once_one_is_refused(_number, place):
    winner, said = race("train.py", training_command(place, "training.train_steps=1000000"))
    assert str(place / "run") in last_line(said) and "training.checkpoint_dir" in last_line(said)
    updates = place / "run" / "metrics.jsonl"
    wait_for(lambda: (updates.exists() and updates.read_text()) or winner.poll() is not None)
    winner.send_signal(signal.SIGTERM)
    assert winner.wait() == 0, winner.communicate()[1]
    assert len((place / "run" / "starts.jsonl").read_text().splitlines()) == 1
    assert len(numbered_checkpoints(place / "run")) == 1 and not (place / "run" / LOCK_NAME).exists()


@pytest.mark.parametrize("_number", range(REPEATS))
def test_of_two_evaluations_at_once_one_is_refused(_number, place):
    save_weights(place)
    endless = ["inference.render_video=true", "inference.render_video_config.num_frames=1000000"]
    winner, said = race("inference.py", evaluation_command(place, *endless))
    assert str(place / "out") in last_line(said) and "inference_out_dir" in last_line(said)
    winner.kill()
    winner.communicate()
    inference.main(evaluation_command(place))
    assert (place / "out" / "results.json").exists()
    assert not [path for path in (place / "out").rglob(".*")]


def test_a_refusal_ends_every_process(place):
    with held_elsewhere(place / "run"):
        done = run("train.py", *training_command(place), processes=2)
    assert done.returncode == 1
    check_told(done.stderr.splitlines(), "error: another run", place / "run")


@pytest.mark.parametrize("text", ["/", "~", "/tmp/..", "//"])
def test_a_folder_of_everybody_is_refused(text):
    folder = str(Path(text).expanduser())
    with refused("inference_out_dir", f"'{folder}'"):
        output_folder(folder, "inference_out_dir")


def test_a_folder_in_such_a_folder_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [output_folder(text, "key") for text in (".", "a")] == [Path(), Path("a")]


@pytest.mark.parametrize("what", ["link", "broken link", "link inside", "file"])
def test_an_evaluation_writes_to_folders_of_its_own(what, place):
    save_weights(place)
    precious, out = place / "precious", place / "out"
    precious.mkdir()
    (precious / "rendered_video.mp4").write_text("mine")
    (out / "scene2").mkdir(parents=True)
    target = {"link": precious, "broken link": place / "nowhere", "link inside": out / "scene2"}
    if what == "file":
        (out / "scene1").write_text("mine")
    else:
        (out / "scene1").symlink_to(target[what])
    with refused(out / "scene1", "inference_out_dir"):
        inference.main(evaluation_command(place))
    assert [path.name for path in precious.iterdir()] == ["rendered_video.mp4"]
    assert not (place / "nowhere").exists() and not list((out / "scene2").iterdir())


def test_links_among_the_files_of_a_scene_are_replaced_not_followed(place):
    save_weights(place)
    names = ["input.png", "gt_vs_pred.png", "metrics.json", "rendered_video.mp4"]
    (place / "precious").write_text("mine")
    (place / "out" / "scene0").mkdir(parents=True)
    for name in ["scene0/" + name for name in names] + ["results.json", "summary.csv", "index.html"]:
        (place / "out" / name).symlink_to(place / "precious")
    inference.main(evaluation_command(place))
    assert (place / "precious").read_text() == "mine"
    assert not [path for path in (place / "out").rglob("*") if path.is_symlink()]


def test_only_own_temporaries_are_cleaned_away(place):
    save_weights(place)
    (place / "out" / "scene0").mkdir(parents=True)
    theirs = [place / "out" / ".notes.tmp", place / "out" / "scene0" / ".anything.tmp", place / "out" / "a.tmp"]
    for path in theirs:
        path.write_text("mine")
    own = [temporary_path(place / "out" / "index.html"), temporary_path(place / "out" / "scene0" / "input.png")]
    for path in own:
        path.write_text("half")
    inference.main(evaluation_command(place))
    assert all(path.exists() for path in theirs) and not any(path.exists() for path in own)


def test_a_scene_by_the_name_of_a_result_is_refused(place):
    with refused("scene index.html"):
        check_scene_folders(place / "out", ["scene0", "index.html"])

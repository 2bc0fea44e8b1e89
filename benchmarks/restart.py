"""A run of which one process is killed, beside the same run left alone: is anything lost, and how long does it take?

    python -m benchmarks.restart --config configs/rooms.yaml --output_dir restart --processes 2 \\
        training.train_steps=200 training.checkpoint_every=20

One process a GPU where there are GPUs; with `--one_gpu` all share the first. The row says how many seconds passed from
the kill to the next update that was written down, how often torchrun started the run, and how far the final weights are
apart (0 on CPUs; on GPUs as far as two runs of the same seed are).
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import benchmark_parser, last_lines, positive, show
from setup import read_config
from utils.checkpoint import newest_readable, numbered_checkpoints
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.text import printable

_PATIENCE = 600.0
# Characters of a log that a message shows.
_SHOWN = 600


def launch(folder: Path, given: argparse.Namespace) -> subprocess.Popen[str]:
    """Start training under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(given.processes)]
    script = ["-m", "benchmarks.one_gpu"] if given.one_gpu else ["train.py"]
    training = [*script, "--config", str(given.config), *given.overrides, f"training.checkpoint_dir={folder}"]
    folder.mkdir(parents=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        return subprocess.Popen([*torchrun, "--max-restarts", "3", *training], stderr=log, stdout=log, text=True)


def workers(launcher: int) -> list[int]:
    """Process ids of torchrun's workers: it starts nothing else."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == launcher:
            found.append(int(status.parent.name))
    return found


def last_words(folder: Path) -> str:
    """The last line of a run's log that has words."""
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if re.search(r"\w", line)), "nothing")


def wait_for(condition: Callable[[], object], run: subprocess.Popen[str], folder: Path, what: str) -> None:
    """Raises InputError if the run in `folder` ends, or ten minutes pass, before `condition` holds."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if run.poll() is not None or time.monotonic() > deadline:
            raise InputError(
                f"the run ended or hung before {what}: train for more updates, or see {folder / 'log.txt'}, which ends "
                f"with: {printable(last_words(folder), _SHOWN)}"
            )
        time.sleep(0.05)


def kill_one(run: subprocess.Popen[str], folder: Path) -> float:
    """Kill a worker after the first checkpoint; seconds until the restarted run writes down an update."""
    wait_for(lambda: numbered_checkpoints(folder), run, folder, "its first checkpoint")
    os.kill(random.choice(workers(run.pid)), signal.SIGKILL)
    start = time.monotonic()
    before = len(last_lines(folder))
    starts = folder / "starts.jsonl"
    wait_for(lambda: len(starts.read_text().splitlines()) > 1, run, folder, "it was started again")
    wait_for(lambda: len(last_lines(folder)) > before, run, folder, "it went on")
    return time.monotonic() - start


def main(argv: Sequence[str]) -> None:
    """Run both and compare."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("--output_dir", type=path_argument, required=True, help="gets both run folders; must not exist")
    parser.add_argument("--processes", type=positive, default=2)
    parser.add_argument("--one_gpu", action="store_true", help="all processes on the first GPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    # Refused here, once, rather than by every start of both runs.
    read_config(given.config, given.overrides)
    alone = given.output_dir / "alone"
    killed = given.output_dir / "killed"
    codes = [launch(alone, given).wait()]
    if codes[0]:
        raise InputError(f"the run left alone failed: {printable(last_words(alone), _SHOWN)}")
    run = launch(killed, given)
    seconds = kill_one(run, killed)
    codes.append(run.wait())
    newest = [newest_readable(folder) for folder in (alone, killed)]
    weights = [found[1]["model"] for found in newest if found is not None]
    difference = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
    row = {
        "processes": given.processes,
        "exit codes": codes,
        "starts": len((killed / "starts.jsonl").read_text().splitlines()),
    }
    show([row | {"s to go on": seconds, "largest weight difference": difference}], given.json)


if __name__ == "__main__":
    run_main(main)

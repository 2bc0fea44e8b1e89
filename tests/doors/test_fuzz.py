"""Damaged inputs of every kind, from seeds: the scripts refuse them in one line or go on, and do nothing else.

    LVSM_FUZZ=2000 LVSM_FUZZ_REPORT=report.txt python -m pytest tests/doors/test_fuzz.py

runs 2,000 cases, on all cores, and writes what came of them; `LVSM_FUZZ_FIRST` is the first seed. A single seed runs by
`python tests/programs/run_fuzz.py EMPTY_FOLDER SEED`.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue

import pytest

from tests.helpers import ROOT
from tests.processes import QUIET, ForkedSooner
from utils.parallel import cores_of_process
from utils.text import printable

CASES = int(os.environ.get("LVSM_FUZZ", 0))
FIRST = int(os.environ.get("LVSM_FUZZ_FIRST", 0))
REPORT = os.environ.get("LVSM_FUZZ_REPORT")
# Cases where no number is asked for: two of each kind.
_FEW = 40
# Seeds of cases that are at fault by design: a program started, a traceback, and last the death of the worker.
PLANTED = (-3, -2, -1)
# Seconds after which a case hangs; a usual one takes 0.2.
_LIMIT = 100.0
# Seconds that the worker may take to begin.
_BEGIN_LIMIT = 300.0


class Worker:
    """A process that runs seeds, read line by line with a limit on the time."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._errors = folder.with_suffix(".stderr")
        self._said = folder.with_suffix(".stdout")
        os.mkfifo(self._said)
        program = ROOT / "tests" / "programs" / "run_fuzz.py"
        command = [str(part) for part in (program, folder, *arguments)]
        environment = os.environ | QUIET | {"HF_HUB_OFFLINE": "1"}
        self.process = ForkedSooner(command, environment, self._said, self._errors)
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._said.open() as said:
            for line in said:
                self._lines.put(line)
        self._lines.put("")

    def next(self, limit: float) -> dict | None:
        """What the worker says next; None if it has ended.

        Raises:
            Empty: it says nothing for `limit` seconds.
        """
        line = self._lines.get(timeout=limit)
        return json.loads(line) if line else None

    def abort(self) -> str:
        """End it and all that it started; where it stood, by its errors."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        stood = self._errors.read_text(errors="replace").split("Extension modules")[0]
        return " | ".join(stood.rsplit("Current thread", 1)[-1].splitlines())[:800]


def run_seeds(folder: Path, seeds: list[int]) -> list[dict]:
    """The outcomes of the seeds; a worker that dies or hangs is blamed on the seed begun last, and started anew."""
    outcomes: list[dict] = []
    while len(outcomes) < len(seeds):
        left = seeds[len(outcomes) :]
        worker, begun = Worker(folder / f"from{left[0]}", *left), False
        try:
            while (said := worker.next(_LIMIT if begun else _BEGIN_LIMIT)) is not None:
                begun = True
                outcomes += [] if "begin" in said else [said]
        except Empty:
            what = "hung"
        else:
            what = f"ended with {worker.process.wait()}"
        words = worker.abort()
        assert begun, f"the worker {what} before its first case: {words}"
        if len(outcomes) < len(seeds):
            seed = seeds[len(outcomes)]
            outcomes.append({"seed": seed, "kind": "?", "damage": [], "outcome": "FAULT", "text": f"{what}: {words}"})
    return outcomes


def describe(outcomes: list[dict]) -> str:
    """Counts by kind and outcome, every fault, and what was accepted, like cases together."""
    counts = Counter((case["kind"], case["outcome"]) for case in outcomes)
    kinds, words = sorted({kind for kind, _ in counts}), ("refused", "told", "silent", "FAULT")
    lines = [f"{'kind':<20}" + "".join(f"{word:>9}" for word in words)]
    lines += [f"{kind:<20}" + "".join(f"{counts[kind, word]:>9}" for word in words) for kind in kinds]
    lines += [f"{'all':<20}" + "".join(f"{sum(counts[kind, word] for kind in kinds):>9}" for word in words)]
    for word in ("FAULT", "silent", "told"):
        groups = defaultdict(list)
        for case in outcomes:
            if case["outcome"] == word:
                text = f": {case['text']} ({case.get('door')})" if word == "FAULT" else ""
                name = f"{case['kind']} > {case.get('script')}: {', '.join(case['damage'])}{text}"
                groups[name].append(case["seed"])
        lines += ["", word]
        lines += [f"{len(seeds):>4}  {name}  (seed {seeds[0]})" for name, seeds in sorted(groups.items())]
    return "\n".join(map(printable, lines)) + "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes, links and limits of memory are those of Unix")
def test_damaged_inputs_are_refused_in_one_line_or_used(tmp_path):
    count, jobs = CASES or _FEW, cores_of_process() if CASES else 1
    seeds = range(FIRST, FIRST + count)
    with ThreadPoolExecutor(jobs) as pool:
        shares = [pool.submit(run_seeds, tmp_path, [*seeds[job::jobs], *PLANTED]) for job in range(jobs)]
        outcomes = [case for share in shares for case in share.result()]
    real = [case for case in outcomes if case["seed"] >= 0]
    assert sorted(case["seed"] for case in real) == list(seeds)
    assert {case["outcome"] for case in outcomes if case["seed"] < 0} == {"FAULT"}
    report = describe(real)
    if REPORT:
        Path(REPORT).write_text(report)
    assert not [case for case in real if case["outcome"] == "FAULT"], report

"""Bad input to a benchmark ends in one line, as it does for the entry scripts."""

import pytest

from tests.helpers import ROOT
from tests.processes import run

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_step", "--config", "nowhere.yaml"], "error: configuration not found: nowhere.yaml"),
        (["train_step", "--config", CONFIG, "training.lrr=1"], "error: unknown key training.lrr"),
        (["render", "--config", CONFIG, "training.compile=maybe"], "error: training.compile is 'maybe'"),
        (["loader", "--scene", "nowhere.json"], "error: scene metadata not found: nowhere.json"),
        (["preprocess", "--chunks", "nowhere"], "error: "),
        (
            ["restart", "--config", "nowhere.yaml", "--output_dir", "OUT"],
            "error: configuration not found: nowhere.yaml",
        ),
    ],
)
def test_bad_input_to_a_benchmark_ends_in_one_line(arguments, message):
    name, *rest = arguments
    done = run("-m", f"benchmarks.{name}", *rest)
    assert done.returncode == 1
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1, done.stderr

"""Bad input to a benchmark ends in one line, as it does for the entry scripts."""

import pytest

from tests.helpers import ROOT
from tests.messages import check_error_line
from tests.processes import run

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["train_step", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train_step", "--config", CONFIG, "training.lrr=1"], ["training.lrr"]),
        (["render", "--config", CONFIG, "training.compile=maybe"], ["training.compile", "'maybe'"]),
        (["loader", "--scene", "nowhere.json"], ["nowhere.json"]),
        (["preprocess", "--chunks", "nowhere"], ["nowhere/train", "--base_path"]),
        (["restart", "--config", "nowhere.yaml", "--output_dir", "OUT"], ["nowhere.yaml"]),
    ],
)
def test_bad_input_to_a_benchmark_ends_in_one_line(arguments, culprits):
    name, *rest = arguments
    done = run("-m", f"benchmarks.{name}", *rest)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    check_error_line(done, *culprits)

"""Training on two machines, as docs/train.sbatch starts it: two agents of torchrun, here on one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PATIENCE, ROOT
from tests.processes import QUIET, free_port
from tests.runs import training_command as command
from utils.checkpoint import checkpoint_name, numbered_checkpoints

pytestmark = pytest.mark.slow

# In place of Slurm's own programs.
STAND_INS = ROOT / "tests" / "programs" / "slurm"


def environment():
    path = os.pathsep.join([str(STAND_INS), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    own = {"GPUS_A_MACHINE": "1", "PORT": free_port()}
    return os.environ | slurm | own | QUIET | {"PATH": path}


def test_a_job_on_two_machines_trains_together(scenes, tmp_path):
    arguments = command(scenes, tmp_path / "run")
    done = subprocess.run(
        ["bash", ROOT / "docs" / "train.sbatch", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint_name(2) in [path.name for path in numbered_checkpoints(tmp_path / "run")]
    (begun,) = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert begun["processes"] == 2

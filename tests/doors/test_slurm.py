"""Training on two machines, as docs/train.sbatch starts it: two agents of torchrun, here on one machine."""

import json
import os
import subprocess

import pytest

from tests.helpers import PATIENCE, ROOT
from tests.processes import QUIET, free_port, start
from tests.runs import training_command as command
from tests.runs import wait_for
from utils.checkpoint import checkpoint_name, numbered_checkpoints
from utils.files import write_text

pytestmark = pytest.mark.slow

# In place of Slurm's own programs.
STAND_INS = ROOT / "tests" / "programs" / "slurm"


def environment(place):
    path = os.pathsep.join([str(STAND_INS), os.environ["PATH"]])
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    own = {"GPUS_A_MACHINE": "1", "PORT": free_port(), "TASKS": str(place)}
    return os.environ | slurm | own | QUIET | {"PATH": path}


def run_tasks(command, variables):
    """Run torchrun's command as the tasks of two machines; the exit status of the job."""
    assert command[0] == "torchrun"
    tasks = [
        start("-m", "tests.programs.run_torchrun", *command[1:], **variables, SLURM_NODEID=number, SLURM_PROCID=number)
        for number in "01"
    ]
    said = [task.communicate()[1] for task in tasks]
    return max(abs(task.returncode) for task in tasks), said


def test_a_job_on_two_machines_trains_together(scenes, tmp_path):
    variables = environment(tmp_path)
    job = subprocess.Popen(
        ["bash", ROOT / "docs" / "train.sbatch", *command(scenes, tmp_path / "run")],
        cwd=ROOT,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / "command").exists() or job.poll() is not None)
    status, said = run_tasks((tmp_path / "command").read_text().splitlines(), variables)
    write_text(tmp_path / "status", str(status))
    assert job.wait(PATIENCE) == status == 0, (job.communicate(), said)
    assert checkpoint_name(2) in [path.name for path in numbered_checkpoints(tmp_path / "run")]
    (begun,) = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert begun["processes"] == 2

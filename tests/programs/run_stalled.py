"""A run whose data stops coming. Under torchrun: on every rank.

python -m tests.programs.run_stalled {train,inference} FOLDER ARGUMENT...

Every loader process leaves its process id in FOLDER and hangs at the third sample that it reads.
"""

import os
import time
from pathlib import Path

import inference
import train
from data.dataset import EvaluationDataset, TrainingDataset
from utils import stop_signal
from utils.cli import run_main


def main(argv):
    kind, folder = argv[0], Path(argv[1])
    owner = TrainingDataset if kind == "train" else EvaluationDataset
    read, left = owner.__getitem__, [3]

    def hanging(self, number):
        left[0] -= 1
        if not left[0]:
            (folder / f"{os.getpid()}.hangs").touch()
            time.sleep(1000)
        return read(self, number)

    owner.__getitem__ = hanging
    # Of several ranks each waits so many seconds for data that will not come.
    stop_signal._GRACE = 2.0
    (inference if kind == "inference" else train).main(argv[2:])


if __name__ == "__main__":
    run_main(main)

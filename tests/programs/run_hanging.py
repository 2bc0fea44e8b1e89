"""Training on two ranks of which the second hangs: where, says the environment's HANGS_IN (data, saving)."""

import os
import time
from datetime import timedelta

import train
import utils.distributed
from utils.cli import run_main

next_batches, barrier = train.Trainer._next_batches, utils.distributed.Process.barrier


def without_data(self):
    if self.step == 1 and self.process.rank == 1:
        self.watchdog.note("step 2, waiting for data")
        time.sleep(1000)
    return next_batches(self)


def late(self, what):
    time.sleep(1000 if self.rank == 1 and what == "saving" else 0)
    barrier(self, what)


if os.environ["HANGS_IN"] == "data":
    train.Trainer._next_batches = without_data
else:
    utils.distributed._PATIENCE = timedelta(seconds=3)
    utils.distributed.Process.barrier = late
run_main(train.main)

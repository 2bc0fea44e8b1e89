"""Training slow enough that a signal arrives in the middle."""

import time

import train
from utils.cli import run_main

update = train.Trainer.update


def slow(self):
    time.sleep(0.2)
    return update(self)


train.Trainer.update = slow
run_main(train.main)

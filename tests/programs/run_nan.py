"""Training on several ranks where one has a loss that is not a number; in the end all have the same weights."""

import os

import train
from utils.cli import run_main

forward, run = train.Trainer._forward, train.Trainer.run


def spoiled(self, batch, show):
    terms = forward(self, batch, show)
    if self.step == 1 and os.environ["RANK"] == "1":
        terms["loss"] = terms["loss"] * float("nan")
    return terms


def checked(self):
    run(self)
    weights = [p.detach().sum().item() for p in self.model.parameters()]
    assert all(share == weights for share in self.process.gather(weights))


train.Trainer._forward = spoiled
train.Trainer.run = checked
run_main(train.main)

"""Training on several ranks that counts the gradients it sends: those of every parameter, once an update."""

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train
from utils.cli import run_main

build, run = train.build_trainer, train.Trainer.run
calls = []


def hook(state, bucket):
    calls.append(bucket.buffer().numel())
    return allreduce_hook(state, bucket)


def counted(config, process):
    trainer = build(config, process)
    assert process.one_machine
    trainer._parallel.register_comm_hook(None, hook)
    return trainer


def checked(self):
    run(self)
    parameters = sum(p.numel() for p in self.model.parameters())
    assert sum(calls) == parameters * self.optim.train_steps, (sum(calls), parameters)


train.build_trainer = counted
train.Trainer.run = checked
run_main(train.main)

"""Training on several ranks that counts the gradients it sends: those of every parameter, once an update."""

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import train
from training import trainer
from utils.cli import run_main

build, run = train.build_trainer, train.Trainer.run
calls = []


class OneBucket(DistributedDataParallel):
    def __init__(self, *args, bucket_cap_mb, **kwargs):
        # All gradients of the toy model.
        assert bucket_cap_mb == 1
        super().__init__(*args, bucket_cap_mb=bucket_cap_mb, **kwargs)


def hook(state, bucket):
    calls.append(bucket.buffer().numel())
    return allreduce_hook(state, bucket)


def counted(config, process):
    made = build(config, process)
    made._parallel.register_comm_hook(None, hook)
    return made


def checked(self):
    run(self)
    parameters = sum(p.numel() for p in self.model.parameters())
    assert sum(calls) == parameters * self.optim.train_steps, (sum(calls), parameters)


trainer.DistributedDataParallel = OneBucket
train.build_trainer = counted
train.Trainer.run = checked
run_main(train.main)

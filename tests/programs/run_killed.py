"""Training that strikes itself dead at a chosen moment, counted in calls of what may be cut short.

python -m tests.programs.run_killed SEED ARGUMENT...
"""

import os
import random
import signal
import sys

import torch

import train
import utils.checkpoint
import utils.files

rng = random.Random(int(sys.argv[1]))
left = rng.randint(1, 40)


def strike(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(owner, name, before):
    original = getattr(owner, name)

    def replaced(*args, **kwargs):
        if before:
            strike()
        result = original(*args, **kwargs)
        if not before:
            strike()
        return result

    setattr(owner, name, replaced)


save = torch.save


def half_saved(state, file):
    if rng.random() < 0.3:
        file.write(b"half of a file")
        strike()
        file.seek(0)
        file.truncate()
    save(state, file)


torch.save = half_saved
deadly(os, "fsync", before=True)
deadly(train.Trainer, "update", before=True)
deadly(train.Trainer, "update", before=False)
deadly(utils.checkpoint, "atomic_path", before=False)
train.main(sys.argv[2:])

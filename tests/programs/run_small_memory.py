"""Training with a small /dev/shm of its own.

python -m tests.programs.run_small_memory SIZE ARGUMENT...    those of train.py
"""

import ctypes
import subprocess
import sys

import train
from utils.cli import run_main

# Of sched.h: this process sees mounts that no other one sees.
CLONE_NEWNS = 0x00020000

size = sys.argv.pop(1)
if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
    raise OSError(ctypes.get_errno(), "cannot unshare mounts")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)
run_main(train.main)

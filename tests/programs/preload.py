"""What `tests.processes` imports once, before it forks: all that takes long to import."""

import os

# Read by torch when it is imported. More threads than one would not survive a fork.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

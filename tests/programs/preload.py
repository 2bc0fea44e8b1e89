"""Goes before the imports of the process that `tests.processes` forks: one thread alone survives a fork."""

import os

# Read by torch when it is imported.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

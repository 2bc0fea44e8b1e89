"""train.py as one of several processes that share a GPU: NCCL, which refuses that, takes each for a machine of its own.

torchrun --nproc_per_node 2 -m benchmarks.one_gpu --config configs/rooms.yaml [key=value ...]
"""

import os

import train
from utils.cli import run_main

if __name__ == "__main__":
    os.environ |= {"NCCL_HOSTID": f"process{os.environ.get('RANK', 0)}", "LOCAL_RANK": "0"}
    run_main(train.main)

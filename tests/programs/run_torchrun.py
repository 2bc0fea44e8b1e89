"""torchrun, whose processes are forked from it: none has to import torch anew.

python -m tests.programs.run_torchrun ARGUMENT...    those of torchrun
"""

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.processes import Forked

if __name__ == "__main__":
    subprocess_handler.Popen = Forked
    run.main()

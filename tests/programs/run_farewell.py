"""Two processes without torchrun, of which the second looks at the store for the last time long after the first."""

import os
import time

from utils import distributed

rank = int(os.environ["RANK"])
with distributed.process_group() as process:
    if rank == 0:
        time.sleep(0.5)
    else:
        distributed._PAUSE = 1.0
    process.barrier("writing results")

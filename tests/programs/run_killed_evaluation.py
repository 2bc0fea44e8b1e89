"""An evaluation that is killed when the pictures of its fourth scene are there, but not its numbers."""

import os
import signal
import sys

import inference
from evaluation import evaluator

write = evaluator.write_metrics
written = []


def write_or_die(out_dir, record, run_id):
    written.append(record.scene_name)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(out_dir, record, run_id)


evaluator.write_metrics = write_or_die
evaluator._WRITERS = 1
inference.main(sys.argv[1:])

"""An evaluation that is killed when the pictures of its fourth scene are there, but not its numbers."""

import os
import signal
import sys

import inference

write, written = inference.write_metrics, []


def write_or_die(out_dir, record, run_id):
    written.append(record.scene_name)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(out_dir, record, run_id)


inference.write_metrics = write_or_die
inference._WRITERS = 1
inference.main(sys.argv[1:])

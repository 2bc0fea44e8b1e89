"""Holds the lock of a folder until its standard input ends: python -m tests.programs.run_lock FOLDER."""

import logging
import sys
from pathlib import Path

from utils.lock import only_writer

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
with only_writer(Path(sys.argv[1]), "key"):
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()

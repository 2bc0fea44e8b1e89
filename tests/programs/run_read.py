"""Reads a checkpoint: python -m tests.programs.run_read FILE."""

import sys
from pathlib import Path

from utils.checkpoint import read_checkpoint

read_checkpoint(Path(sys.argv[1]))

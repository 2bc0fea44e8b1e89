"""Evaluate several times in one go. Under torchrun: with as many processes as it starts.

python tests/programs/run_evaluations.py ARGUMENTS [ARGUMENTS ...]    (each a JSON list of what inference.py takes)
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import inference
from utils.cli import run_main
from utils.distributed import process_group


def main(argv):
    with process_group():
        for arguments in argv:
            inference.main(json.loads(arguments))


if __name__ == "__main__":
    run_main(main)

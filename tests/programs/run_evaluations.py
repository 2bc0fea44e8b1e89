"""Evaluate several times in one go. Under torchrun: with as many processes as it starts.

python -m tests.programs.run_evaluations ARGUMENTS [ARGUMENTS ...]    (each a JSON list of what inference.py takes)
"""

import json

import inference
from utils.cli import run_main
from utils.distributed import process_group


def main(argv):
    with process_group():
        for arguments in argv:
            inference.main(json.loads(arguments))


if __name__ == "__main__":
    run_main(main)

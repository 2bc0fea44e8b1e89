"""Several of the project's doors one after the other, in the working directory's copy of the project.

python run_doors.py '["train", "--config", ...]' '["inference", ...]' ...
"""

import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))


def main(argv):
    for arguments in map(json.loads, argv):
        importlib.import_module(arguments[0]).main(arguments[1:])


if __name__ == "__main__":
    from utils.cli import run_main

    run_main(main)

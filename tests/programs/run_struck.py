"""Preprocessing that strikes itself at the third clip it moves into place.

python -m tests.programs.run_struck {all,parent} ARGUMENT...    kills its whole session, or its parent alone
"""

import os
import signal
import sys
from pathlib import Path

import preprocess_data
from tests.chunks import on_the_third_move

whom = sys.argv[1]


def strike():
    if whom == "all":
        os.killpg(0, signal.SIGKILL)
    else:
        os.kill(os.getppid(), signal.SIGKILL)


Path.rename = on_the_third_move(Path.rename, strike)
preprocess_data.main(sys.argv[2:])

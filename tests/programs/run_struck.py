"""Preprocessing, or the packing of a set, that strikes itself at the third clip it moves into place.

python -m tests.programs.run_struck {all,tars,packing,parent} ARGUMENT...   kills its whole session, or its parent alone
"""

import os
import signal
import sys
from pathlib import Path

import preprocess_data
from data import packing
from tests.chunks import on_the_third_move

whom = sys.argv[1]


def strike():
    if whom == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
    else:
        os.killpg(0, signal.SIGKILL)


def only_tars(move):
    """`move` at files that become tars, else the usual one; a packed clip is moved as one, then its metadata."""
    usual = Path.replace
    return lambda path, target: move(path, target) if target.suffix == ".tar" else usual(path, target)


if whom in ("tars", "packing"):
    Path.replace = only_tars(on_the_third_move(Path.replace, strike))
else:
    Path.rename = on_the_third_move(Path.rename, strike)
(packing.main if whom == "packing" else preprocess_data.main)(sys.argv[2:])

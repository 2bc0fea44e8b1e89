"""Where scenes come from, one file a source.

An importer writes all scenes of a folder with a `SceneWriter`, in as many processes as it is given, and says what
became of them. It raises InputError for a folder that holds none, and OSError where the disk is full or not writable.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from data.importers import re10k, re10k_raw
from data.importers.re10k_chunks import has_chunks
from data.writing import ImportResult, SceneWriter
from utils.errors import InputError
from utils.text import counted, printable

log = logging.getLogger("lvsm")

Importer = Callable[[Path, SceneWriter, int], ImportResult]

# By the name that `preprocess_data.py --source` takes.
IMPORTERS: dict[str, Importer] = {
    "re10k": re10k.import_folder,
    "re10k_raw": re10k_raw.import_folder,
}


def find_source(folder: Path) -> str:
    """Which of them reads the folder of a split: RealEstate10K in chunks, or raw.

    Raises:
        InputError: it holds neither.
    """
    name = printable(str(folder))
    if has_chunks(folder):
        log.info("%s holds RealEstate10K in chunks", name)
        return "re10k"
    files = re10k_raw.find_camera_files(folder)
    if files:
        log.info("%s holds raw RealEstate10K: %s", name, counted(len(files), "camera file"))
        return "re10k_raw"
    raise InputError(
        f"no RealEstate10K in {name}, neither chunks (*.torch, index.json) nor camera files (*.txt: the address of a "
        "video, then lines of a timestamp and 18 numbers): --base_path must hold the folders train and test"
    )

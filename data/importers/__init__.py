"""Where scenes come from, one file a source.

An importer writes all scenes of a folder with a `SceneWriter`, in as many processes as it is given, and says what
became of them. It raises InputError for a folder that holds none, and OSError where the disk is full or not writable.
"""

from collections.abc import Callable
from pathlib import Path

from data.importers import re10k
from data.writing import ImportResult, SceneWriter

Importer = Callable[[Path, SceneWriter, int], ImportResult]

# By the name that `preprocess_data.py --source` takes.
IMPORTERS: dict[str, Importer] = {
    "re10k": re10k.import_folder,
}

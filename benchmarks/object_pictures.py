"""The picture of docs/data.md: procedural objects as their cameras see them, on white.

python -m benchmarks.object_pictures --output docs/objects.jpg
"""

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.photo_pictures import rows
from data.synthetic.object_set import ObjectSpec, PhotographedObject
from data.transforms import on_background
from utils.cli import path_argument, run_main
from utils.files import atomic_path

_QUALITY = 82
# Views of an object, and objects in a line.
_VIEWS = 4
_BESIDE = 2


def views_on_white(spec: ObjectSpec) -> list[UInt8[np.ndarray, "h w 3"]]:
    """All pictures of an object."""
    thing = PhotographedObject(spec)
    return [np.asarray(on_background(Image.fromarray(thing.picture(frame)))) for frame in range(spec.frames)]


def main(argv: Sequence[str]) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=path_argument, required=True, help="JPEG file to write")
    parser.add_argument("--seed", type=int, default=11, help="of the objects")
    parser.add_argument("--lines", type=int, default=6, help="lines of two objects each")
    parser.add_argument("--size", type=int, default=112, help="pixels of a view")
    given = parser.parse_args(argv)
    spec = partial(ObjectSpec, given.seed, "test", frames=_VIEWS, size=given.size)
    lines = [
        [view for number in range(_BESIDE) for view in views_on_white(spec(_BESIDE * line + number))]
        for line in range(given.lines)
    ]
    with atomic_path(given.output) as temporary:
        rows(lines).save(temporary, "jpeg", quality=_QUALITY)


if __name__ == "__main__":
    run_main(main)

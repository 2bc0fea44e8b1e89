"""Synthetic RealEstate10K: walks through procedural rooms with exact cameras; nothing need be downloaded.

    python -m data.synthetic --output_dir DIR --train_scenes 64 --test_scenes 8 --frames 60

writes DIR/{train,test}/NNNNNN.torch with an index.json beside them, in the chunk format of pixelSplat, and
DIR/evaluation_index.json for the test clips. In Python, without files:

    room = make_scene(0)
    c2w, intrinsics = make_path(room, 0, frames=60)
    image = render(room.faces, Pinhole(c2w[0], to_pixels(intrinsics, 640, 360), 640, 360))

With `--kind objects` it writes scenes of objects instead, RGBA pictures from all around them (object_set.py).

Rooms are built in room.py from what is in furniture.py and textures.py, paths in path.py, pictures in rendering.py, and
clips of them in clips.py.
"""

from data.synthetic.clips import Clip, ClipSpec, SetConfig, make_clip, write_re10k
from data.synthetic.path import make_path, to_pixels
from data.synthetic.rendering import Pinhole, cast, render
from data.synthetic.room import Room, make_scene

__all__ = [
    "Clip",
    "ClipSpec",
    "Pinhole",
    "Room",
    "SetConfig",
    "cast",
    "make_clip",
    "make_path",
    "make_scene",
    "render",
    "to_pixels",
    "write_re10k",
]

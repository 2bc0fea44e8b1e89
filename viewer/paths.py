"""Camera paths that a person lays: keyframes, a smooth path through them, the file that `traj_type=through` reads."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from data.scene import read_cameras
from data.transforms import open_image
from evaluation.renderer import Renderer
from geometry.cameras import Cameras
from geometry.paths import VideoConfig, camera_path, spline_path
from utils.errors import InputError
from utils.files import write_json
from viewer.session import Session

# Bytes of an uploaded path: 10,000 cameras take 5 MB.
_LARGEST_FILE = 16 << 20
_MOST_CAMERAS = 100_000
# What an uploaded file is called here and in messages.
_UPLOADED = "uploaded.json"


def stored_size(session: Session) -> tuple[int, int]:
    """Width and height in pixels of the images in the scene's folder."""
    with open_image(session.scene.image_path(session.inputs[0])) as image:
        return image.size


def stored_camera(session: Session, camera: Cameras) -> Cameras:
    """A camera [] of the model as one [1] of the scene's file, in double precision."""
    w2c, fxfycxcy = session.transform.inverse(camera[None])
    width, height = stored_size(session)
    return Cameras(torch.from_numpy(np.linalg.inv(w2c)), torch.from_numpy(fxfycxcy), height, width)


def join(cameras: Sequence[Cameras]) -> Cameras:
    """Cameras [n] from single ones [1]."""
    c2w = torch.cat([camera.c2w for camera in cameras])
    return Cameras(c2w, torch.cat([camera.fxfycxcy for camera in cameras]), cameras[0].height, cameras[0].width)


def model_cameras(session: Session, cameras: Cameras) -> Cameras:
    """Cameras [n] of the scene's file as those of the model."""
    return session.transform(np.linalg.inv(cameras.c2w.numpy()), cameras.fxfycxcy.numpy())


def path_content(scene: str, cameras: Cameras) -> dict[str, Any]:
    """What a file of cameras [n] of a scene's file holds."""
    w2c = np.linalg.inv(cameras.c2w.numpy())
    frames = [
        {"fxfycxcy": fxfycxcy.tolist(), "w2c": pose.tolist()}
        for pose, fxfycxcy in zip(w2c, cameras.fxfycxcy.numpy(), strict=True)
    ]
    return {"scene_name": scene, "frames": frames}


def new_file(folder: Path, scene: str, suffix: str) -> Path:
    """A name in `folder` that nobody has yet."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return folder / f"{scene}-{stamp}-{int(now * 1000) % 1000:03}{suffix}"


def write_path(folder: Path, session: Session, keyframes: Sequence[Cameras], num_frames: int) -> Path:
    """Write the smooth path through keyframes [1] of the scene's file, a camera a frame of its film."""
    path = spline_path(join(keyframes), num_frames)
    file = new_file(folder, session.scene.name, ".json")
    write_json(file, path_content(session.scene.name, path))
    return file


def parse_path(content: bytes, session: Session) -> list[Cameras]:
    """The cameras [1] of a file that a client sent, which any list of cameras may be.

    Raises:
        InputError: it is no such list, of another scene, or its cameras are implausible for the scene's images.
    """
    if len(content) > _LARGEST_FILE:
        raise InputError(f"the file has {len(content):,} bytes, more than a camera path: choose another")
    size = stored_size(session)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / _UPLOADED
        file.write_bytes(content)
        try:
            w2c, fxfycxcy = read_cameras(file, size)
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}/", "")) from None
    if len(w2c) > _MOST_CAMERAS:
        raise InputError(f"the file has {len(w2c):,} cameras, more than {_MOST_CAMERAS:,}: choose another")
    name = json.loads(content).get("scene_name")
    if name not in (None, session.scene.name):
        raise InputError(f"the cameras of the file are of another scene than {session.scene.name}: choose another")
    cameras = Cameras(torch.from_numpy(np.linalg.inv(w2c)), torch.from_numpy(fxfycxcy), size[1], size[0])
    return [cameras[[number]] for number in range(len(w2c))]


def film_frames(renderer: Renderer, session: Session, file: Path) -> tuple[Iterator[UInt8[np.ndarray, "c h w 3"]], int]:
    """The film of a path in a file, and its number of frames: an evaluation renders the same by `traj_type=through`.

    Its `num_frames` is the number of cameras in the file, and `loop_video` is false.
    """
    saved = session.transform(*read_cameras(file, stored_size(session)))
    count = len(saved.c2w)
    cfg = VideoConfig(traj_type="through", num_frames=max(2, count), loop_video=False, cameras_path=str(file))
    path = camera_path(cfg, session.views.cameras.to(renderer.device), saved)
    return renderer.film(session.encoded, path[None]), cfg.num_frames

"""RealEstate10K as it is distributed: pixelSplat's chunks of clips (spec section 10)."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from utils.errors import InputError
from utils.files import check_plain_name, read_json


@dataclass(frozen=True)
class Clip:
    """One clip of a chunk.

    Attributes:
        key: its name, safe as a path component.
        cameras: rows [n, 18]: fx, fy, cx, cy as shares of width and height, two zeros, w2c 3x4 row-major.
        images: undecoded JPEG bytes, one a frame.
    """

    key: str
    cameras: Float[np.ndarray, "n 18"]
    images: list[bytes]

    def w2c(self) -> Float[np.ndarray, "n 4 4"]:
        """World-to-camera matrices, OpenCV axes."""
        matrices = np.tile(np.eye(4), (len(self.cameras), 1, 1))
        matrices[:, :3] = self.cameras[:, 6:].reshape(-1, 3, 4)
        return matrices


def chunk_files(folder: Path) -> dict[Path, list[str] | None]:
    """The chunks of a split, in order, each with the keys that `index.json` gives it; None without an index.

    Raises:
        InputError: the folder holds no chunk, or its index is not an index.
    """
    files, index_path = sorted(folder.glob("*.torch")), folder / "index.json"
    if not files and not index_path.exists():
        raise InputError(f"no chunks (*.torch) in {folder}: --base_path must hold the folders train and test")
    if not index_path.exists():
        return dict.fromkeys(files)
    index = read_json(index_path, "chunk index")
    if not isinstance(index, dict):
        raise InputError(f"{index_path} is not a chunk index: no object at the top")
    chunks: dict[Path, list[str]] = {path: [] for path in files}
    for key, name in index.items():
        chunks.setdefault(folder / check_plain_name(name, str(index_path)), []).append(key)
    return dict(chunks)


def read_chunk(path: Path) -> list[Any]:
    """The undecoded records of a chunk.

    Raises:
        InputError: the file is missing, truncated or not a chunk.
    """
    try:
        records = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"chunk not found: {path}") from None
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:120]
        raise InputError(f"chunk cannot be read (fetch it again): {path}: {reason}") from None
    if not isinstance(records, list):
        raise InputError(f"not a chunk: {path}: it holds no list of clips")
    return records


def parse_clip(record: Any, where: str) -> Clip:
    """Check a record and turn it into a clip.

    Raises:
        InputError: the key is not a plain name, or fields are missing or of the wrong shape.
    """
    if not isinstance(record, dict) or not {"key", "cameras", "images"} <= record.keys():
        raise InputError(f"{where}: a clip needs key, cameras and images")
    key = check_plain_name(record["key"], where)
    cameras, images = record["cameras"], record["images"]
    if not isinstance(images, list):
        raise InputError(f"{where}: clip {key}: images must be a list")
    if not isinstance(cameras, torch.Tensor) or cameras.shape != (len(images), 18) or not len(images):
        raise InputError(f"{where}: clip {key}: cameras must be [{len(images)}, 18], one row a frame")
    if not all(isinstance(image, torch.Tensor) and image.dtype == torch.uint8 for image in images):
        raise InputError(f"{where}: clip {key}: images must be uint8 tensors of JPEG bytes")
    return Clip(key, cameras.detach().double().numpy(), [image.numpy().tobytes() for image in images])


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a whole JPEG.

    The header is read and the end marker looked for; pixels are decoded only if the marker is not the end.

    Raises:
        IMAGE_ERRORS: the bytes are not an image, or one cut short.
    """
    with Image.open(BytesIO(data)) as image:
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            image.load()
        return image.size


def missing_keys(records: list[Any], promised: list[str]) -> Iterator[str]:
    """Keys that the index promises and the chunk does not hold."""
    present = [record.get("key") for record in records if isinstance(record, dict)]
    return (key for key in promised if key not in present)

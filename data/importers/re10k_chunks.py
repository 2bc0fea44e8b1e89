"""RealEstate10K as it is distributed, in pixelSplat's chunks of clips: the one reader and the one writer of them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from data.importers.re10k_cameras import w2c_of_rows
from data.transforms import MAX_IMAGE_BYTES
from utils.errors import DamagedError, InputError
from utils.files import atomic_path, check_plain_name, is_plain_name, read_json, write_json
from utils.text import printable, shown
from utils.torch_file import Foreign, StoredTensor, TorchFile, open_torch_file

# More frames than a clip has, 18 numbers each: RealEstate10K's longest has some hundreds.
_MOST_FRAMES = 1_000_000
# Says which chunk holds a clip.
_INDEX = "index.json"


@dataclass(frozen=True)
class Clip:
    """One clip of a chunk.

    Attributes:
        key: its name, safe as a path component.
        cameras: rows [n, 18] as in `re10k_cameras`.
        images: undecoded JPEG bytes, one a frame, still in the file; or whatever stands in their place.
    """

    key: str
    cameras: Float[np.ndarray, "n 18"]
    images: list[Any]

    def w2c(self) -> Float[np.ndarray, "n 4 4"]:
        """World-to-camera matrices, OpenCV axes."""
        return w2c_of_rows(self.cameras)

    def image(self, frame: int) -> bytes:
        """The undecoded bytes of a frame.

        Raises:
            ValueError: what stands there is not the content of an image file.
            DamagedError: the chunk does not hold what was written.
        """
        image = self.images[frame]
        if isinstance(image, bytes):
            return image
        if not isinstance(image, StoredTensor) or image.dtype != torch.uint8:
            raise ValueError(f"{_kind(image)} stands in place of a uint8 tensor of JPEG bytes")
        if image.nbytes > min(image.stored, MAX_IMAGE_BYTES):
            raise ValueError(f"{image.nbytes} bytes, of which {image.stored} are stored, are no image")
        return image.read().numpy().tobytes()

    def nbytes(self) -> int:
        """Bytes of all frames, but for those that are no images."""
        return sum(map(_nbytes, self.images))


def _nbytes(image: Any) -> int:
    if isinstance(image, StoredTensor):
        return min(image.nbytes, image.stored)
    return len(image) if isinstance(image, bytes) else 0


def _kind(value: Any) -> str:
    """What stands in a chunk, for messages."""
    if isinstance(value, StoredTensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    return f"a value of type {printable(value.kind, 80) if isinstance(value, Foreign) else type(value).__name__}"


def chunk_files(folder: Path) -> dict[Path, list[str] | None]:
    """The chunks of a split, in order, each with the keys that `index.json` gives it; None without an index.

    Raises:
        InputError: the folder holds no chunk, or its index is not an index.
    """
    files = _chunks_in(folder)
    index_path = folder / _INDEX
    if not has_chunks(folder):
        raise InputError(f"no chunks (*.torch) in {folder}: --base_path must hold the folders train and test")
    if not _has_index(folder):
        return dict.fromkeys(files)
    index = read_json(index_path, "chunk index")
    if not isinstance(index, dict):
        raise InputError(f"{index_path} is not a chunk index: no object at the top")
    chunks: dict[Path, list[str]] = {path: [] for path in files}
    for key, name in index.items():
        chunks.setdefault(folder / check_plain_name(name, f"{index_path}: clip {shown(key)}"), []).append(key)
    return dict(chunks)


def has_chunks(folder: Path) -> bool:
    """Whether a folder holds chunks, or an index of some."""
    return _has_index(folder) or bool(_chunks_in(folder))


def _chunks_in(folder: Path) -> list[Path]:
    # Hidden ones are no chunks: a Mac leaves `._NAME` beside every file that it copies.
    return sorted(folder.glob("[!.]*.torch"))


def _has_index(folder: Path) -> bool:
    path = folder / _INDEX
    # A link that leads nowhere is meant to be an index, too.
    return path.exists() or path.is_symlink()


@contextmanager
def open_chunk(path: Path) -> Iterator[TorchFile]:
    """Open a chunk; its content is a list of undecoded records.

    Raises:
        InputError: the file is missing, truncated, unpacks beyond reason or is not a chunk.
    """
    name = printable(str(path))
    # Only errors of opening are told here; those inside are of clips, or of writing.
    with ExitStack() as stack:
        try:
            chunk = stack.enter_context(open_torch_file(path))
        except FileNotFoundError:
            raise InputError(f"chunk not found: {name}") from None
        except (OSError, DamagedError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"chunk cannot be read (fetch it again): {name}: {printable(str(reason), 200)}") from None
        if not isinstance(chunk.content, list):
            raise InputError(f"not a chunk: {name}: it holds no list of clips")
        yield chunk


def clip_key(record: Any) -> str | None:
    """The name of a record's clip; None for a record that has none."""
    key = record.get("key") if isinstance(record, dict) else None
    return key if is_plain_name(key) else None


def parse_clip(record: Any) -> Clip:
    """Check a record and turn it into a clip; its images are looked at one by one later.

    Raises:
        InputError: the key is not a plain name, or fields are missing or of the wrong kind or shape.
        DamagedError: the chunk does not hold what was written.
    """
    if not isinstance(record, dict) or not {"key", "cameras", "images"} <= record.keys():
        raise InputError("a clip needs key, cameras and images")
    key = check_plain_name(record["key"], "key")
    images = record["images"]
    cameras = record["cameras"]
    if not isinstance(images, list):
        raise InputError(f"images must be a list; {_kind(images)} stands in its place")
    if not 1 <= len(images) <= _MOST_FRAMES:
        raise InputError(f"it has {len(images)} frames, not 1 to {_MOST_FRAMES}; images and cameras have one a frame")
    if not isinstance(cameras, StoredTensor) or not cameras.dtype.is_floating_point:
        raise InputError(f"cameras must be a tensor of floating-point numbers; {_kind(cameras)} stands in its place")
    if cameras.shape != (len(images), 18):
        raise InputError(f"cameras must be [{len(images)}, 18], one row a frame, not {list(cameras.shape)}")
    return Clip(key, cameras.read().double().numpy(), images)


def missing_keys(records: list[Any], promised: list[str]) -> Iterator[str]:
    """Keys that the index promises and the chunk does not hold."""
    present = {key for record in records if isinstance(record, dict) and isinstance(key := record.get("key"), str)}
    return (key for key in promised if key not in present)


def clip_record(
    key: str,
    cameras: Float[np.ndarray, "n 18"],
    images: Sequence[bytes],
    timestamps: Int64[np.ndarray, " n"] | None = None,
    url: str = "",
) -> dict[str, Any]:
    """A clip as chunks hold it.

    Args:
        cameras: rows as `Clip.cameras` has them; stored as float32.
        images: the content of JPEG files.
        timestamps: microseconds; the frames' numbers if not given.
    """
    stamps = np.arange(len(images)) if timestamps is None else timestamps
    return {
        "url": url,
        "timestamps": torch.from_numpy(stamps),
        "cameras": torch.from_numpy(cameras.astype(np.float32)),
        "images": [torch.from_numpy(np.frombuffer(image, np.uint8).copy()) for image in images],
        "key": key,
    }


def write_chunk(path: Path, records: list[Any]) -> None:
    """Write one chunk, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(records, temporary)


def write_split(folder: Path, records: Iterable[dict[str, Any]], clips_per_chunk: int) -> None:
    """Write clips as the chunks of a split; the index comes last, and not at all without clips."""
    left = iter(records)
    index: dict[str, str] = {}
    for number in count():
        chunk = list(islice(left, clips_per_chunk))
        if not chunk:
            break
        name = chunk_name(number)
        write_chunk(folder / name, chunk)
        index |= {record["key"]: name for record in chunk}
    if index:
        write_json(folder / _INDEX, index)


def chunk_name(number: int) -> str:
    """What a split's chunk of that number is called."""
    return f"{number:06d}.torch"

"""What tests of preprocessing need: clips, chunks of them, and what became of them."""

import hashlib
import json
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import preprocess_data
from data.importers.re10k_chunks import chunk_name, clip_record, write_chunk
from data.scene import read_scene, read_scene_list
from tests.messages import check_names
from utils.errors import InputError
from utils.text import printable

CHUNKS = tuple(map(chunk_name, range(4)))


def jpeg(width=64, height=36, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def wide_png(pixels, color, chunks=()):
    """A PNG file of 16 bits a channel, which Pillow writes for gray alone."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def damaged_inside():
    """A JPEG file with a sound header and end that no decoder takes: it has lost its quantization tables."""
    return jpeg(seed=1).replace(b"\xff\xdb", b"\xff\xe5")


def as_tensor(data):
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def camera_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, 18), dtype=np.float32)
    rows[:, :4] = rng.uniform(0.4, 0.9, (count, 4))
    poses = rows[:, 6:].reshape(count, 3, 4)
    poses[..., :3] = Rotation.from_rotvec(rng.uniform(-1, 1, (count, 3))).as_matrix()
    poses[..., 3] = rng.uniform(-2, 2, (count, 3))
    return torch.from_numpy(rows)


def make_clip(key, frames=3, **changes):
    """A record as pixelSplat stores it; `images` are JPEG bytes, or whatever stands in a damaged chunk."""
    if isinstance(changes.get("images"), list):
        images = changes.pop("images")
    else:
        images = [jpeg(seed=number) for number in range(frames)]
    stamps = np.arange(len(images)) * 33_000
    record = clip_record("", camera_rows(len(images)).numpy(), images, stamps, "https://example.org/v")
    return record | {"key": key} | changes


def write_chunks(root, *chunks, **extra_promises):
    """Chunks and their index under `root`; `extra_promises` are keys that the index names in the first chunk."""
    folder = root / "re10k" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    index = dict.fromkeys(extra_promises, CHUNKS[0])
    for name, records in zip(CHUNKS, chunks, strict=False):
        write_chunk(folder / name, records)
        index |= {record["key"]: name for record in records if isinstance(record["key"], str)}
    (folder / "index.json").write_text(json.dumps(index))
    return folder.parent


def without_index(base):
    (base / "train" / "index.json").unlink()
    return base


def preprocess(base, out, *more, processes=1):
    arguments = ["--base_path", base, "--output_dir", out, "--mode", "train", "--num_processes", processes, *more]
    preprocess_data.main([str(argument) for argument in arguments])


def preprocess_with_losses(base, out, *more, processes=1):
    """Run, expect losses, and return lost.json, which must say of everything lost what it was and why."""
    with pytest.raises(InputError) as caught:
        preprocess(base, out, *more, processes=processes)
    lost = json.loads((out / "train" / "lost.json").read_text())
    check_names(str(caught.value), len(lost), printable(str(out / "train" / "lost.json")))
    return lost


def contents(folder):
    """Every file below a folder, hidden ones too, with the digest of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def scene_of(out, key):
    return read_scene(out / "train" / "metadata" / f"{key}.json")


def names_in(out):
    """The scenes that the list of a run names."""
    return [path.stem for path in read_scene_list(out / "train" / "full_list.txt")]


def on_the_third_move(move, deed):
    """`move` (Path.rename, which moves frame folders, or Path.replace, metadata files) with `deed` before the third."""
    moved = []

    def strike(path, target):
        moved.append(path)
        if len(moved) == 3:
            deed()
        return move(path, target)

    return strike

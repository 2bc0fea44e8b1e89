"""What several tests need: small models, cameras and scenes."""

import functools
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from geometry.cameras import Cameras, Views
from geometry.image_size import ImageSize
from geometry.orbit import Orbit
from model import LVSM, ModelConfig, build_model, find_variant
from model.execution import ExecutionConfig
from model.lvsm import TokenizerConfig
from model.transformer import TransformerConfig

ROOT = Path(__file__).resolve().parent.parent
# Folders and scripts of the product.
ROOMS = ("geometry", "model", "data", "training", "evaluation", "viewer", "utils")
DOORS = ("train", "inference", "preprocess_data", "view")
PLAIN = ExecutionConfig(grad_checkpoint_every=0, compile="off")
# Seconds that anything may take, on however busy a machine: ten times the usual and more.
PATIENCE = 1800
PUBLISHED = ("decoder_only", "encoder_decoder")
VARIANTS = (*PUBLISHED, "prefix", "cross")
# For `small_model`: every variant without cameras in attention and with them.
MODELS = (*VARIANTS, *(f"{variant}+prope" for variant in VARIANTS))
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")
# Of the toy set; frame 12 of scene0 is both input and target.
INDEX = {f"scene{i}": {"context": [0, 12], "target": [4, 12 - i, 9]} for i in range(3)} | {"unused": None}

# out, in of the convolutions of vgg19().features[:32], by their index there.
CONVOLUTIONS = {
    0: (64, 3),
    2: (64, 64),
    5: (128, 64),
    7: (128, 128),
    10: (256, 128),
    12: (256, 256),
    14: (256, 256),
    16: (256, 256),
    19: (512, 256),
    21: (512, 512),
    23: (512, 512),
    25: (512, 512),
    28: (512, 512),
    30: (512, 512),
}


def drawn_norm(c: int) -> nn.RMSNorm:
    """A norm of queries or keys as models have it, of weights like trained ones."""
    norm = nn.RMSNorm(c, eps=1e-5)
    nn.init.normal_(norm.weight, 1, 0.3)
    return norm


def class_name(variant: str) -> str:
    """The published name of a published variant, the short one of another."""
    return f"model.LVSM_scene_{variant}.Images2LatentScene" if variant in PUBLISHED else variant


def small_config(variant: str, rays: str = "auto", image_size: ImageSize = 16, **transformer) -> ModelConfig:
    """Of one of `MODELS`."""
    variant, _, encoding = variant.partition("+")
    transformer = {"camera_encoding": encoding or "auto"} | transformer
    sizes = {"d": 64, "d_head": 32, "n_layer": 3, "encoder_n_layer": 2, "decoder_n_layer": 2, "n_latent_vectors": 12}
    return ModelConfig(
        class_name=class_name(variant),
        image_tokenizer=TokenizerConfig(image_size=image_size, patch_size=4),
        target_pose_tokenizer=TokenizerConfig(image_size=image_size, patch_size=4, in_channels=6),
        transformer=TransformerConfig(**(sizes | transformer)),
        rays=rays,
    )


def small_model(variant: str, seed: int = 0, execution: ExecutionConfig = PLAIN, **sizes) -> LVSM:
    """A small model, of one of `MODELS`, whose weights are large enough that every part of it matters."""
    torch.manual_seed(seed)
    model = build_model(small_config(variant, **sizes), execution)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 1.0, std=0.15)
    return model.eval()


class Count(TorchDispatchMode):
    """Counts the operations that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def forget_until_undone(patch, room, *names: str) -> None:
    """Have cached functions of a module start anew, and know what they knew once `patch` is undone."""
    for name in names:
        patch.setattr(room, name, functools.cache(getattr(room, name).__wrapped__))


def random_cameras(*shape: int, height: int = 16, width: int = 24, seed: int = 0) -> Cameras:
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4, dtype=np.float32), (*shape, 1, 1))
    turns = Rotation.from_rotvec(rng.uniform(-0.6, 0.6, (int(np.prod(shape)), 3))).as_matrix()
    c2w[..., :3, :3] = turns.reshape(*shape, 3, 3)
    c2w[..., :3, 3] = rng.uniform(-0.7, 0.7, (*shape, 3))
    fxfycxcy = np.array([width * 0.9, height * 1.4, width * 0.52, height * 0.45], dtype=np.float32)
    fxfycxcy = fxfycxcy * rng.uniform(0.9, 1.1, (*shape, 4)).astype(np.float32)
    return Cameras(torch.from_numpy(c2w), torch.from_numpy(fxfycxcy), height, width)


def random_views(*shape: int, seed: int = 0, **size: int) -> Views:
    cameras = random_cameras(*shape, seed=seed, **size)
    generator = torch.Generator().manual_seed(seed)
    return Views(torch.rand(*shape, 3, cameras.height, cameras.width, generator=generator), cameras)


@functools.cache
def _toy_images(frames: int, size: tuple[int, int], seed: int, alpha: bool) -> list[bytes]:
    """The files of a toy scene's images, made once for all tests."""
    wall = np.random.default_rng(seed).integers(20, 140, (4, 6 + frames, 3), dtype=np.uint8)
    files = []
    for number in range(frames):
        pixels = Image.fromarray(wall[:, number : number + 6]).resize(size)
        if alpha:
            pixels.putalpha(soft_hole(*size))
        file = io.BytesIO()
        pixels.save(file, "png" if alpha else "jpeg", quality=95)
        files.append(file.getvalue())
    return files


def write_toy_scene(
    root: Path, name: str, frames: int, size: tuple[int, int] = (48, 32), seed: int = 0, alpha: bool = False
) -> Path:
    """A scene on disk, a camera that slides along a wall of dark coloured patches; returns its metadata file.

    With `alpha` its images are PNG, and the wall is behind a round hole with a soft edge.
    """
    folder = root / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, content in enumerate(_toy_images(frames, size, seed, alpha)):
        image = folder / f"{number:05d}.{'png' if alpha else 'jpg'}"
        image.write_bytes(content)
        w2c = np.eye(4)
        w2c[0, 3] = -0.1 * number
        fxfycxcy = [40.0, 40.0, size[0] / 2, size[1] / 2]
        records.append({"image_path": f"../images/{name}/{image.name}", "fxfycxcy": fxfycxcy, "w2c": w2c.tolist()})
    path = root / "metadata" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"scene_name": name, "frames": records}))
    return path


def write_toy_object(root: Path, name: str, frames: int, seed: int = 0) -> Path:
    """A scene on disk as of an object: images with alpha, cameras on a circle around the origin, z upwards."""
    path = write_toy_scene(root, name, frames, (32, 32), seed, alpha=True)
    record = json.loads(path.read_text())
    circle = Orbit(np.zeros(3), np.array([0.0, 0, 1])).circle(np.array([1.0, 0, 0]), 2.7, 0.4, frames + 1)
    for frame, w2c in zip(record["frames"], np.linalg.inv(circle[:-1]), strict=True):
        frame["w2c"] = w2c.tolist()
    path.write_text(json.dumps(record))
    return path


def soft_hole(width: int, height: int) -> Image.Image:
    """Alpha that falls from 255 in the middle to 0 near the sides."""
    x = (np.arange(width) + 0.5) * 2 / width - 1
    y = (np.arange(height)[:, None] + 0.5) * 2 / height - 1
    return Image.fromarray((255 * np.clip(1.6 - 2 * np.hypot(x, y), 0, 1)).astype(np.uint8))


def write_toy_set(root: Path, scenes: int = 3, frames: int = 14, alpha: bool = False) -> Path:
    """A few toy scenes; returns their list."""
    names = [write_toy_scene(root, f"scene{i}", frames, seed=i, alpha=alpha).name for i in range(scenes)]
    path = root / "full_list.txt"
    path.write_text("".join(f"metadata/{name}\n" for name in names))
    return path


def write_run(
    folder: Path, psnrs: Mapping[str, float], leave_out: Sequence[str] = (), views: Sequence[int] = (12, 30), **run
) -> Path:
    """The numbers of an evaluation, as inference.py writes them, made up from a PSNR per scene; `run` is its origin."""
    scenes = {}
    for name, psnr in psnrs.items():
        numbers = {"psnr": psnr, "ssim": psnr / 50, "lpips": 1 - psnr / 50}
        scenes[name] = {metric: value for metric, value in numbers.items() if metric not in leave_out}
        per_view = [{"view": view, **scenes[name]} for view in views]
        content = {"summary": {"scene_name": name, **scenes[name]}, "per_view": per_view, "context": [3, 40]}
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "metrics.json").write_text(json.dumps(content))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"averages": {}, "provenance": run, "scenes": scenes}))
    return folder


def small_overrides(variant: str) -> list[str]:
    """Overrides that shrink a published configuration to the size of a test."""
    lengths = {"n_layer": 2, "encoder_n_layer": 1, "decoder_n_layer": 1, "n_latent_vectors": 8}
    own = [f"{key}={lengths[key]}" for key in find_variant(variant).lengths]
    sizes = ["d=64", "d_head=32", *own]
    tokenizers = [f"model.{t}.{s}" for t in ("image_tokenizer", "target_pose_tokenizer") for s in ("image_size=16",)]
    training = [
        "view_selector.min_frame_dist=8",
        "view_selector.max_frame_dist=13",
        "batch_size_per_gpu=2",
        "total_batch_size=0",
        "perceptual_loss_weight=0",
        "use_amp=false",
        "num_workers=0",
        "num_threads=1",
        "train_steps=2",
        "warmup=0",
        "print_every=1",
    ]
    return [f"model.transformer.{s}" for s in sizes] + tokenizers + [f"training.{t}" for t in training]

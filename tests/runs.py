"""Command lines of small runs, and what the runs leave behind."""

import csv
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import train
from model import LVSM, build_model
from model.function import function_of
from model.weights import published_state
from setup import load_config
from tests.helpers import PATIENCE, ROOT, small_overrides
from training.trainer import Trainer
from utils.checkpoint import checkpoint_name, read_checkpoint, write_checkpoint
from utils.distributed import process_group
from utils.media import write_video


def training_command(scenes: Path, run_folder: Path, *overrides: str, variant: str = "decoder_only") -> list[str]:
    paths = [f"training.dataset_path={scenes}", f"training.checkpoint_dir={run_folder}"]
    config = ROOT / "configs" / f"LVSM_scene_{variant}.yaml"
    return ["--config", str(config), *small_overrides(variant), *paths, *overrides]


def evaluation_command(place: Path, *overrides: str, variant: str = "decoder_only", out: str = "out") -> list[str]:
    values = [
        f"training.dataset_path={place}/scenes/full_list.txt",
        f"training.checkpoint_dir={place}/checkpoints",
        f"inference.view_idx_file_path={place}/index.json",
        f"inference_out_dir={place}/{out}",
        "inference.metrics=[psnr,ssim]",
    ]
    config = ROOT / "configs" / f"LVSM_scene_{variant}.yaml"
    return ["--config", str(config), *small_overrides(variant), *values, *overrides]


def build(scenes: Path, tmp_path: Path, *overrides: str) -> Trainer:
    """The trainer of a small run."""
    config, _ = load_config(training_command(scenes, tmp_path / "run", *overrides))
    with process_group() as process:
        return train.build_trainer(config, process)


def save_model(place: Path, variant: str = "decoder_only") -> LVSM:
    """A checkpoint of random weights, large enough that views differ."""
    torch.manual_seed(0)
    config, _ = load_config(evaluation_command(place, variant=variant))
    model = build_model(config.model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    content = {"model": published_state(model), "function": asdict(function_of(model))}
    write_checkpoint(place / "checkpoints", 1, content)
    return model.eval()


def keep_frames(patch: pytest.MonkeyPatch) -> dict[Path, np.ndarray]:
    """The frames [n h w 3] of every video from now on by its file, as evaluation hands them to the encoder.

    They come in no order: several threads write videos.
    Of equal frames the encoder makes equal bytes nearly always, on a busy machine not always.
    """
    videos: dict[Path, np.ndarray] = {}

    def write(path: Path, chunks: Iterable[np.ndarray], fps: int) -> None:
        frames = list(chunks)
        videos[path] = np.concatenate(frames)
        write_video(path, frames, fps)

    patch.setattr("evaluation.evaluator.write_video", write)
    return videos


def read_video(path: Path) -> tuple[list[np.ndarray], tuple[Any, ...]]:
    """Frames [h w 3], and the stream's codec, pixels, rate, width and height."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, (stream.codec_context.name, stream.pix_fmt, stream.average_rate, stream.width, stream.height)


def weights(run_folder: Path, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_folder / checkpoint_name(step))["model"]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def scores(place: Path, out: str) -> dict[str, float]:
    """The PSNR of every scene of an evaluation."""
    return {row["scene_name"]: float(row["psnr"]) for row in csv.DictReader((place / out / "summary.csv").open())}


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)

"""A viewer of toy scenes, as the tests of its server and of its window start it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from data.dataset import DataConfig, ViewLoader
from data.scene import read_scene_list
from evaluation.renderer import Renderer
from geometry.paths import VideoConfig
from tests.helpers import small_model, write_toy_set
from utils.precision import PrecisionConfig
from viewer.config import ViewerConfig
from viewer.server import Served
from viewer.session import Sessions


@contextmanager
def toy_viewer(place: Path, model: str, listed: Path | None = None) -> Iterator[Served]:
    """A viewer of a small random model (`helpers.small_model`) and three toy scenes, on any port that is free.

    Args:
        listed: a list of scenes to show instead.
    """
    scenes = read_scene_list(listed or write_toy_set(place / "scenes"))
    renderer = Renderer(small_model(model), PrecisionConfig(use_amp=False), torch.device("cpu"))
    sessions = Sessions(renderer, ViewLoader(DataConfig(), 16, 4))
    cfg = ViewerConfig(port=0, input_frames=[0, 12], out_dir=str(place / "out"), jpeg_quality=100)
    with Served(cfg, VideoConfig(fps=10), sessions, scenes) as served:
        yield served

"""From a pose to its picture: a viewer on this machine, and a client that moves.

    python -m benchmarks.viewer [--config CONFIG ...] [key=value ...]

Fresh weights of a configuration's size, and a scene of noise. Each row is a configuration: milliseconds from sending a
pose to having its picture as a JPEG (median, 95th percentile) with the model's time in it; pictures a second while a
pose comes every 20 ms, as a browser sends them.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import add_configs, benchmark_parser, chosen_configs, positive, release_memory, show
from benchmarks.render import seeded_renderer
from data.dataset import ViewLoader
from data.scene import Scene, write_scene
from geometry.image_size import ImageSize, sides
from setup import Config, set_threads_and_precision, with_fixed_background
from utils.cli import run_main
from utils.distributed import process_group
from viewer.config import ViewerConfig
from viewer.headless import HeadlessClient
from viewer.server import SPARED_CORES, Served
from viewer.session import Sessions

# Seconds between two poses of a browser.
_POSE_EVERY = 0.02
# Seconds that a picture may take.
_PATIENCE = 600.0
_INPUTS = 2
_WARM_UP = 5


def write_noise(folder: Path, size: ImageSize, frames: int = _INPUTS) -> Path:
    """A scene of noise, seen from cameras side by side; returns its metadata file."""
    rng = np.random.default_rng(0)
    height, width = sides(size)
    images = [folder / "images" / f"{number}.png" for number in range(frames)]
    images[0].parent.mkdir(parents=True)
    for path in images:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 0, 3] = np.linspace(-0.5, 0.5, frames)
    fxfycxcy = np.tile([0.9 * width, 0.9 * height, width / 2, height / 2], (frames, 1))
    source = folder / "metadata" / "noise.json"
    write_scene(Scene("noise", [*images], fxfycxcy, w2c, source))
    return source


@contextmanager
def served(config: Config) -> Iterator[Served]:
    """A viewer of noise with fresh weights, on any port that is free."""
    cfg = config.model.image_tokenizer
    with process_group() as process, tempfile.TemporaryDirectory() as folder:
        config = with_fixed_background(config, process)
        scene = write_noise(Path(folder), cfg.image_size)
        load = ViewLoader(config.training.data, cfg.image_size, cfg.patch_size)
        sessions = Sessions(seeded_renderer(config, process.device), load)
        set_threads_and_precision(config.training, SPARED_CORES)
        viewer = ViewerConfig(port=0, input_frames=list(range(_INPUTS)), out_dir=f"{folder}/out")
        with Served(viewer, config.inference.evaluation.render_video_config, sessions, [scene]) as viewed:
            yield viewed


def poses() -> Iterator[tuple[float, float, float]]:
    """Places on a circle, each a step from the last."""
    for step in range(1_000_000):
        yield (0.5 * float(np.sin(step / 20)), 0.5 * float(np.cos(step / 20)), 0.0)


def time_poses(client: HeadlessClient, path: Iterator[Any], count: int) -> list[float]:
    """Seconds from each pose to its picture, the next pose following upon it."""
    seconds = []
    for _ in range(count):
        client.drain()
        start = time.perf_counter()
        client.stand(next(path))
        client.next_jpeg(_PATIENCE)
        seconds.append(time.perf_counter() - start)
    return seconds


def count_pictures(client: HeadlessClient, path: Iterator[Any], seconds: float) -> float:
    """Pictures a second while poses come as a browser sends them."""
    client.drain()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        client.stand(next(path))
        time.sleep(_POSE_EVERY)
    return client.drain() / (time.perf_counter() - start)


def settle(client: HeadlessClient) -> None:
    """Wait until the last picture of a camera that stands still is there."""
    client.last_picture(1.0, _PATIENCE)


def measure(name: str, config: Config, count: int) -> dict[str, Any]:
    """The row of one configuration."""
    release_memory()
    with served(config) as viewed, HeadlessClient(viewed.address) as client:
        path = poses()
        client.stand(next(path))
        settle(client)
        time_poses(client, path, _WARM_UP)
        (window,) = viewed.windows.values()
        window.painter.rates.clear()
        seconds = np.array(time_poses(client, path, count))
        model = statistics.median(window.painter.rates.model_seconds)
        session = window.session
        rate = count_pictures(client, path, max(2.0, 20 * float(np.median(seconds))))
    return {
        "config": name,
        "median ms": 1000 * float(np.median(seconds)),
        "p95 ms": 1000 * float(np.quantile(seconds, 0.95)),
        "model ms": 1000 * model,
        "pictures/s": rate,
        "while moving": "half size" if session.preview else "full size",
    }


def main(argv: Sequence[str]) -> None:
    """Measure the variants at their published sizes, or the configurations named."""
    parser = benchmark_parser(__doc__)
    add_configs(parser)
    parser.add_argument("--poses", type=positive, default=200, help="how many are timed one after another")
    given = parser.parse_intermixed_args(argv)
    rows = []
    for name, config in chosen_configs(given):
        rows.append(measure(name, config, given.poses))
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

"""Rendering through the evaluation's own path, on seeded noise and fresh weights.

    python -m benchmarks.render [--config CONFIG ...] [--inputs 2 4 8] [key=value ...]

Rows: batches of scenes for metrics (4 scenes, 2 inputs, 3 targets) and a video of one scene; of a scene that is already
encoded, eight targets at once, and a single frame with its kernels recorded, by the number of inputs, with the memory
that the encoded scene takes.
"""

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.common import (
    add_configs,
    benchmark_parser,
    chosen_configs,
    positive,
    rates,
    release_memory,
    seeded_batch,
    seeded_model,
    show,
    spread,
    timed,
)
from data.dataset import Batch
from evaluation.metrics import build_metrics
from evaluation.renderer import Renderer, finished_renderer
from evaluation.scoring import render_batch
from model import decoding_flops, encoding_flops
from setup import Config, with_training
from utils.cli import run_main
from utils.distributed import process_group

SCENES = 4
INPUTS = 2
TARGETS = 3
FRAMES = 120
ENCODED_TARGETS = 8


def seeded_renderer(config: Config, device: torch.device) -> Renderer:
    """A renderer as inference builds it, with fresh weights."""
    return finished_renderer(seeded_model(config), config.training.precision, device)


def evaluation_batch(config: Config, scenes: int = SCENES, inputs: int = INPUTS, targets: int = TARGETS) -> Batch:
    """Scenes of noise as an evaluation index gives them: inputs first, then the targets."""
    cfg = with_training(config, num_views=inputs + targets, num_target_views=targets).training
    batch = seeded_batch(cfg, config.model.image_tokenizer.image_size, scenes)
    return replace(batch, num_inputs=inputs, targets=torch.arange(inputs, inputs + targets).repeat(scenes, 1))


@dataclass(frozen=True)
class Work:
    """Something to time: a call of `run` renders `images` at the cost of `flops`."""

    name: str
    images: int
    flops: float
    run: Callable[[], object]
    calls: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Its line of the table."""
        # More than calls before kernels are recorded.
        seconds = timed(self.run, self.calls, warmup=5)
        middle = statistics.median(seconds)
        row = {"work": self.name, "images/s": self.images / middle, "ms/image": 1000 * middle / self.images}
        row |= {"spread": f"{spread(seconds):.1%}", **rates(self.flops, middle), **self.notes}
        if torch.cuda.is_available():
            # Here, since recording the kernels of the next work may be what takes its memory.
            torch.cuda.reset_peak_memory_stats()
        return row


def works(config: Config, device: torch.device, calls: int, encoded_inputs: Sequence[int]) -> Iterator[Work]:
    """What is timed of one configuration, with scenes of so many inputs where they are encoded before."""
    encoding = encoding_flops(config.model, INPUTS).forward
    decoding = decoding_flops(config.model, INPUTS).forward
    renderer = seeded_renderer(config, device)
    batch = evaluation_batch(config)
    images = SCENES * TARGETS
    flops = SCENES * encoding + images * decoding
    metrics = build_metrics(["psnr", "ssim"], device)
    name = f"{SCENES} scenes x {TARGETS} targets"
    yield Work(name, images, flops, lambda: render_batch(renderer, {}, batch), 4 * calls)
    yield Work("the same with PSNR, SSIM", images, flops, lambda: render_batch(renderer, metrics, batch), 4 * calls)

    inputs, targets = batch.to(device).split()
    scene = inputs[:1]
    cameras = targets.cameras[:1]
    path = cameras[:, torch.arange(FRAMES) % TARGETS]

    def film() -> None:
        for _ in renderer.film(renderer.encode(scene), path):
            pass

    yield Work(f"video, {FRAMES} frames", FRAMES, encoding + FRAMES * decoding, film, calls)
    for count in encoded_inputs:
        yield from encoded_works(config, renderer, count, calls)


def encoded_works(config: Config, renderer: Renderer, num_inputs: int, calls: int) -> Iterator[Work]:
    """Targets of a scene that is encoded already."""
    batch = evaluation_batch(config, 1, num_inputs, ENCODED_TARGETS).to(renderer.device)
    inputs, targets = batch.split()
    encoded = renderer.encode(inputs)
    notes = {"encoded MB/view": encoded.nbytes / num_inputs / 1e6}
    decoding = decoding_flops(config.model, num_inputs).forward
    several = functools.partial(renderer.render, encoded, targets.cameras)
    name = f"encoded, {num_inputs} inputs"
    work = f"{name}, {ENCODED_TARGETS} targets"
    yield Work(work, ENCODED_TARGETS, ENCODED_TARGETS * decoding, several, 4 * calls, notes)
    one = targets.cameras[:, :1]
    frame = functools.partial(renderer.record(encoded, one), one)
    yield Work(f"{name}, one frame", 1, decoding, frame, 20 * calls, notes)


def measure(name: str, config: Config, calls: int, encoded_inputs: Sequence[int]) -> list[dict[str, Any]]:
    """All rows of one configuration."""
    release_memory()
    with process_group() as process, torch.inference_mode():
        return [{"config": name, **work.row()} for work in works(config, process.device, calls, encoded_inputs)]


def main(argv: Sequence[str]) -> None:
    """Measure the variants at their published sizes, or the configurations named."""
    parser = benchmark_parser(__doc__)
    add_configs(parser)
    parser.add_argument("--calls", type=positive, default=5, help="videos a repeat; other work in proportion")
    parser.add_argument("--inputs", type=positive, nargs="+", default=[2, 4, 8], help="of scenes encoded before")
    given = parser.parse_intermixed_args(argv)
    rows = []
    for name, config in chosen_configs(given):
        rows += measure(name, config, given.calls, given.inputs)
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

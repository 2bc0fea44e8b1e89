"""Rendering through the evaluation's own path, on seeded noise and fresh weights.

    python -m benchmarks.render [--config CONFIG ...] [key=value ...]

Rows: batches of scenes for metrics (4 scenes, 2 inputs, 3 targets), a video of one scene, and the time of a single
frame of a scene that is already encoded, with its kernels recorded.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import benchmark_parser, read_config, seeded_batch, seeded_model, show, spread, timed
from data.dataset import Batch
from evaluation import Renderer, render_batch, round_products
from setup import Config
from utils.cli import run_main
from utils.distributed import process_group
from utils.metrics import build_metrics

SCENES, TARGETS, FRAMES = 4, 3, 120


def seeded_renderer(config: Config, device: torch.device) -> Renderer:
    """A renderer as inference builds it, with fresh weights."""
    model = round_products(seeded_model(config), config.training)
    return Renderer(model.to(device).eval(), config.training, device)


def evaluation_batch(config: Config) -> Batch:
    """Scenes of noise as an evaluation index gives them: inputs first, then the targets."""
    cfg = replace(config.training, num_views=2 + TARGETS, num_target_views=TARGETS)
    batch = seeded_batch(cfg, config.model.image_tokenizer.image_size, SCENES)
    return replace(batch, targets=torch.arange(2, 2 + TARGETS).repeat(SCENES, 1))


def row(config: Path, work: str, images: int, seconds: list[float]) -> dict[str, Any]:
    """One line of the table."""
    middle = statistics.median(seconds)
    return {
        "config": config.stem,
        "work": work,
        "images/s": images / middle,
        "ms/image": 1000 * middle / images,
        "spread": f"{spread(seconds):.1%}",
    }


def measure(path: Path, config: Config, calls: int) -> list[dict[str, Any]]:
    """All rows of one configuration."""
    with process_group() as process, torch.inference_mode():
        renderer, batch = seeded_renderer(config, process.device), evaluation_batch(config)
        metrics = build_metrics(["psnr", "ssim"], process.device)
        images = SCENES * TARGETS
        plain = timed(lambda: render_batch(renderer, {}, batch), 4 * calls, 3)
        scored = timed(lambda: render_batch(renderer, metrics, batch), 4 * calls, 3)
        inputs, targets = batch.to(process.device).split(2)
        scene, cameras = inputs[:1], targets.cameras[:1]
        video = cameras[:, torch.arange(FRAMES) % TARGETS]

        def film() -> None:
            for _ in renderer.film(renderer.encode(scene), video):
                pass

        filmed = timed(film, calls, 2)
        one = cameras[:, :1]
        frame = renderer.fixed(renderer.encode(scene), one)
        single = timed(lambda: frame(one), 20 * calls, 5)
        return [
            row(path, f"{SCENES} scenes x {TARGETS} targets", images, plain),
            row(path, "the same with PSNR, SSIM", images, scored),
            row(path, f"video, {FRAMES} frames", FRAMES, filmed),
            row(path, "one frame", 1, single),
        ]


def main(argv: Sequence[str]) -> None:
    """Measure the published variants, or those named."""
    parser = benchmark_parser(__doc__)
    published = [Path(f"configs/LVSM_scene_{name}.yaml") for name in ("decoder_only", "encoder_decoder")]
    parser.add_argument("--config", type=Path, action="append")
    parser.add_argument("--calls", type=int, default=5, help="videos a repeat; other work in proportion")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    rows = []
    for path in given.config or published:
        rows += measure(path, read_config(path, given.overrides), given.calls)
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

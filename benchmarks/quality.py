"""What named settings learn from the same data: after as many updates, and after as much work of the GPU.

    python -m benchmarks.quality --config configs/rooms.yaml --output_dir quality \\
        --setting "decoder_only:" --setting "prefix: model.class_name=prefix" \\
        --validation rooms/scenes/test/full_list.txt --index rooms/chunks/evaluation_index.json \\
        [--seeds 0 1] [--as_long prefix] [key=value ...]

Every setting is trained with every seed for `training.train_steps` updates and scored on held-out scenes on the way.
Those that `--as_long` names are trained again for as many updates as take the GPU as long as the first does: GPU
seconds an update, those in which its kernels run, are measured beforehand. Writes `quality.svg`, PSNR over GPU seconds,
and `quality.json` to the folder; runs that are finished are not done again.
"""

import html
import json
import logging
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.common import benchmark_parser, show
from benchmarks.train_step import measure
from setup import Config, read_config
from utils.checkpoint import checkpoint_name
from utils.cli import path_argument, run_main
from utils.files import write_json, write_text

log = logging.getLogger("lvsm")

# Scores of a run on the way to its end.
_SCORES = 10
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")


@dataclass(frozen=True)
class Setting:
    """A named set of overrides, and what an update costs with it."""

    name: str
    overrides: list[str]
    seconds: float


@dataclass(frozen=True)
class Curve:
    """Scores of one run by updates done."""

    setting: str
    seed: int
    updates: int
    seconds: float
    steps: list[int]
    psnr: list[float]
    ssim: list[float]


def read_settings(config: Path, texts: Iterable[str], common: Sequence[str], folder: Path) -> list[Setting]:
    """Settings as the command line gives them, each measured once and for all runs of the folder."""
    costs = folder / "seconds.json"
    known: dict[str, float] = json.loads(costs.read_text()) if costs.exists() else {}
    settings = []
    for text in texts:
        name, _, own = text.partition(":")
        if name not in known:
            known[name] = gpu_seconds(read_config(config, [*common, *own.split()]))
            write_json(costs, known)
        settings.append(Setting(name, own.split(), known[name]))
    return settings


def gpu_seconds(config: Config) -> float:
    """How long the kernels of an update run; on a CPU, how long an update takes."""
    row = measure(config, profile=torch.cuda.is_available())
    kernels = [value for key, value in row.items() if key.endswith(" ms")]
    return sum(kernels) / 1000 or row["s/update"]


def train_one(config: Path, folder: Path, setting: Setting, seed: int, updates: int, common: Sequence[str]) -> Curve:
    """Train one run, or read what it left when it was finished."""
    every = math.ceil(updates / _SCORES)
    own = [f"training.train_steps={updates}", f"training.seed={seed}", f"training.validate_every={every}"]
    place = [f"training.checkpoint_dir={folder}", f"training.checkpoint_every={updates}"]
    if not (folder / checkpoint_name(updates)).exists():
        train.main(["--config", str(config), *common, *setting.overrides, *own, *place])
    return read_curve(folder, setting, seed, updates)


def read_curve(folder: Path, setting: Setting, seed: int, updates: int) -> Curve:
    """The scores in a run folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = {line["step"]: line for line in lines if "validation/psnr" in line}
    steps = sorted(scored)
    psnr = [scored[step]["validation/psnr"] for step in steps]
    ssim = [scored[step]["validation/ssim"] for step in steps]
    return Curve(setting.name, seed, updates, setting.seconds * updates, steps, psnr, ssim)


def summarize(setting: Setting, curves: Sequence[Curve], kind: str) -> dict[str, Any]:
    """One row: the means over seeds at the end, and how far the seeds lie apart."""
    psnr = [curve.psnr[-1] for curve in curves]
    return {
        "setting": setting.name,
        "equal": kind,
        "updates": curves[0].updates,
        "GPU s/update": setting.seconds,
        "GPU s": curves[0].seconds,
        "psnr": statistics.fmean(psnr),
        "spread": max(psnr) - min(psnr),
        "ssim": statistics.fmean(curve.ssim[-1] for curve in curves),
        "seeds": len(curves),
    }


def picture(curves: Sequence[Curve], width: int = 760, height: int = 420) -> str:
    """PSNR over GPU seconds as SVG, a line for each run, a colour for each setting."""
    right = max(curve.seconds for curve in curves)
    values = [value for curve in curves for value in curve.psnr]
    low = math.floor(min(values))
    high = math.ceil(max(values))
    left, top, w, h = 50, 15, width - 230, height - 60

    def place(seconds: float, psnr: float) -> str:
        return f"{left + w * seconds / right:.1f},{top + h * (high - psnr) / (high - low):.1f}"

    names = list(dict.fromkeys(curve.setting for curve in curves))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for psnr in range(low, high + 1):
        y = top + h * (high - psnr) / (high - low)
        parts.append(f'<line x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" font-size="12" text-anchor="end">{psnr}</text>')
    for tick in range(5):
        x = left + w * tick / 4
        parts.append(
            f'<text x="{x:.1f}" y="{top + h + 18}" font-size="12" text-anchor="middle">{right * tick / 4:.0f}</text>'
        )
    parts.append(f'<text x="{left + w / 2}" y="{height - 8}" font-size="12" text-anchor="middle">GPU seconds</text>')
    parts.append(f'<text x="{left}" y="{top - 3}" font-size="12">PSNR, dB</text>')
    for curve in curves:
        colour = _COLOURS[names.index(curve.setting) % len(_COLOURS)]
        points = (
            place(curve.seconds * step / curve.updates, psnr)
            for step, psnr in zip(curve.steps, curve.psnr, strict=True)
        )
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for number, name in enumerate(names):
        y = top + 12 + 18 * number
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<rect x="{left + w + 14}" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + w + 32}" y="{y}" font-size="12">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main(argv: Sequence[str]) -> None:
    """Measure, train and score every setting."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("--output_dir", type=path_argument, required=True, help="gets a run folder for each")
    parser.add_argument("--setting", action="append", required=True, metavar='"NAME: key=value ..."')
    parser.add_argument("--validation", type=path_argument, required=True, help="the list of held-out scenes")
    parser.add_argument("--index", type=path_argument, required=True, help="the views of these scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--as_long",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also train these for the GPU time of the first setting",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    held_out = [f"training.validation_path={given.validation}", f"training.validation_index={given.index}"]
    common = [*given.overrides, *held_out]
    given.output_dir.mkdir(parents=True, exist_ok=True)
    settings = read_settings(given.config, given.setting, given.overrides, given.output_dir)
    updates = read_config(given.config, given.overrides).training.optim.train_steps
    rows = []
    curves = []
    for setting in settings:
        counts = {"updates": updates}
        if setting.name in given.as_long:
            counts["GPU seconds"] = max(1, round(updates * settings[0].seconds / setting.seconds))
        for kind, count in counts.items():
            places = [given.output_dir / f"{setting.name}_{count}_{seed}" for seed in given.seeds]
            runs = zip(places, given.seeds, strict=True)
            done = [train_one(given.config, place, setting, seed, count, common) for place, seed in runs]
            rows.append(summarize(setting, done, kind))
            curves += done
            write_text(given.output_dir / "quality.svg", picture(curves))
            write_json(given.output_dir / "quality.json", {"rows": rows, "curves": [asdict(c) for c in curves]})
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

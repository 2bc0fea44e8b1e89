"""What named settings learn from the same data: after as many updates, and after as much work of the GPU.

    python -m benchmarks.quality --config configs/rooms.yaml --output_dir quality \\
        --setting "decoder_only:" --setting "prefix: model.class_name=prefix" \\
        --validation rooms/scenes/test/full_list.txt --index rooms/chunks/evaluation_index.json \\
        [--seeds 0 1] [--as_long prefix] [key=value ...]

Every setting is trained with every seed for `training.train_steps` updates and scored on held-out scenes on the way.
Settings named by `--as_long` are trained once more, for the GPU time that the first setting took. GPU time is that in
which kernels run; what an update takes of it is measured beforehand. The folder gets `quality.svg`, PSNR over GPU
seconds, and `quality.json`. Runs that are finished are not done again.
"""

import argparse
import html
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.common import benchmark_parser, last_lines, show
from benchmarks.train_step import measure
from setup import Config, read_config
from utils.checkpoint import checkpoint_name
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.files import write_json, write_text

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
    """Settings as the command line gives them, each measured once and for all runs of the folder.

    Raises:
        InputError: the folder holds a setting of the same name with other overrides.
    """
    path = folder / "settings.json"
    known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    settings = []
    for text in texts:
        name, _, own = text.partition(":")
        overrides = [*common, *own.split()]
        if name not in known:
            known[name] = {"overrides": overrides, "seconds": gpu_seconds(read_config(config, overrides))}
            write_json(path, known)
        if known[name]["overrides"] != overrides:
            raise InputError(f"{path}: {name} has other overrides there: name it otherwise, or another --output_dir")
        settings.append(Setting(name, own.split(), known[name]["seconds"]))
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
    scored = {line["step"]: line for line in last_lines(folder) if "validation/psnr" in line}
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


@dataclass(frozen=True)
class Axes:
    """The part of a picture that curves are drawn in, in its pixels, and what its sides stand for."""

    right: float
    low: int
    high: int
    left: int = 50
    top: int = 15
    width: int = 530
    height: int = 360

    def x(self, seconds: float) -> str:
        """Where so many GPU seconds are."""
        return f"{self.left + self.width * seconds / self.right:.1f}"

    def y(self, psnr: float) -> str:
        """Where so many dB are."""
        return f"{self.top + self.height * (self.high - psnr) / (self.high - self.low):.1f}"


def picture(curves: Sequence[Curve]) -> str:
    """PSNR over GPU seconds as SVG, a line for each run, a colour for each setting."""
    values = [value for curve in curves for value in curve.psnr]
    axes = Axes(max(curve.seconds for curve in curves), math.floor(min(values)), math.ceil(max(values)))
    names = list(dict.fromkeys(curve.setting for curve in curves))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    lines = [draw_curve(curve, axes, colours[curve.setting]) for curve in curves]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 420" font-family="sans-serif" font-size="12">'
    ground = '<rect width="760" height="420" fill="#fff"/>'
    return "\n".join([head, ground, *draw_axes(axes), *lines, *draw_names(axes, colours), "</svg>\n"])


def draw_axes(axes: Axes) -> Iterator[str]:
    """A line for every dB, numbers for both directions, and what they are."""
    end = axes.left + axes.width
    below = axes.top + axes.height
    for psnr in range(axes.low, axes.high + 1):
        y = axes.y(psnr)
        yield f'<line x1="{axes.left}" x2="{end}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        yield f'<text x="{axes.left - 8}" y="{y}" dy="4" text-anchor="end">{psnr}</text>'
    step = tick_step(axes.right)
    for tick in range(int(axes.right / step) + 1):
        yield f'<text x="{axes.x(tick * step)}" y="{below + 18}" text-anchor="middle">{tick * step:g}</text>'
    yield f'<text x="{axes.left + axes.width / 2}" y="{below + 37}" text-anchor="middle">GPU seconds</text>'
    yield f'<text x="{axes.left}" y="{axes.top - 3}">PSNR, dB</text>'


def tick_step(length: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is at most a quarter of an axis's length."""
    power = 10 ** math.floor(math.log10(length / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= length / 4)


def draw_curve(curve: Curve, axes: Axes, colour: str) -> str:
    """The scores of a run, by the GPU time of its updates."""
    times = [curve.seconds * step / curve.updates for step in curve.steps]
    points = " ".join(f"{axes.x(time)},{axes.y(psnr)}" for time, psnr in zip(times, curve.psnr, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def draw_names(axes: Axes, colours: Mapping[str, str]) -> Iterator[str]:
    """What the colours stand for, beside the curves."""
    x = axes.left + axes.width + 14
    for number, (name, colour) in enumerate(colours.items()):
        y = axes.top + 12 + 18 * number
        yield f'<rect x="{x}" y="{y - 9}" width="12" height="10" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="{y}">{html.escape(name)}</text>'


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(__doc__)
    add = parser.add_argument
    add("--config", type=path_argument, required=True)
    add("--output_dir", type=path_argument, required=True, help="gets a run folder for each")
    add("--setting", action="append", required=True, metavar='"NAME: key=value ..."')
    add("--validation", type=path_argument, required=True, help="the list of held-out scenes")
    add("--index", type=path_argument, required=True, help="the views of these scenes")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--as_long", nargs="+", default=[], metavar="NAME", help="also train these for the GPU time of the first")
    add("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    names = [text.partition(":")[0] for text in given.setting]
    for name in given.as_long:
        if name not in names:
            raise InputError(
                f"--as_long names {name}, which is no --setting: {', '.join(names)} (key=value comes before)"
            )
    return given


def main(argv: Sequence[str]) -> None:
    """Measure, train and score every setting."""
    given = parse(argv)
    held_out = [f"training.validation_path={given.validation}", f"training.validation_index={given.index}"]
    common = [*given.overrides, *held_out]
    given.output_dir.mkdir(parents=True, exist_ok=True)
    settings = read_settings(given.config, given.setting, given.overrides, given.output_dir)
    updates = read_config(given.config, given.overrides).training.optim.train_steps
    rows = []
    curves: list[Curve] = []
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

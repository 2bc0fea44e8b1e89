"""Real training runs beside one another, with the loader, on a data set of yours: do two settings learn the same?

    python -m benchmarks.loss_curve --config configs/LVSM_scene_decoder_only.yaml --output_dir curves \\
        --setting "bf16:" --setting "fp32: training.amp_dtype=fp32" training.dataset_path=LIST training.train_steps=200

Prints losses averaged between lines, and for the whole run the share of time waiting for data. The perceptual loss
runs on seeded weights.
"""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import train
from benchmarks.common import benchmark_parser, last_lines, seeded_loss, show
from utils.cli import path_argument, run_main
from utils.errors import InputError


def run(config: Path, folder: Path, overrides: list[str]) -> None:
    """Train in `folder`, which gets the lines of numbers."""
    with patch.object(train, "build_loss", seeded_loss):
        train.main(["--config", str(config), *overrides, f"training.checkpoint_dir={folder}"])


def describe(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: the curve in ten points, and the run's rates after its first line."""
    chosen = lines[:: max(1, len(lines) // 10)]
    if chosen[-1] is not lines[-1]:
        chosen.append(lines[-1])
    steady = lines[1:] or lines
    row: dict[str, Any] = {"run": name, **{f"loss@{line['step']}": line["loss"] for line in chosen}}
    row["psnr"] = lines[-1]["psnr"]
    row["skipped"] = lines[-1]["skipped"]
    row["data"] = f"{statistics.fmean(line['data_wait'] for line in steady):.2%}"
    row["images/s"] = statistics.fmean(line["images_per_second"] for line in steady)
    return row


def main(argv: Sequence[str]) -> None:
    """Train every run."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("--output_dir", type=path_argument, required=True, help="gets a run folder for each")
    parser.add_argument("--setting", action="append", required=True, metavar='"NAME: key=value ..."')
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    runs = {name: own.split() for name, _, own in (text.partition(":") for text in given.setting)}
    for name in runs:
        if (given.output_dir / name / "metrics.jsonl").exists():
            raise InputError(f"{given.output_dir / name} holds an earlier run, which would go on: choose another place")
    for name, own in runs.items():
        run(given.config, given.output_dir / name, [*given.overrides, *own])
    # Under torchrun, one process tells.
    if int(os.environ.get("RANK", 0)) == 0:
        show([describe(name, last_lines(given.output_dir / name)) for name in runs], given.json)


if __name__ == "__main__":
    run_main(main)

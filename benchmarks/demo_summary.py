"""What `make demo` says at its end: how training went, and how three predictions of the same rooms compare.

python -m benchmarks.demo_summary DEMO_FOLDER
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import last_lines
from evaluation.pages.page import as_number
from evaluation.runs import read_run
from utils.cli import path_argument, run_main
from utils.errors import InputError

# The evaluations of the demo, by the names of their folders.
COPYING = "nearest_input"
TRAINED = "trained_here"
SHIPPED = "shipped_weights"
_NAMES = {
    COPYING: "copying the nearest input view",
    TRAINED: "the small model, trained just now",
    SHIPPED: "the weights in the box",
}
# Characters of the longest bar.
_BAR = 40


def draw_curve(scores: Sequence[tuple[int, float]]) -> Iterator[str]:
    """PSNR in dB by updates done as lines of text with a bar, from a little below the lowest."""
    values = [psnr for _, psnr in scores]
    least = min(values) - 1
    for step, psnr in scores:
        length = round(_BAR * (psnr - least) / (max(values) - least))
        yield f"{step:6} updates  {psnr:5.2f}  {'#' * length}"


def read_scores(run_folder: Path) -> list[tuple[int, float]]:
    """PSNR of the held-out rooms while a run was trained, by updates done.

    Raises:
        InputError: the run's log holds none.
    """
    lines = [line for line in last_lines(run_folder) if "validation/psnr" in line]
    if not lines:
        raise InputError(f"{run_folder / 'metrics.jsonl'} holds no score: set training.validate_every")
    return [(line["step"], line["validation/psnr"]) for line in lines]


def read_means(folder: Path) -> dict[str, float]:
    """The mean PSNR over the rooms, by evaluation, with as many digits as the pages have of it.

    Raises:
        InputError: an evaluation is missing or not finished.
    """
    means = {}
    for name in _NAMES:
        scenes = read_run(folder / "evaluation" / name, name).scenes.values()
        mean = statistics.fmean(scene["psnr"] or 0.0 for scene in scenes)
        means[name] = as_number(mean) or 0.0
    return means


def main(argv: Sequence[str]) -> None:
    """Print the summary of a demo."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("folder", type=path_argument)
    folder = parser.parse_args(argv).folder
    print("\nPSNR in dB on rooms that it does not learn from, while the small model is trained:")
    print("\n".join(draw_curve(read_scores(folder / "run"))))
    means = read_means(folder)
    print("\nThe same rooms at the end:")
    for name, label in _NAMES.items():
        print(f"  {means[name]:5.2f} dB  {label}")
    print(f"\nOpen {(folder / 'comparison' / 'index.html').resolve().as_uri()}")
    print("Walk through one of the rooms: make view")
    for name in (TRAINED, SHIPPED):
        if means[name] <= means[COPYING]:
            raise InputError(f"{_NAMES[name]}: no better than copying: was it stopped early? Run the demo again")


if __name__ == "__main__":
    run_main(main)

"""Memory and speed of one micro-batch of every recipe in configs/, on one GPU and seeded noise.

python -m benchmarks.recipes [CONFIG ...]
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import benchmark_parser, show
from benchmarks.train_step import measure
from setup import read_config, with_training
from utils.cli import path_argument, run_main

log = logging.getLogger("lvsm")


def main(argv: Sequence[str]) -> None:
    """Measure the recipes one after another."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("configs", nargs="*", type=path_argument, default=sorted(Path("configs").glob("LVSM*.yaml")))
    given = parser.parse_args(argv)
    rows = []
    for path in given.configs:
        config = with_training(read_config(path, []), grad_accum_steps=1, total_batch_size=0)
        rows.append({"config": path.stem} | measure(config, calls=3, warmup=2))
        log.info("measured %s", path.stem)
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

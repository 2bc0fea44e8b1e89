"""What weights score at several sizes of images, on whole images and on the pixels that all have in their middle.

    python -m benchmarks.shapes --config configs/rooms_prefix.yaml --weights rooms/prefix --weights rooms/prefix_16x9 \\
        --size 128 --size 128,224 training.dataset_path=rooms/scenes/test/full_list.txt

The scenes are those of the evaluation's index. Sizes of one height see frames of one shape at one scale: the pixels in
the middle are then the same, and weights that learned other sizes can be compared on them.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.common import benchmark_parser, index_scores, release_memory, show
from data.transforms import centred_box
from evaluation.metrics import Metric, psnr
from geometry.image_size import sides, size_text
from setup import Config, load_renderer, read_config, set_threads_and_precision
from utils.cli import path_argument, run_main
from utils.distributed import Process, process_group


def psnr_in_middle(size: tuple[int, int], renders: Tensor, images: Tensor) -> Tensor:
    """PSNR [b] on the `size` (height, width) pixels in the middle of images [b 3 h w]."""
    left, top, right, bottom = centred_box(images.shape[-1], images.shape[-2], list(size))
    middle = (..., slice(top, bottom), slice(left, right))
    return psnr(renders[middle], images[middle])


def common_middle(configs: Sequence[Config]) -> tuple[int, int]:
    """Height and width of what images of all sizes have in their middle."""
    heights, widths = zip(*(sides(config.model.image_tokenizer.image_size) for config in configs), strict=True)
    return min(heights), min(widths)


def measure(config: Config, middle: tuple[int, int], process: Process) -> dict[str, Any]:
    """The scores of the configuration's weights at its size."""
    release_memory()
    set_threads_and_precision(config.training)
    renderer, _, config = load_renderer(config, process)
    index = Path(config.inference.evaluation.view_idx_file_path)
    metrics: dict[str, Metric] = {"psnr": psnr, "psnr in the middle": functools.partial(psnr_in_middle, middle)}
    scores, count = index_scores(config, renderer, process, metrics, index, Path(config.training.data.dataset_path))
    size = size_text(config.model.image_tokenizer.image_size)
    return {"size": size, **scores, "middle": "{}x{}".format(*middle), "scenes": count}


def main(argv: Sequence[str]) -> None:
    """Score every file of weights at every size."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("--weights", action="append", required=True, metavar="FILE_OR_FOLDER")
    parser.add_argument("--size", action="append", required=True, metavar="SIDE or HEIGHT,WIDTH")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    keys = [f"model.{tokenizer}.image_size" for tokenizer in ("image_tokenizer", "target_pose_tokenizer")]
    sizes = [[*given.overrides, *(f"{key}={size}" for key in keys)] for size in given.size]
    middle = common_middle([read_config(given.config, overrides) for overrides in sizes])
    rows = []
    with process_group() as process:
        for weights in given.weights:
            for overrides in sizes:
                config = read_config(given.config, [*overrides, f"training.checkpoint_dir={weights}"])
                rows.append({"weights": Path(weights).name, **measure(config, middle, process)})
    show(rows, given.json)


if __name__ == "__main__":
    run_main(main)

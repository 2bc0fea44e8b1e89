"""What the benchmarks share: seeded inputs and weights, timing, tables."""

import argparse
import functools
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from data.dataset import Batch, ViewLoader
from evaluation.items import find_items, items_reader, whole
from evaluation.metrics import Metric
from evaluation.renderer import Predictor
from evaluation.scoring import average_scores
from geometry.cameras import Cameras, Views
from geometry.image_size import ImageSize, sides
from model import LVSM, VARIANTS, build_model
from model.execution import ExecutionConfig, compile_model
from model.flops import peak_flops
from model.loss import Loss, LossConfig
from model.perceptual import PerceptualLoss
from setup import Config, TrainingConfig, read_config, set_threads_and_precision
from utils.cli import path_argument
from utils.distributed import Process
from utils.files import write_json
from utils.provenance import provenance
from utils.random_state import seed_everything
from utils.text import printable, shown

REPEATS = 3


def benchmark_parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; `doc` is its module's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--json", type=path_argument, help="also write the numbers there")
    return parser


def positive(text: str) -> int:
    """A number of 1 or more, as the `type` of an argument of `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number of 1 or more")
    return int(text)


def add_configs(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take any configurations, with overrides."""
    parser.add_argument("--config", type=path_argument, action="append", help="default: the published variants")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def chosen_configs(given: argparse.Namespace) -> Iterator[tuple[str, Config]]:
    """The configurations that `add_configs` let choose, with their names for the table."""
    published = [Path(f"configs/LVSM_scene_{name}.yaml") for name in VARIANTS]
    for path in given.config or published:
        yield path.stem.removeprefix("LVSM_scene_"), read_config(path, given.overrides)


def seeded_vgg19() -> dict[str, Tensor]:
    """VGG-19 weights that keep the size of what passes through: speed and memory are those of the trained ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features[:32]
    weights = {}
    for name, tensor in features.state_dict().items():
        fan_in = math.prod(tensor.shape[1:])
        scale = math.sqrt(2 / fan_in) if tensor.ndim == 4 else 0.01
        weights[name] = torch.randn(tensor.shape, generator=generator) * scale
    return weights


def seeded_loss(cfg: LossConfig, execution: ExecutionConfig) -> Loss:
    """What `build_loss` gives, with `seeded_vgg19` in place of downloaded weights; LPIPS is left out."""
    terms = {"perceptual": PerceptualLoss(seeded_vgg19())} if cfg.perceptual_loss_weight else {}
    return compile_model(Loss(cfg, terms), execution)


def seeded_model(config: Config) -> LVSM:
    """The configured model with fresh weights on the CPU, threads and precision set as its run would."""
    set_threads_and_precision(config.training)
    seed_everything(config.training.trainer.seed)
    return build_model(config.model, config.training.execution)


def seeded_batch(cfg: TrainingConfig, size: ImageSize, batch_size: int | None = None) -> Batch:
    """Scenes of noise seen from cameras on a small arc, in page-locked memory where there is a GPU."""
    b = batch_size or cfg.loader.batch_size_per_gpu
    v = cfg.data.num_views
    generator = torch.Generator().manual_seed(0)
    height, width = sides(size)
    images = torch.randint(0, 256, (b, v, 3, height, width), generator=generator, dtype=torch.uint8)
    c2w = torch.eye(4).repeat(b, v, 1, 1)
    c2w[..., :3, 3] = torch.rand(b, v, 3, generator=generator) - 0.5
    # As wide an angle across as down, whatever the shape.
    fxfycxcy = torch.tensor([0.9, 0.9, 0.5, 0.5]).mul(torch.tensor([width, height] * 2)).repeat(b, v, 1)
    targets = torch.stack([torch.randperm(v, generator=generator)[: cfg.data.num_target_views] for _ in range(b)])
    frames = torch.arange(v).repeat(b, 1)
    views = Views(images, Cameras(c2w, fxfycxcy, height, width))
    batch = Batch(views, cfg.data.most_inputs, targets, [f"noise{i}" for i in range(b)], frames, [])
    return batch.pin_memory() if torch.cuda.is_available() else batch


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object], calls: int, warmup: int, repeats: int = REPEATS) -> list[float]:
    """Seconds a call of `work`, one number a repeat of `calls` calls, after `warmup` calls."""
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize()
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def gradients(function: Callable[..., Tensor], wanted: Sequence[Tensor], outer: Tensor) -> list[Tensor]:
    """What a function gives for the tensors `wanted`, and their gradients where that of its result is `outer`."""
    out = function(*wanted)
    return [out.detach(), *torch.autograd.grad(out, wanted, outer)]


def distance(found: Tensor, reference: Tensor) -> float:
    """How far a tensor is from another, relative to its size."""
    return ((found.float() - reference.float()).norm() / reference.float().norm()).item()


def release_memory() -> None:
    """Forget what earlier measurements left on the GPU and in its peak, compiled code included."""
    if "torch._inductor.compile_fx" in sys.modules:
        # Where nothing was compiled, this alone would load the compiler.
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@functools.lru_cache
def matrix_rate() -> float:
    """FLOP/s of this GPU on a large bf16 product of random numbers: what a perfect program would reach."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = statistics.median(timed(lambda: a @ b, 20, 5))
    return 2 * size**3 / seconds


def rates(flops: float, seconds: float) -> dict[str, Any]:
    """Columns of a table: TFLOP/s; on a GPU peak memory, shares of the data sheet's rate and of the measured one."""
    row: dict[str, Any] = {"TFLOP/s": flops / seconds / 1e12}
    if torch.cuda.is_available():
        row["GB"] = torch.cuda.max_memory_allocated() / 1e9
        peak = peak_flops(torch.device("cuda"))
        row["mfu"] = f"{flops / seconds / peak:.0%}" if peak else "?"
        row["of matrix rate"] = f"{flops / seconds / matrix_rate():.0%}"
    return row


def seconds_since_start() -> float:
    """Seconds since this process was started, imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def index_scores(
    config: Config,
    predictor: Predictor,
    process: Process,
    metrics: dict[str, Metric],
    index: Path,
    scenes: Path,
    keys: tuple[str, str] = ("inference.view_idx_file_path", "training.dataset_path"),
) -> tuple[dict[str, float], int]:
    """The means over the scenes of a list with the views of an index, and how many scenes these are.

    Args:
        keys: what named the two paths, for messages.

    Raises:
        InputError: one of the two is missing, or a scene that the index names, unless it may be missing.
    """
    cfg = config.training
    tokenizer = config.model.image_tokenizer
    load = ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size)
    allow_missing = config.inference.evaluation.allow_missing
    items, _ = find_items(index, scenes, allow_missing, cfg.data.allow_outside_images, keys)
    read = items_reader(load, cfg.loader, process, cfg.process.patience)
    return average_scores(predictor, metrics, whole(read(items)), process), len(items)


def device_name() -> str:
    """The GPU's name, or the CPU's threads."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def show(rows: Sequence[Mapping[str, Any]], path: Path | None = None, markdown: bool = False) -> None:
    """Print rows as a table with device and versions below, and write them as JSON if a path is given."""
    for line in markdown_table(rows) if markdown else _aligned(_cells(rows)):
        print(printable(line), flush=True)
    about = {"device": device_name(), **provenance()}
    print(f"({about['device']}, torch {torch.__version__})", flush=True)
    if path is not None:
        write_json(path, {"rows": [dict(row) for row in rows], **about})


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A table as texts, its first line the names of the columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [columns, *[[_cell(row.get(name, "")) for name in columns] for row in rows]]


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a table of Markdown."""
    head, *lines = _cells(rows)
    for line in (head, ["---"] * len(head), *lines):
        yield f"| {' | '.join(line)} |"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of numbers that a run wrote to its folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

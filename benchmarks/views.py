"""More input views: PSNR, milliseconds and memory of every variant, by the number of inputs.

    python -m data.evaluation_index --scenes LIST --output index.json --context 2 4 8 16 --targets 4
    python -m benchmarks.views --config configs/rooms_views.yaml --output_dir views/table \\
        [key=value ...] --validation LIST --index index.json [--inputs 2 4 8 16 64]

Every variant is trained on the configuration's data, whose number of inputs is drawn, and scored on the scenes of LIST
with the views of index_2.json and so on; numbers of inputs without an index get no score. Copying the nearest input is
scored beside them. Without `--validation` nothing is trained, and only time and memory are measured. Sizes follow from
the configuration in the published proportions: with L layers the encoder-decoder has L/2 + L/2 and as many latents as 3
views have tokens, the cross-attending variant L/3 + 2L/3.

Encoding is that of one scene, a frame one of a scene that is encoded, its kernels recorded. GB is the largest memory
of the GPU while a scene is encoded and eight targets are rendered at once. The table is printed as Markdown, and
written to `views.md` after every variant. Runs that are finished are not done again; those that were trained with other
settings are refused.
"""

import argparse
import logging
import operator
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import train
from benchmarks.common import (
    benchmark_parser,
    index_scores,
    markdown_table,
    positive,
    release_memory,
    show,
    synchronize,
    timed,
)
from benchmarks.render import evaluation_batch, seeded_renderer
from data.evaluation_index import numbered
from evaluation.copying import NearestInput
from evaluation.metrics import build_metrics
from evaluation.renderer import Predictor, Renderer
from model import ModelConfig, build_model
from setup import (
    Config,
    load_renderer,
    read_config,
    with_fixed_background,
    with_function_of,
    with_pose_normalization,
    with_training,
)
from utils.checkpoint import checkpoint_name
from utils.cli import path_argument, run_main
from utils.distributed import Process, process_group
from utils.errors import InputError
from utils.files import write_text
from utils.sections import leaves
from utils.text import shown

log = logging.getLogger("lvsm")

INPUTS = (2, 4, 8, 16, 64)
# Targets that are rendered at once where memory is measured.
TARGETS = 8
# Parts of the `training` section, or keys of one, that say how a run is carried out and not what it learns.
_CANNOT_MATTER = frozenset(
    {
        "process",
        "checkpoint",
        "metrics_log",
        "incidents",
        "validation",
        "published",
        "loader.num_workers",
        "loader.prefetch_factor",
        "trainer.vis_every",
        "trainer.validate_every",
        "trainer.log_grad_norm_details",
    }
)
# Keys that a message names.
_NAMED = 5
# Views whose tokens the latents of the encoder-decoder are as many as.
_LATENT_VIEWS = 3


def variants(cfg: ModelConfig) -> dict[str, list[str]]:
    """Overrides by name: every variant, of the size that `cfg` has as a decoder-only model."""
    layers = cfg.transformer.n_layer
    half = _lengths(layers // 2, layers - layers // 2)
    third = _lengths(layers // 3, layers - layers // 3)
    latents = f"model.transformer.n_latent_vectors={_LATENT_VIEWS * cfg.tokens_per_view}"
    rays = "model.transformer.camera_encoding=none"
    return {
        "decoder_only": ["model.class_name=decoder_only", rays],
        "encoder_decoder": ["model.class_name=encoder_decoder", rays, *half, latents],
        "cross": ["model.class_name=cross", rays, *third],
        "prefix": ["model.class_name=prefix", rays],
        "prefix_prope": ["model.class_name=prefix", "model.transformer.camera_encoding=prope"],
    }


def _lengths(encoder: int, decoder: int) -> list[str]:
    return [
        f"model.transformer.encoder_n_layer={max(1, encoder)}",
        f"model.transformer.decoder_n_layer={max(1, decoder)}",
    ]


def train_one(config: Path, overrides: Sequence[str], folder: Path) -> None:
    """Train a run whose folder does not hold it finished.

    Raises:
        InputError: it was asked to stop.
    """
    updates = read_config(config, overrides).training.optim.train_steps
    place = [f"training.checkpoint_dir={folder}", f"training.checkpoint_every={updates}"]
    finished = folder / checkpoint_name(updates)
    if not finished.exists():
        train.main(["--config", str(config), *overrides, *place])
    if not finished.exists():
        raise InputError(f"the run in {folder} was asked to stop: the same command goes on with it")


def check_run(config: Config, folder: Path) -> None:
    """Check that a folder holds no run but one that was trained as `config` says.

    Raises:
        InputError: it holds one of other settings; the message names the keys.
    """
    kept = folder / "config.yaml"
    if not kept.exists():
        return
    with torch.device("meta"):
        model = build_model(config.model)
    ours = dict(_what_counts(with_function_of(with_pose_normalization(config), model)))
    theirs = dict(_what_counts(read_config(kept, [])))
    different = [key for key, value in ours.items() if value != theirs[key]]
    if different:
        named = ", ".join(different[:_NAMED]) + (", ..." if len(different) > _NAMED else "")
        raise InputError(
            f"{folder} holds a run with other values of {named}: name another --output_dir, or remove the folder"
        )


def _what_counts(config: Config) -> Iterator[tuple[str, Any]]:
    """The keys and values on which it depends what a run learns."""
    parts = {"model": config.model, **vars(config.training)}
    for owner, part in parts.items():
        section = "model" if owner == "model" else "training"
        for key, _ in leaves(type(part)):
            if not {owner, f"{owner}.{key}"} & _CANNOT_MATTER:
                yield f"{section}.{key}", operator.attrgetter(key)(part)


def score_index(config: Config, renderer: Predictor, process: Process, scenes: Path, index: Path) -> float:
    """The mean PSNR over the scenes of a list with the views of an index."""
    metrics = build_metrics(["psnr"], process.device, config.model.image_tokenizer.image_size)
    found, _ = index_scores(config, renderer, process, metrics, index, scenes, ("--index", "--validation"))
    return found["psnr"]


def scores(config: Config, renderer: Predictor, process: Process, given: argparse.Namespace) -> dict[int, str]:
    """PSNR by the number of inputs, of those for which there is an index."""
    paths = {count: numbered(given.index, count) for count in given.inputs}
    return {
        count: f"{score_index(config, renderer, process, given.validation, path):.2f}"
        for count, path in paths.items()
        if path.exists()
    }


def cost(config: Config, renderer: Renderer, count: int, calls: int, before: int) -> dict[str, Any]:
    """What a scene of so many inputs takes: milliseconds, the memory of what is kept of it, and the most in use.

    Args:
        before: bytes that were in use before the model was there.
    """
    batch = evaluation_batch(config, 1, count, TARGETS).to(renderer.device)
    inputs, targets = batch.split()
    # Records would hold copies of the scenes in memory.
    renderer = replace(renderer, recordings=None)
    encoding = timed(lambda: renderer.encode(inputs), calls, 2)
    row: dict[str, Any] = {"encode ms": 1000 * statistics.median(encoding)}
    peak = most_memory(renderer, inputs, targets, before)
    encoded = renderer.encode(inputs)
    one = targets.cameras[:, :1]
    frame = renderer.record(encoded, one)
    row["frame ms"] = 1000 * statistics.median(timed(lambda: frame(one), 4 * calls, 3))
    return row | {"scene MB": encoded.nbytes / 1e6} | peak


def most_memory(renderer: Renderer, inputs: Any, targets: Any, before: int) -> dict[str, Any]:
    """The peak of encoding a scene and rendering its targets at once; empty without a GPU, where nobody counts it.

    What was in use `before` does not count: variants measured earlier leave some.
    """
    if not torch.cuda.is_available():
        return {}
    renderer.render(renderer.encode(inputs), targets.cameras)
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    renderer.render(renderer.encode(inputs), targets.cameras)
    synchronize()
    return {"GB": (torch.cuda.max_memory_allocated() - before) / 1e9}


def memory_left() -> int:
    """Bytes of the GPU that stay in use where all is forgotten that can be."""
    release_memory()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def trained_rows(overrides: Sequence[str], folder: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one variant, trained and scored."""
    train_one(given.config, overrides, folder)
    before = memory_left()
    config = with_training(read_config(given.config, overrides), checkpoint_dir=str(folder))
    with process_group() as process:
        renderer, _, config = load_renderer(config, process)
        psnr = scores(config, renderer, process, given)
        for count in given.inputs:
            yield {"inputs": count, "PSNR": psnr.get(count, "")} | cost(config, renderer, count, given.calls, before)


def copied_rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of copying the nearest input."""
    with process_group() as process:
        config = with_fixed_background(with_pose_normalization(read_config(given.config, given.overrides)), process)
        for count, psnr in scores(config, NearestInput(process.device), process, given).items():
            yield {"variant": "nearest input", "inputs": count, "PSNR": psnr}


def untrained_rows(overrides: Sequence[str], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one variant with fresh weights, which cost what trained ones do."""
    before = memory_left()
    config = with_pose_normalization(read_config(given.config, overrides))
    with process_group() as process:
        renderer = seeded_renderer(config, process.device)
        for count in given.inputs:
            yield {"inputs": count} | cost(config, renderer, count, given.calls, before)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = benchmark_parser(__doc__)
    add = parser.add_argument
    add("--config", type=path_argument, required=True)
    add("--output_dir", type=path_argument, default=Path("views"), help="gets a run folder for each variant")
    add("--validation", type=path_argument, help="the list of held-out scenes")
    add("--index", type=path_argument, default=Path("index.json"), help="their views, the name without the number")
    add("--inputs", type=positive, nargs="+", default=INPUTS, metavar="N", help="numbers of input views")
    add("--variants", nargs="+", default=[], metavar="NAME", help="only these")
    add("--calls", type=positive, default=20, help="calls a repeat")
    add("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(argv)


def check(given: argparse.Namespace, known: Collection[str]) -> None:
    """Raises InputError for variants that are not there, or scenes without views."""
    for name in given.variants:
        if name not in known:
            raise InputError(f"--variants names {shown(name)}; known: {', '.join(known)}")
    indices = [numbered(given.index, count) for count in given.inputs]
    if given.validation and not any(index.exists() for index in indices):
        raise InputError(
            f"--index: there is no {indices[0]}, nor one for another number of --inputs: "
            "python -m data.evaluation_index makes them"
        )


def main(argv: Sequence[str]) -> None:
    """Train, score and measure every variant."""
    given = parse(argv)
    settings = variants(read_config(given.config, given.overrides).model)
    check(given, settings)
    overrides = {name: [*settings[name], *given.overrides] for name in given.variants or settings}
    if given.validation:
        for name, own in overrides.items():
            check_run(read_config(given.config, own), given.output_dir / name)
    rows = list(copied_rows(given)) if given.validation else []
    for name, own in overrides.items():
        folder = given.output_dir / name
        found = trained_rows(own, folder, given) if given.validation else untrained_rows(own, given)
        rows += [{"variant": name} | row for row in found]
        log.info("measured %s", name)
        write_text(given.output_dir / "views.md", "\n".join([*markdown_table(rows), ""]))
    show(rows, given.json, markdown=True)


if __name__ == "__main__":
    run_main(main)

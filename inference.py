"""Evaluate a checkpoint: metrics, pictures, videos and a page.

    torchrun --nproc_per_node 8 inference.py --config configs/LVSM_scene_decoder_only.yaml \\
        training.dataset_path=./preprocessed_data/test/full_list.txt training.checkpoint_dir=FILE_OR_FOLDER \\
        inference.render_video=true inference_out_dir=./experiments/evaluation/test

Inputs and targets are those of the evaluation index (`inference.view_idx_file_path`); every scene is evaluated
exactly once, whatever the number of processes and the batch size (`training.batch_size_per_gpu`). Without an index,
`inference.view_idx_file_path=auto` spreads the inputs over each scene's cameras, and `inference.input_frames=[0,12]`
names them; the other frames are targets.

    python inference.py --compare RUN_A RUN_B [RUN_C ...] [--output DIR]

makes a page of the output folders of such evaluations side by side.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.dataset import ViewLoader
from data.scene import Scene
from data.views import Selection
from evaluation.compare import compare_runs, missing_pictures
from evaluation.copying import NearestInput
from evaluation.evaluator import Evaluator
from evaluation.identity import hash_files, identify_run
from evaluation.items import Item, check_saved_cameras, find_items, items_reader, own_items
from evaluation.metrics import build_metrics
from evaluation.pages.comparison import write_comparison
from evaluation.renderer import Predictor
from evaluation.results import check_scene_folders, write_results
from geometry.image_size import sides
from setup import (
    Config,
    check_view_counts,
    load_config,
    load_renderer,
    output_folder,
    owners,
    set_threads_and_precision,
    with_fixed_background,
    with_pose_normalization,
)
from utils.cli import path_argument, run_main
from utils.distributed import Process, describe_device, device_name, only_run, process_group
from utils.files import remove_stale
from utils.lock import only_writer
from utils.provenance import provenance
from utils.sections import flatten
from utils.text import counted

log = logging.getLogger("lvsm")


def choose_items(config: Config, overridden: set[str]) -> tuple[list[Item], dict[str, str]]:
    """The scenes to evaluate with their views, and why others of the index are left out.

    Raises:
        InputError: the index, a scene it names or a list of cameras is missing or unusable, or an override contradicts
            the index.
    """
    cfg = config.inference.evaluation
    data = config.training.data
    outside = data.allow_outside_images
    scenes = Path(data.dataset_path)
    if cfg.chooses_views:
        items, missing = own_items(
            scenes,
            data.most_inputs,
            cfg.input_frames,
            filmed=cfg.render_video,
            allow_missing=cfg.allow_missing,
            allow_outside=outside,
        )
    else:
        index = Path(cfg.view_idx_file_path)
        items, missing = find_items(index, scenes, cfg.allow_missing, outside)
        for path, selection in items:
            check_view_counts(config, overridden, selection, f"{index}, scene {path.stem}")
    if cfg.render_video and cfg.render_video_config.traj_type == "through":
        check_saved_cameras(Path(cfg.render_video_config.cameras_path), items, outside)
    return items, missing


def evaluate(config: Config, overridden: set[str], process: Process) -> None:
    """Build the parts, evaluate every scene of the index, write the results."""
    start = time.perf_counter()
    items, missing = process.broadcast(choose_items(config, overridden) if process.is_main else None)
    prepare_folder(Path(config.inference_out_dir), items, process)
    evaluator, files, config = build_evaluator(config, process, items)
    evaluated = evaluator.run(items)
    if process.is_main:
        seconds = round(time.perf_counter() - start, 1)
        run = {**files, "scenes": len(evaluated.records), "seconds": seconds}
        run |= {**evaluated.speed, **describe_run(config, process)}
        missing |= evaluated.missing
        if missing:
            log.warning("%s of the index left out: results.json says which and why", counted(len(missing), "scene"))
            run["missing"] = missing
        write_results(evaluator.out_dir, evaluated.records, run, config.inference.evaluation.generate_website)
    process.barrier("writing results")


def prepare_folder(out_dir: Path, items: list[Item], process: Process) -> None:
    """Check that every scene can have its folder in `out_dir`, and clear what killed runs left half written."""
    check_scene_folders(out_dir, [path.stem for path, _ in items])
    if process.is_main:
        remove_stale(out_dir)


def build_evaluator(config: Config, process: Process, items: list[Item]) -> tuple[Evaluator, dict[str, Any], Config]:
    """The evaluator of the configured model, the hashes of the files it depends on, and the completed configuration."""
    cfg = config.inference.evaluation
    tokenizer = config.model.image_tokenizer
    names = cfg.metrics if cfg.compute_metrics else []
    metrics = process.first_on_machine(lambda: build_metrics(names, process.device, tokenizer.image_size))
    renderer, checkpoint, config = choose_predictor(config, process)
    training = config.training
    files = process.broadcast(hash_inputs(config, checkpoint, items) if process.is_main else None)
    load = ViewLoader(training.data, tokenizer.image_size, tokenizer.patch_size, with_masks="psnr" in metrics)
    seen = sides(tokenizer.image_size) if training.data.square_crop else None
    remark = partial(remark_on_inputs, seen) if cfg.chooses_views else None
    evaluator = Evaluator(
        cfg,
        process,
        Path(config.inference_out_dir),
        renderer=renderer,
        metrics=metrics,
        read=items_reader(load, training.loader, process, training.process.patience, remark),
        run_id=identify_run(owners(config), files),
        patience=training.process.patience,
    )
    return evaluator, files, config


def remark_on_inputs(seen: tuple[int, int] | None, scene: Scene, selection: Selection) -> dict[str, str]:
    """What is to be said of the inputs of a scene of one's own, by kind."""
    from data.importers.verdict import remarks_on_inputs  # here, so that no other evaluation waits for OpenCV

    return remarks_on_inputs(scene, selection.context, seen)


def choose_predictor(config: Config, process: Process) -> tuple[Predictor, Path | None, Config]:
    """What gives the images, the file that its weights came from, if it has any, and the completed configuration.

    That is the configuration with what it left open (`auto`) as the weights have it, and no random background.

    Raises:
        InputError: no checkpoint, an unreadable one, or one of another model.
    """
    if config.inference.evaluation.predictor == "nearest_input":
        return NearestInput(process.device), None, with_fixed_background(with_pose_normalization(config), process)
    return load_renderer(config, process)


def hash_inputs(config: Config, checkpoint: Path | None, items: list[Item]) -> dict[str, Any]:
    """The hashes of the index, if there is one, the checkpoint and, for a video, its cameras."""
    cfg = config.inference.evaluation
    video = cfg.render_video_config if cfg.render_video else None
    index = None if cfg.chooses_views else Path(cfg.view_idx_file_path)
    return hash_files(index, checkpoint, video, items)


def describe_run(config: Config, process: Process) -> dict[str, Any]:
    """What the numbers of an evaluation came from, besides its files."""
    precision = config.training.precision
    return {
        "dtype": precision.amp_dtype if precision.use_amp else "fp32",
        "device": device_name(process.device),
        "processes": process.world_size,
        **provenance(),
        "config": flatten(config),
    }


def compare(argv: Sequence[str]) -> None:
    """Make the page of several evaluations side by side."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=compare.__doc__)
    parser.add_argument(
        "--compare", type=path_argument, nargs="+", required=True, metavar="RUN", help="evaluation folders"
    )
    parser.add_argument("--output", type=path_argument, default=Path("comparison"), help="folder that gets index.html")
    given = parser.parse_args(argv)
    output = output_folder(str(given.output), "--output")
    comparison = compare_runs(given.compare)
    if gone := missing_pictures(comparison):
        log.warning("%s missing, so the page has gaps; the first is %s", counted(len(gone), "picture"), gone[0])
    with only_writer(output, "--output"):
        page = write_comparison(output, "LVSM comparison", comparison)
    log.info("page: %s", page)


def main(argv: Sequence[str]) -> None:
    """Read the configuration and evaluate, or compare evaluations."""
    if "--compare" in argv:
        return compare(argv)
    config, overridden = load_config(argv)
    if not config.inference.invocation.if_inference:
        log.warning("inference.if_inference=false has no effect: running inference.py means inference")
    set_threads_and_precision(config.training)
    folder = output_folder(config.inference_out_dir, "inference_out_dir")
    with (
        process_group(config.training.process.distributed_timeout_minutes) as process,
        only_run(process, folder, "inference_out_dir"),
    ):
        if process.is_main:
            log.info("evaluating on %s", describe_device(process.device))
        evaluate(config, overridden, process)


if __name__ == "__main__":
    run_main(main)

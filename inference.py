"""Evaluate a checkpoint: metrics, pictures, videos and a page.

    torchrun --nproc_per_node 8 inference.py --config configs/LVSM_scene_decoder_only.yaml \\
        training.dataset_path=./preprocessed_data/test/full_list.txt training.checkpoint_dir=FILE_OR_FOLDER \\
        inference.render_video=true inference_out_dir=./experiments/evaluation/test

Inputs and targets are those of the evaluation index (`inference.view_idx_file_path`); every scene is evaluated
exactly once, whatever the number of processes and the batch size (`training.batch_size_per_gpu`).

    python inference.py --compare RUN_A RUN_B [RUN_C ...] [--output DIR]

makes a page of the output folders of such evaluations side by side.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import Batch, CameraTransform, DataConfig, EvaluationDataset, Unusable, ViewLoader
from data.loader import evaluation_batches, failures_told
from data.scene import check_cameras_are_of, read_cameras, read_scene
from data.transforms import IMAGE_ERRORS, open_image
from data.views import Selection
from evaluation.compare import compare_runs, missing_pictures
from evaluation.evaluator import EvaluationConfig
from evaluation.metrics import Metric, build_metrics
from evaluation.pages.comparison import write_comparison
from evaluation.pages.report import SceneRecord
from evaluation.rendering import Rendered, Renderer, find_items, nearest_input_psnr, render_batch, round_products
from evaluation.results import (
    PICTURE_FILES,
    RESULT_FILES,
    VIDEO_FILE,
    is_filled,
    make_record,
    read_finished,
    write_metrics,
    write_results,
)
from geometry.cameras import Cameras
from geometry.paths import camera_path
from model import build_model
from model.weights import load_published
from setup import (
    Config,
    load_config,
    output_folder,
    set_threads_and_precision,
    warn_of_other_values,
)
from utils.checkpoint import find_checkpoint, read_checkpoint
from utils.cli import path_argument, run_main
from utils.distributed import Process, describe_device, process_group
from utils.errors import InputError
from utils.files import remove_stale, sha256
from utils.lock import only_run, only_writer
from utils.media import save_grid, to_uint8, write_video
from utils.parallel import Background, cores_of_process
from utils.provenance import provenance
from utils.sections import flatten
from utils.timer import Stopwatch
from utils.watchdog import WAITING_FOR_DATA, Watch

log = logging.getLogger("lvsm")

# Where the time of an evaluation goes: waiting for scenes to be read, what is done with them, waiting for files.
STAGES = ("data", "render", "metrics", "pictures", "video", "writing")
# Threads that write pictures and videos, at most: each takes a core.
_WRITERS = 8


def load_renderer(config: Config, process: Process) -> tuple[Renderer, Path]:
    """The configured model with the weights of `training.checkpoint_dir`, and the file they came from.

    Raises:
        InputError: no checkpoint, an unreadable one, or one of another model.
    """
    named = config.training.checkpoint.checkpoint_dir
    path = process.first_on_machine(lambda: find_checkpoint(named, "training.checkpoint_dir"))
    model = build_model(config.model, config.training.execution)
    content = read_checkpoint(path)
    load_published(model, content["model"], path)
    if process.is_main:
        warn_of_other_values(config, content.get("config"), path)
    model = round_products(model, config.training.precision).to(process.device).eval()
    return Renderer(model, config.training.precision, process.device), path


def choose_items(config: Config, overridden: set[str]) -> tuple[list[tuple[Path, Selection]], dict[str, str]]:
    """The scenes to evaluate with their views, and why others of the index are left out.

    Raises:
        InputError: the index, a scene it names or a list of cameras is missing or unusable, or an override contradicts
            the index.
    """
    index_path = Path(config.inference.evaluation.view_idx_file_path)
    list_path = Path(config.training.data.dataset_path)
    allowed = (config.inference.evaluation.allow_missing, config.training.data.allow_outside_images)
    items, missing = find_items(index_path, list_path, *allowed)
    for path, selection in items:
        check_view_counts(config.training.data, overridden, selection, f"{index_path}, scene {path.stem}")
    if saved_cameras(config.inference.evaluation, items):
        check_saved_cameras(Path(config.inference.evaluation.render_video_config.cameras_path), items, allowed[1])
    return items, missing


def check_saved_cameras(path: Path, items: list[tuple[Path, Selection]], allow_outside: bool) -> None:
    """Raises InputError for saved cameras that are of another scene, or cannot be meant for a scene's images."""
    checked = set()
    for scene, selection in items:
        file, size = cameras_file(path, scene.stem), _input_size(scene, selection, allow_outside)
        if file != path:
            check_cameras_are_of(file, scene.stem)
        if (file, size) not in checked:
            read_cameras(file, size)
            checked.add((file, size))


def _input_size(path: Path, selection: Selection, allow_outside: bool) -> tuple[int, int] | None:
    """Width and height of the first input image of a scene; None if it cannot be read, as will be told in its turn."""
    try:
        with open_image(read_scene(path, allow_outside).image_path(selection.context[0])) as image:
            return image.size
    except (InputError, *IMAGE_ERRORS):
        return None


def saved_cameras(cfg: EvaluationConfig, items: list[tuple[Path, Selection]]) -> set[Path]:
    """The files of saved cameras that videos of these scenes need."""
    video = cfg.render_video_config
    if not cfg.render_video or video.traj_type != "through":
        return set()
    return {cameras_file(Path(video.cameras_path), path.stem) for path, _ in items}


def check_scene_folders(out_dir: Path, names: Iterable[str]) -> None:
    """Raises InputError for a scene whose folder in `out_dir` would be a link, a file, or one of the files there."""
    for name in names:
        folder = out_dir / name
        if name in RESULT_FILES:
            raise InputError(f"scene {name}: an evaluation writes a file of that name: rename the scene")
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} is not a folder: move it away, or choose another inference_out_dir")


def check_view_counts(cfg: DataConfig, overridden: set[str], selection: Selection, where: str) -> None:
    """Raises InputError if the command line asks for other view counts than the index gives."""
    inputs, targets = len(selection.context), len(selection.target)
    counts = {"num_input_views": inputs, "num_target_views": targets, "num_views": inputs + targets}
    for key, count in counts.items():
        if f"training.{key}" in overridden and getattr(cfg, key) != count:
            raise InputError(
                f"training.{key}={getattr(cfg, key)} contradicts {where}, which has {count}: "
                "leave it out, the index decides"
            )


class Evaluator:
    """Renders, scores and writes scenes, a batch at a time.

    Args:
        metrics: by name; none with `inference.compute_metrics=false`.
        out_dir: gets a folder per scene.
        identify: gives what stands in a scene's metrics.json, so that an interrupted evaluation knows what it has done.
        background: writes files while the next scenes are rendered.

    Attributes:
        watch: seconds spent on `STAGES`.
        images: targets rendered so far.
    """

    def __init__(
        self,
        config: Config,
        renderer: Renderer,
        metrics: dict[str, Metric],
        out_dir: Path,
        identify: Callable[[str], str],
        background: Background,
    ) -> None:
        self.cfg, self.renderer, self.metrics = config.inference.evaluation, renderer, metrics
        self.out_dir, self.identify, self.background = out_dir, identify, background
        self.watch, self.images = Stopwatch(), 0

    def evaluate(self, batch: Batch) -> list[SceneRecord]:
        """Evaluate the scenes of one batch; their files are written in the background."""
        rendered = render_batch(self.renderer, self.metrics, batch, self.watch)
        num_inputs, scores = rendered.inputs.images.shape[1], self._read_scores(batch, rendered)
        records = []
        for i, name in enumerate(batch.scenes):
            record = make_record(
                name,
                batch.frames[i].tolist(),
                num_inputs,
                {metric: values[i] for metric, values in scores.items()},
                self.cfg.render_video,
            )
            remove_stale(self.out_dir / record.folder)
            path = None
            if self.cfg.render_video:
                path = self._camera_path(name, batch.camera_transforms[i], rendered.inputs.cameras[i])
            self._write(record, rendered, i, path)
            records.append(record)
        self.images += batch.targets.numel()
        return records

    def _write(self, record: SceneRecord, rendered: Rendered, i: int, path: Cameras | None) -> None:
        """Have the files of scene `i` written, metrics.json last of all: it marks the scene as done."""
        with self.watch("pictures"):
            pictures = {
                "input.png": [to_uint8(rendered.inputs.images[i])],
                "gt_vs_pred.png": [to_uint8(rendered.targets.images[i]), to_uint8(rendered.renders[i])],
            }
        frames: Iterable[np.ndarray] = ()
        if path is not None:
            frames = self.renderer.film(rendered.encoded[i], path[None])

        identity = self.identify(record.scene_name)

        def write(chunks: Iterator[np.ndarray]) -> None:
            folder = self.out_dir / record.folder
            for name, made in (("rendered_video.mp4", path is not None), ("metrics.json", bool(self.metrics))):
                if not made:
                    # An earlier run with other settings may have left one, which is not of these pictures.
                    (folder / name).unlink(missing_ok=True)
            for file, rows in pictures.items():
                save_grid(folder / file, rows)
            if path is not None:
                write_video(folder / "rendered_video.mp4", chunks, self.cfg.render_video_config.fps)
            if self.metrics:
                write_metrics(self.out_dir, record, identity)

        with self.watch("video" if path is not None else "writing"):
            self.background.feed(write, frames)

    def _read_scores(self, batch: Batch, rendered: Rendered) -> dict[str, list[list[float]]]:
        """Every metric of every target, by scene."""
        with self.watch("metrics"):
            scores, num_inputs = rendered.scores, rendered.inputs.images.shape[1]
            if self.cfg.nearest_input:
                same = batch.frames[:, num_inputs:, None] == batch.frames[:, None, :num_inputs]
                copies = nearest_input_psnr(rendered.inputs, rendered.targets, same.to(self.renderer.device))
                scores = scores | {"psnr_nearest_input": copies}
            return {name: values.tolist() for name, values in scores.items()}

    def _camera_path(self, name: str, transform: CameraTransform, inputs: Cameras) -> Cameras:
        video, saved = self.cfg.render_video_config, None
        if video.traj_type == "through":
            saved = transform(*read_cameras(cameras_file(Path(video.cameras_path), name)))
        return camera_path(video, inputs, saved)


def cameras_file(path: Path, scene: str) -> Path:
    """The saved cameras of a scene: `path` itself, or `<scene>.json` in it if it is a folder."""
    return path / f"{scene}.json" if path.is_dir() else path


def identify_run(config: Config, hashes: Mapping[str, Any]) -> str:
    """A hash of everything that a scene's files depend on."""
    training, inference = flatten(config.training), flatten(config.inference)
    keys = (
        "dataset_path",
        "square_crop",
        "scene_scale_factor",
        "pose_normalization",
        "use_amp",
        "amp_dtype",
        "use_tf32",
        "residual_dtype",
    )
    shown = ("metrics", "nearest_input", "render_video", "render_video_config")
    parts = [dataclasses.asdict(config.model), dict(hashes)]
    parts += [{key: training[key] for key in keys}, {key: inference[key] for key in shown}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def identify_scene(run_id: str, path: Path, selection: Selection) -> str:
    """A hash of the run's and of the names, sizes and times of change of the files that the scene is read from.

    Raises:
        InputError, OSError: one of them is missing or unusable.
    """
    scene, parts = read_scene(path, allow_outside=True), [run_id]
    for file in [path, *map(scene.image_path, selection.context + selection.target)]:
        state = file.stat()
        parts.append(f"{file.name} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def find_finished(config: Config, run_id: str, path: Path, selection: Selection) -> SceneRecord | None:
    """What an interrupted evaluation wrote of a scene; None if it, or what it was made from, is not as it was."""
    out_dir, wanted = Path(config.inference_out_dir), list(PICTURE_FILES)
    wanted += [VIDEO_FILE] * config.inference.evaluation.render_video
    if not all(is_filled(out_dir / path.stem / name) for name in [*wanted, "metrics.json"]):
        return None
    try:
        identity = identify_scene(run_id, path, selection)
    except (InputError, OSError):
        return None
    return read_finished(out_dir, path.stem, selection.context + selection.target, len(selection.context), identity)


def hash_files(config: Config, checkpoint: Path, items: list[tuple[Path, Selection]]) -> dict[str, str]:
    """Names and hashes of the files that the numbers and videos come from."""
    index = Path(config.inference.evaluation.view_idx_file_path)
    files = {
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": sha256(checkpoint),
        "index": str(index),
        "index_sha256": sha256(index),
    }
    if cameras := sorted(saved_cameras(config.inference.evaluation, items)):
        hashes = "".join(map(sha256, cameras))
        files["cameras_sha256"] = hashlib.sha256(hashes.encode()).hexdigest() if len(cameras) > 1 else hashes
    return files


def describe_run(config: Config, process: Process) -> dict[str, Any]:
    """What the numbers of an evaluation came from, besides its files."""
    on_gpu, precision = process.device.type == "cuda", config.training.precision
    return {
        "dtype": precision.amp_dtype if precision.use_amp else "fp32",
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "processes": process.world_size,
        **provenance(),
        "config": flatten(config),
    }


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process evaluated: records, scenes that cannot be read and why, target images rendered, seconds.

    The seconds are those in all and by stage.
    """

    records: list[SceneRecord]
    missing: dict[str, str]
    images: int
    seconds: float
    stages: dict[str, float]


def evaluate_share(
    config: Config,
    renderer: Renderer,
    metrics: dict[str, Metric],
    run_id: str,
    items: list[tuple[Path, Selection]],
    process: Process,
) -> Share:
    """Evaluate this process's share of the scenes; the bar shows the progress of all, if a person is watching."""
    cfg, tokenizer = config.training, config.model.image_tokenizer
    dataset = EvaluationDataset(ViewLoader(cfg.data, tokenizer.image_size, tokenizer.patch_size), items)
    patience = cfg.process.patience
    batches = evaluation_batches(
        dataset, cfg.loader, cfg.loader.batch_size_per_gpu, process.rank, process.world_size, patience
    )
    missing: dict[str, str] = {}
    records, start, background = [], time.perf_counter(), Background(min(_WRITERS, cores_of_process()))
    named = {path.stem: (path, selection) for path, selection in items}

    def identify(name: str) -> str:
        return identify_scene(run_id, *named[name])

    evaluator = Evaluator(config, renderer, metrics, Path(config.inference_out_dir), identify, background)
    watch = Watch(process, stalled_after=patience / 2)
    bar = tqdm(total=len(items), unit="scene", disable=None if process.is_main else True)
    with failures_told(), watch, background, bar:
        watch.note(WAITING_FOR_DATA)
        for batch in evaluator.watch.waiting("data", batches):
            if isinstance(batch, Unusable):
                leave_out(batch, config.inference.evaluation)
                missing[batch.scene] = batch.reason
                bar.update(1)
                continue
            watch.note(f"evaluating scene {batch.scenes[0]}")
            records += evaluator.evaluate(batch)
            speed = evaluator.images * process.world_size / (time.perf_counter() - start)
            bar.set_postfix_str(f"{speed:.1f} images/s", refresh=False)
            bar.update(min(len(batch.scenes) * process.world_size, len(items) - bar.n))
            watch.note(WAITING_FOR_DATA)
        watch.note("writing")
        with evaluator.watch("writing"):
            background.finish()
    return Share(records, missing, evaluator.images, time.perf_counter() - start, dict(evaluator.watch.seconds))


def leave_out(unusable: Unusable, cfg: EvaluationConfig) -> None:
    """Log that a scene is left out; raises InputError unless `inference.allow_missing` allows it."""
    if not cfg.allow_missing:
        raise InputError(f"{unusable.reason}: inference.allow_missing=true goes on without the scene")
    log.warning("scene %s is left out: %s", unusable.scene, unusable.reason)


def describe_speed(shares: Sequence[Share]) -> dict[str, Any]:
    """Target images a second of all processes together, and where the mean process spent its seconds.

    Empty if nothing was left to render.
    """
    images, seconds = sum(share.images for share in shares), max(share.seconds for share in shares)
    if not images:
        return {}
    stages = {stage: sum(share.stages.get(stage, 0.0) for share in shares) / len(shares) for stage in STAGES}
    return {
        "images_per_second": round(images / seconds, 2),
        "seconds_by_stage": {stage: round(value, 2) for stage, value in stages.items()},
    }


def evaluate(config: Config, overridden: set[str], process: Process) -> None:
    """Evaluate every scene of the index that an interrupted run has not finished, then write the results of all."""
    start, out_dir, cfg = time.perf_counter(), Path(config.inference_out_dir), config.inference.evaluation
    items, missing = process.broadcast(choose_items(config, overridden) if process.is_main else None)
    check_scene_folders(out_dir, [path.stem for path, _ in items])
    if process.is_main:
        remove_stale(out_dir)
    names = cfg.metrics if cfg.compute_metrics else []
    size = config.model.image_tokenizer.image_size
    metrics = process.first_on_machine(lambda: build_metrics(names, process.device, size))
    renderer, checkpoint = load_renderer(config, process)
    files = process.broadcast(hash_files(config, checkpoint, items) if process.is_main else None)
    run_id = identify_run(config, files)
    own = items[process.rank :: process.world_size] if names else []
    found = [find_finished(config, run_id, *item) for item in own]
    process.barrier("reading what is finished")
    everybody = [record for share in process.gather(found) for record in share]
    finished = {record.scene_name: record for record in everybody if record is not None}
    if finished and process.is_main:
        log.info("%d of %d scenes were evaluated before", len(finished), len(items))
    left = [item for item in items if item[0].stem not in finished]
    share = evaluate_share(config, renderer, metrics, run_id, left, process)
    process.barrier("evaluating")
    shares = process.gather(share)
    missing |= {name: reason for share in shares for name, reason in share.missing.items()}
    finished |= {record.scene_name: record for share in shares for record in share.records}
    if not finished:
        raise InputError(f"none of the {len(items)} scenes can be read, one of them: {next(iter(missing.values()))}")
    if process.is_main:
        seconds = round(time.perf_counter() - start, 1)
        speed = describe_speed(shares)
        records = [finished[path.stem] for path, _ in items if path.stem in finished]
        run = {**files, "scenes": len(records), "seconds": seconds, **speed, **describe_run(config, process)}
        if missing:
            log.warning("%d scenes of the index were left out, results.json says which", len(missing))
            run["missing"] = missing
        write_results(out_dir, records, run, cfg.generate_website)
    process.barrier("writing results")


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
        log.warning("%d pictures are missing, the page has gaps there; the first is %s", len(gone), gone[0])
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

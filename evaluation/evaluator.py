"""The evaluation of a model on scenes: renders, scores, files; what is finished is not done again."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from data.dataset import Batch, CameraTransform, Unusable
from data.loader import failures_told
from data.scene import read_cameras
from data.views import Selection
from evaluation.identity import identify_scene
from evaluation.items import Item, ReadItems, cameras_file
from evaluation.metrics import METRICS, Metric
from evaluation.pages.report import SceneRecord
from evaluation.renderer import Predictor
from evaluation.scene_files import (
    METRICS_FILE,
    PICTURE_FILES,
    VIDEO_FILE,
    is_filled,
    make_record,
    picture_files,
    read_finished,
    write_metrics,
)
from evaluation.scoring import Rendered, nearest_input_psnr, render_batch
from geometry.cameras import Cameras
from geometry.paths import VideoConfig, camera_path
from utils.distributed import Process
from utils.errors import InputError
from utils.fields import file_path, some_of
from utils.files import remove_stale
from utils.media import save_grid, to_uint8, write_video
from utils.parallel import Background, cores_of_process
from utils.text import counted
from utils.timer import Timer
from utils.watchdog import WAITING_FOR_DATA, Watchdog

log = logging.getLogger("lvsm")

# Where the time of an evaluation goes: waiting for scenes to be read, what is done with them, waiting for files.
STAGES = ("data", "render", "metrics", "pictures", "video", "writing")
# Stands for an index that does not exist.
AUTO = "auto"
# Threads that write pictures and videos, at most: each takes a core.
_WRITERS = 8


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated and written; the published files have all keys but the last five.

    `view_idx_file_path` is `auto` where there is no index: the inputs are spread over each scene's cameras, or are the
    `input_frames`, and all other frames are targets. `predictor` is what gives the images: the model, or copies of the
    nearest input views, which need no weights.
    """

    compute_metrics: bool = True
    generate_website: bool = True
    render_video: bool = False
    view_idx_file_path: str = file_path("./data/evaluation_index_re10k.json")
    render_video_config: VideoConfig = field(default_factory=VideoConfig)
    metrics: list[str] = some_of(["psnr", "ssim", "lpips"], lambda: METRICS)
    allow_missing: bool = False
    nearest_input: bool = False
    predictor: Literal["model", "nearest_input"] = "model"
    input_frames: list[int] = field(default_factory=list)

    @property
    def chooses_views(self) -> bool:
        """Whether inputs and targets are chosen without an index."""
        return self.view_idx_file_path == AUTO or bool(self.input_frames)


@dataclass(frozen=True)
class Part:
    """What one process evaluated: records, scenes that cannot be read and why, target images rendered, seconds.

    The seconds are those in all and by stage.
    """

    records: list[SceneRecord]
    missing: dict[str, str]
    images: int
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """All scenes that could be read, in the order asked for, why the others could not, and how fast it went."""

    records: list[SceneRecord]
    missing: dict[str, str]
    speed: dict[str, Any]


class Evaluator:
    """Renders, scores and writes scenes.

    Args:
        out_dir: gets a folder per scene.
        metrics: by name; none if nothing is to be scored.
        read: reads scenes.
        run_id: what the files depend on (`identify_run`), so that an interrupted evaluation knows what it has done.
        patience: seconds that a batch of scenes may take to come.

    Attributes:
        timer: seconds spent on `STAGES`.
        images: targets rendered so far.
    """

    def __init__(
        self,
        cfg: EvaluationConfig,
        process: Process,
        out_dir: Path,
        *,
        renderer: Predictor,
        metrics: dict[str, Metric],
        read: ReadItems,
        run_id: str,
        patience: float,
    ) -> None:
        self.cfg = cfg
        self.process = process
        self.out_dir = out_dir
        self.renderer = renderer
        self.metrics = metrics
        self.read = read
        self.run_id = run_id
        self.timer = Timer()
        self.images = 0
        self._watchdog = Watchdog(process, stalled_after=patience / 2)
        self._background = Background(min(_WRITERS, cores_of_process()))
        self._items: dict[str, Item] = {}

    def run(self, items: list[Item]) -> Evaluated:
        """Evaluate the scenes that an interrupted run has not finished, on all processes.

        Raises:
            InputError: a scene cannot be read and `allow_missing` is not set, or none can.
        """
        finished = self._find_finished(items)
        if finished and self.process.is_main:
            log.info("evaluated before: %d of %s", len(finished), counted(len(items), "scene"))
        part = self._evaluate_part([item for item in items if item[0].stem not in finished])
        self.process.barrier("evaluating")
        parts = self.process.gather(part)
        missing = {name: reason for part in parts for name, reason in part.missing.items()}
        finished |= {record.scene_name: record for part in parts for record in part.records}
        if not finished:
            raise InputError(f"no scene of the index can be read; one of them: {next(iter(missing.values()))}")
        records = [finished[path.stem] for path, _ in items if path.stem in finished]
        return Evaluated(records, missing, describe_speed(parts))

    def _find_finished(self, items: list[Item]) -> dict[str, SceneRecord]:
        """What an interrupted run with the same identity has finished, by scene; every process looks at its part."""
        own = items[self.process.rank :: self.process.world_size] if self.metrics else []
        found = [self._read_finished(*item) for item in own]
        self.process.barrier("reading what is finished")
        everybody = [record for part in self.process.gather(found) for record in part]
        return {record.scene_name: record for record in everybody if record is not None}

    def _read_finished(self, path: Path, selection: Selection) -> SceneRecord | None:
        """What was written of a scene; None if it, or what it was made from, is not as it was."""
        pictures = picture_files(len(selection.target))
        wanted = [*pictures, METRICS_FILE] + [VIDEO_FILE] * self.cfg.render_video
        if not all(is_filled(self.out_dir / path.stem / name) for name in wanted):
            return None
        try:
            identity = identify_scene(self.run_id, path, selection)
        except (InputError, OSError):
            return None
        return read_finished(self.out_dir, path.stem, selection.frames, len(selection.context), identity)

    def _evaluate_part(self, items: list[Item]) -> Part:
        """Evaluate this process's part of the scenes; the bar shows the progress of all, if a person is watching."""
        self._items = {path.stem: (path, selection) for path, selection in items}
        missing: dict[str, str] = {}
        records: list[SceneRecord] = []
        start = time.perf_counter()
        bar = tqdm(total=len(items), unit="scene", disable=None if self.process.is_main else True)
        with failures_told(), self._watchdog, self._background, bar:
            self._watchdog.note(WAITING_FOR_DATA)
            for batch in self.timer.waiting("data", self.read(items)):
                if isinstance(batch, Unusable):
                    self._leave_out(batch)
                    missing[batch.scene] = batch.reason
                    bar.update(1)
                    continue
                self._watchdog.note(f"evaluating scene {batch.scenes[0]}")
                records += self.evaluate_batch(batch)
                speed = self.images * self.process.world_size / (time.perf_counter() - start)
                bar.set_postfix_str(f"{speed:.1f} images/s", refresh=False)
                bar.update(min(len(batch.scenes) * self.process.world_size, len(items) - bar.n))
                self._watchdog.note(WAITING_FOR_DATA)
            self._watchdog.note("writing")
            with self.timer("writing"):
                self._background.finish()
        return Part(records, missing, self.images, time.perf_counter() - start, dict(self.timer.seconds))

    def _leave_out(self, unusable: Unusable) -> None:
        """Log that a scene is left out; raises InputError unless `allow_missing` allows it."""
        if not self.cfg.allow_missing:
            raise InputError(f"{unusable.reason}: inference.allow_missing=true goes on without the scene")
        log.warning("scene %s is left out: %s", unusable.scene, unusable.reason)

    def evaluate_batch(self, batch: Batch) -> list[SceneRecord]:
        """Evaluate the scenes of one batch; their files are written in the background."""
        rendered = render_batch(self.renderer, self.metrics, batch, self.timer)
        scores = self._read_scores(batch, rendered)
        records = []
        for i, name in enumerate(batch.scenes):
            record = make_record(
                name,
                batch.frames[i].tolist(),
                batch.num_inputs,
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
        with self.timer("pictures"):
            rows = [
                [to_uint8(rendered.inputs.images[i])],
                [to_uint8(rendered.targets.images[i]), to_uint8(rendered.renders[i])],
            ]
            pictures = dict(zip(picture_files(len(record.per_view)), rows, strict=False))
        frames: Iterable[np.ndarray] = ()
        if path is not None:
            frames = self.renderer.film(rendered.encoded[i], path[None])

        identity = identify_scene(self.run_id, *self._items[record.scene_name])

        def write(chunks: Iterator[np.ndarray]) -> None:
            folder = self.out_dir / record.folder
            made = {*pictures, *[VIDEO_FILE] * (path is not None), *[METRICS_FILE] * bool(self.metrics)}
            for name in {*PICTURE_FILES, VIDEO_FILE, METRICS_FILE} - made:
                # An earlier run with other settings may have left one, which is not of these pictures.
                (folder / name).unlink(missing_ok=True)
            for file, rows in pictures.items():
                save_grid(folder / file, rows)
            if path is not None:
                write_video(folder / VIDEO_FILE, chunks, self.cfg.render_video_config.fps)
            if self.metrics:
                write_metrics(self.out_dir, record, identity)

        with self.timer("video" if path is not None else "writing"):
            self._background.feed(write, frames)

    def _read_scores(self, batch: Batch, rendered: Rendered) -> dict[str, list[list[float]]]:
        """Every metric of every target, by scene."""
        with self.timer("metrics"):
            scores = rendered.scores
            if self.cfg.nearest_input and batch.targets.numel():
                inputs = batch.frames[:, : batch.num_inputs]
                same = batch.frames[:, batch.num_inputs :, None] == inputs[:, None]
                copies = nearest_input_psnr(rendered.inputs, rendered.targets, same.to(self.renderer.device))
                scores = scores | {"psnr_nearest_input": copies}
            return {name: values.tolist() for name, values in scores.items()}

    def _camera_path(self, name: str, transform: CameraTransform, inputs: Cameras) -> Cameras:
        video = self.cfg.render_video_config
        saved = None
        if video.traj_type == "through":
            saved = transform(*read_cameras(cameras_file(Path(video.cameras_path), name)))
        return camera_path(video, inputs, saved)


def describe_speed(parts: Sequence[Part]) -> dict[str, Any]:
    """Target images a second of all processes together, and where the mean process spent its seconds.

    Empty if nothing was left to render.
    """
    images = sum(part.images for part in parts)
    seconds = max(part.seconds for part in parts)
    if not images:
        return {}
    stages = {stage: sum(part.stages.get(stage, 0.0) for part in parts) / len(parts) for stage in STAGES}
    return {
        "images_per_second": round(images / seconds, 2),
        "seconds_by_stage": {stage: round(value, 2) for stage, value in stages.items()},
    }

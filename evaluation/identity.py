"""A hash of all that an evaluation's files depend on: a finished scene with another hash is evaluated anew."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.scene import read_scene
from data.views import Selection
from evaluation.items import Item, saved_cameras
from geometry.paths import VideoConfig
from utils.files import sha256

# Configs, or fields of one, that cannot change what is rendered and scored. All else counts, new options included.
CANNOT_MATTER = frozenset(
    {
        # Which process reads what, and when.
        "loader",
        "process",
        # Training alone reads them; what came of it is in the hash of the weights.
        "optim",
        "loss",
        "trainer",
        "restoring",
        "metrics_log",
        "incidents",
        "averaging.ema_decay",
        "validation",
        "data.image_resize",
        "data.image_sizes",
        # The index or `input_frames` say the views, which are in the identity of a scene.
        "evaluation.input_frames",
        "data.num_views",
        "data.num_input_views",
        "data.num_target_views",
        "data.target_has_input",
        "data.dynamic_input_view_num",
        "data.view_sampler",
        "data.view_selector",
        # Names of files whose content is hashed, and where results go.
        "checkpoint",
        "evaluation.view_idx_file_path",
        "inference_out_dir",
        # Whether a scene is evaluated, not how.
        "data.allow_outside_images",
        "evaluation.allow_missing",
        # Made anew at every end.
        "evaluation.generate_website",
        # Keys of the published files that nothing reads.
        "published",
        "invocation",
    }
)


def identify_run(configs: Mapping[str, Any], hashes: Mapping[str, Any]) -> str:
    """A hash of everything that the files of all scenes depend on.

    Args:
        configs: every config of the run by its owner's name, and values that have no owner.
        hashes: of the files that the run reads besides the scenes.
    """
    parts: dict[str, Any] = {}
    for owner, config in configs.items():
        values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {"": config}  # type: ignore[arg-type]
        for name, value in values.items():
            if not {owner, f"{owner}.{name}"} & CANNOT_MATTER:
                parts[f"{owner}.{name}"] = value
    return hashlib.sha256(json.dumps([parts, dict(hashes)], sort_keys=True).encode()).hexdigest()


def identify_scene(run_id: str, path: Path, selection: Selection) -> str:
    """A hash of the run's and of the names, sizes and times of change of the files that the scene is read from.

    Raises:
        InputError, OSError: one of them is missing or unusable.
    """
    scene = read_scene(path, allow_outside=True)
    parts = [run_id]
    for file in [path, *map(scene.image_path, selection.frames)]:
        state = file.stat()
        parts.append(f"{file.name} {state.st_size} {state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def hash_files(
    index: Path | None, checkpoint: Path | None, video: VideoConfig | None, items: list[Item]
) -> dict[str, str]:
    """Names and hashes of the files that the numbers and videos come from.

    `index` is None where there is none, `checkpoint` where no model renders, `video` if none is rendered.
    """
    files = {"checkpoint": str(checkpoint), "checkpoint_sha256": sha256(checkpoint)} if checkpoint else {}
    if index:
        files |= {"index": str(index), "index_sha256": sha256(index)}
    cameras = sorted(saved_cameras(video, items)) if video is not None else []
    if cameras:
        hashes = "".join(map(sha256, cameras))
        files["cameras_sha256"] = hashlib.sha256(hashes.encode()).hexdigest() if len(cameras) > 1 else hashes
    return files

"""Rendering and scoring of scenes, as evaluation and validation during training share it."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from data.dataset import Batch, Unusable
from data.evaluation_index import fetch_evaluation_index, match_scenes, read_evaluation_index
from data.scene import read_scene_list
from data.views import Selection
from evaluation.metrics import Metric, psnr, score
from geometry.cameras import Cameras, Views
from model import LVSM, Encoded
from utils.distributed import Process
from utils.errors import InputError
from utils.media import start_to_uint8
from utils.precision import PrecisionConfig, amp_dtype, autocast
from utils.text import printable
from utils.timer import Stopwatch

log = logging.getLogger("lvsm")

# Targets of a scene rendered at once: bounds memory, changes nothing else.
_TARGETS_AT_ONCE = 8
# Runs before kernels are recorded: compilation and choices by measuring must be over.
_WARM_UP = 3


@dataclass(frozen=True)
class Renderer:
    """A model with the precision it renders in."""

    model: LVSM
    precision: PrecisionConfig
    device: torch.device

    def encode(self, inputs: Views) -> Encoded:
        """What the model keeps of the scenes' inputs [b, v]."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.encode(inputs)

    def render(self, encoded: Encoded, targets: Cameras) -> Float[Tensor, "b t 3 h w"]:
        """Images of the target cameras [b, t]."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.decode(encoded, targets, max_views=_TARGETS_AT_ONCE).float()

    def fixed(self, encoded: Encoded, targets: Cameras) -> Callable[[Cameras], Tensor]:
        """A function of cameras [b, t] like `targets` that renders these scenes [b t 3 h w] without work for the host.

        For viewers: on a GPU the kernels are recorded once and played again; the result is overwritten by the next.
        """
        if self.device.type != "cuda":
            return lambda cameras: self.render(encoded, cameras)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            place = replace(targets, c2w=targets.c2w.clone(), fxfycxcy=targets.fxfycxcy.clone())
            for _ in range(_WARM_UP):
                self.render(encoded, place)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
            result = self.render(encoded, place)

        # The recorded kernels read the weights and `encoded` where they lie, so `play` keeps both alive.
        def play(cameras: Cameras, _read: object = (self.model, encoded)) -> Tensor:
            with torch.inference_mode():
                place.c2w.copy_(cameras.c2w)
                place.fxfycxcy.copy_(cameras.fxfycxcy)
                graph.replay()
            return result

        return play

    def stream(self, encoded: Encoded, targets: Cameras) -> Iterator[Float[Tensor, "b c 3 h w"]]:
        """Images of any number of target cameras [b, t], `c` at a time and the last time fewer."""
        for start in range(0, targets.shape[1], _TARGETS_AT_ONCE):
            yield self.render(encoded, targets[:, start : start + _TARGETS_AT_ONCE])

    def film(self, encoded: Encoded, targets: Cameras) -> Iterator[UInt8[np.ndarray, "c h w 3"]]:
        """8-bit frames of one scene from target cameras [1, t], `c` at a time, the next ones rendered meanwhile."""
        before = None
        for images in self.stream(encoded, targets):
            begun = start_to_uint8(images[0])
            if before is not None:
                yield before()
            before = begun
        if before is not None:
            yield before()


def find_items(
    index_path: Path,
    list_path: Path,
    allow_missing: bool,
    allow_outside: bool = False,
    keys: tuple[str, str] = ("inference.view_idx_file_path", "training.dataset_path"),
) -> tuple[list[tuple[Path, Selection]], dict[str, str]]:
    """The scenes of an evaluation index with their views, in its order; the published index is fetched if missing.

    Args:
        keys: what named the two paths, for messages.

    Returns:
        The scenes to evaluate, and why each of the others is left out.

    Raises:
        InputError: the index is missing, or a scene that it names, unless `allow_missing` leaves such scenes out.
    """
    fetch_evaluation_index(index_path)
    index = read_evaluation_index(index_path, keys[0])
    items, missing = match_scenes(index, read_scene_list(list_path, keys[1]), allow_outside)
    if missing and not allow_missing:
        validating = keys[0].startswith("training.")
        remedy = "make an index without them" if validating else "inference.allow_missing=true goes on without them"
        raise InputError(
            f"{len(missing)} of the {len(index)} scenes in {index_path} cannot be evaluated with "
            f"{list_path} ({_some(missing)}): {remedy}"
        )
    if missing:
        log.warning("%d of the %d scenes of the index are left out (%s)", len(missing), len(index), _some(missing))
    if not items:
        raise InputError(f"none of the scenes in {index_path} is in {list_path}")
    return items, missing


def _some(missing: dict[str, str]) -> str:
    named = [f"{printable(name, 80)}: {reason}" for name, reason in list(missing.items())[:3]]
    return "; ".join(named + ["..."] * (len(missing) > 3))


def whole(batches: Iterable[Batch | Unusable]) -> Iterator[Batch]:
    """The batches of scenes that are all to be read.

    Raises:
        InputError: one cannot be read.
    """
    for batch in batches:
        if isinstance(batch, Unusable):
            raise InputError(batch.reason)
        yield batch


def round_products(model: LVSM, cfg: PrecisionConfig) -> LVSM:
    """Keep the weights of matrix products in the precision that autocast would round them to at every call.

    For inference alone: it changes no number, and spares the rounding.
    """
    dtype = amp_dtype(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    return model


@dataclass(frozen=True)
class Rendered:
    """A batch [b] rendered: inputs [b, v], targets [b, t], what the model kept, renders and scores [b, t] by name."""

    inputs: Views
    targets: Views
    encoded: Encoded
    renders: Tensor
    scores: dict[str, Tensor]


def render_batch(
    renderer: Renderer, metrics: dict[str, Metric], batch: Batch, watch: Stopwatch | None = None
) -> Rendered:
    """Render the targets of a batch and score them; `watch` gets the seconds of `render` and `metrics`.

    Raises:
        InputError: the model renders NaN; the message names the scene.
    """
    watch = watch or Stopwatch()
    with watch("render"):
        inputs, targets = batch.to(renderer.device).split()
        encoded = renderer.encode(inputs)
        renders = renderer.render(encoded, targets.cameras)
        finite = renders.isfinite().flatten(1).all(1).tolist()
        for name, good in zip(batch.scenes, finite, strict=True):
            if not good:
                raise InputError(f"scene {name}: the model renders NaN: the checkpoint's weights are broken")
    with watch("metrics"):
        scores = score(metrics, renders, targets.images)
    return Rendered(inputs, targets, encoded, renders, scores)


def average_scores(
    renderer: Renderer, metrics: dict[str, Metric], batches: Iterable[Batch], process: Process
) -> dict[str, float]:
    """Means over scenes of the scenes' means, over the shares of all processes; each calls it with its own.

    Empty where there is not one batch.
    """
    sums, count = dict.fromkeys(metrics, 0.0), 0
    for batch in batches:
        for name, values in render_batch(renderer, metrics, batch).scores.items():
            sums[name] += values.mean(1).sum().item()
        count += len(batch.scenes)
    shares = process.gather((sums, count))
    total = sum(share_count for _, share_count in shares)
    if not total:
        return {}
    return {name: sum(share[name] for share, _ in shares) / total for name in metrics}


def nearest_input_psnr(inputs: Views, targets: Views, same: Bool[Tensor, "b t v"]) -> Float[Tensor, "b t"]:
    """PSNR of copying, for every target [b, t], the input view [b, v] whose camera centre is nearest.

    A target that is itself an input (`same`) is compared with the nearest other input.
    """
    distances = torch.cdist(targets.cameras.c2w[..., :3, 3], inputs.cameras.c2w[..., :3, 3])
    distances = distances.masked_fill(same, torch.inf)
    rows = torch.arange(len(distances), device=distances.device)[:, None]
    copies = inputs.images[rows, distances.argmin(-1)]
    return psnr(copies.flatten(0, 1), targets.images.flatten(0, 1)).view(distances.shape[:2])

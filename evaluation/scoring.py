"""Scores of rendered batches, as evaluation and validation during training share them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.dataset import Batch
from evaluation.copying import copy_nearest
from evaluation.metrics import PSNR_IN_MASK, Metric, psnr, psnr_in_mask, score
from evaluation.renderer import Predictor
from geometry.cameras import Views
from model import Encoded
from utils.distributed import Process
from utils.errors import InputError
from utils.timer import Timer


@dataclass(frozen=True)
class Rendered:
    """A batch [b] rendered: inputs [b, v], targets [b, t], what the model kept, renders and scores [b, t] by name."""

    inputs: Views
    targets: Views
    encoded: Encoded
    renders: Tensor
    scores: dict[str, Tensor]


def render_batch(renderer: Predictor, metrics: dict[str, Metric], batch: Batch, timer: Timer | None = None) -> Rendered:
    """Render the targets of a batch, if it has any, and score them; `timer` gets the seconds of `render` and `metrics`.

    Of a batch with masks PSNR, if it is among the metrics, is computed inside them, too.

    Raises:
        InputError: the model renders NaN; the message names the scene.
    """
    timer = timer or Timer()
    with timer("render"):
        batch = batch.to(renderer.device)
        inputs, targets = batch.split()
        encoded = renderer.encode(inputs)
        renders = renderer.render(encoded, targets.cameras) if batch.targets.numel() else targets.images
        finite = renders.isfinite().flatten(1).all(1).tolist()
        for name, good in zip(batch.scenes, finite, strict=True):
            if not good:
                raise InputError(
                    f"scene {name}: the model renders NaN: its weights are broken, take an earlier checkpoint"
                )
    with timer("metrics"):
        scores = score(metrics, renders, targets.images) if batch.targets.numel() else {}
        masks = batch.target_masks()
        if "psnr" in scores and masks is not None:
            flat = (renders.flatten(0, 1), targets.images.flatten(0, 1), masks.flatten(0, 1))
            scores[PSNR_IN_MASK] = psnr_in_mask(*flat).view(batch.targets.shape)
    return Rendered(inputs, targets, encoded, renders, scores)


def average_scores(
    renderer: Predictor, metrics: dict[str, Metric], batches: Iterable[Batch], process: Process
) -> dict[str, float]:
    """Means over scenes of the scenes' means, over the shares of all processes; each calls it with its own.

    Empty where there is not one batch.
    """
    sums = dict.fromkeys(metrics, 0.0)
    count = 0
    for batch in batches:
        scores = render_batch(renderer, metrics, batch).scores
        for name in sums:
            sums[name] += scores[name].mean(1).sum().item()
        count += len(batch.scenes)
    parts = process.gather((sums, count))
    total = sum(part_count for _, part_count in parts)
    if not total:
        return {}
    return {name: sum(part_sums[name] for part_sums, _ in parts) / total for name in metrics}


def nearest_input_psnr(inputs: Views, targets: Views, same: Bool[Tensor, "b t v"]) -> Float[Tensor, "b t"]:
    """PSNR of copying, for every target [b, t], the input view [b, v] whose camera centre is nearest.

    A target that is itself an input (`same`) is compared with the nearest other input.
    """
    distances = torch.cdist(targets.cameras.c2w[..., :3, 3], inputs.cameras.c2w[..., :3, 3])
    distances = distances.masked_fill(same, torch.inf)
    copies = copy_nearest(inputs.images, distances)
    return psnr(copies.flatten(0, 1), targets.images.flatten(0, 1)).view(distances.shape[:2])

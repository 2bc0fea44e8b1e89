"""Does the fast path compute on this device what the plain one does? Images, losses and gradients on seeded noise.

    python -m benchmarks.agreement --config configs/LVSM_scene_decoder_only.yaml [key=value ...]

Both run in the configured precision, the plain one without compilation and with all activations kept, and are compared
with the plain one in float32. Rows: relative distances of images in training ("renders"), in evaluation ("rendered")
and one by one as a viewer has them ("frames"), of the loss, and of all gradients in the median and at worst. Exits with
1 where the fast path is clearly further off than rounding takes the plain one.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    benchmark_parser,
    release_memory,
    seeded_batch,
    seeded_loss,
    seeded_model,
    show,
)
from data.dataset import Batch
from evaluation.renderer import finished_renderer
from setup import Config, read_config, with_training
from utils.cli import path_argument, run_main
from utils.distributed import Process, process_group
from utils.precision import autocast
from utils.text import counted

SCENES = 2
PLAIN = {"compile": "off", "attention_backend": "flash", "mlp_backend": "torch", "grad_checkpoint_every": 0}
# Everything is computed again: float32 takes twice the memory.
EXACT = {"compile": "off", "attention_backend": "efficient", "grad_checkpoint_every": 1, "keep_activations": 0.0}
EXACT |= {"use_amp": False, "use_tf32": False}
# Kernels differ in the order of sums: how much further off than the plain path the fast one may be.
TIMES = 2.0
MORE = 1e-3


def results(config: Config, process: Process, **training: Any) -> dict[str, Tensor]:
    """Images, loss and the gradients of all parameters, by name, with other values in the `training` section."""
    release_memory()
    config = with_training(config, **training)
    cfg = config.training
    model = seeded_model(config).to(process.device).train()
    loss = seeded_loss(cfg.loss, cfg.execution).to(process.device)
    batch = seeded_batch(cfg, config.model.image_tokenizer.image_size, SCENES).to(process.device)
    inputs, targets = batch.split()
    with autocast(cfg.precision, process.device):
        renders = model(inputs, targets.cameras)
        value = loss(renders, targets.images)["loss"]
    value.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {"renders": renders, **images(config, process.device, batch), "loss": value, **gradients}
    return {name: t.detach().float().cpu() for name, t in found.items()}


def images(config: Config, device: torch.device, batch: Batch) -> dict[str, Tensor]:
    """Those of evaluation, and of the first scene one by one through the recorded function of a viewer."""
    renderer = finished_renderer(seeded_model(config), config.training.precision, device)
    inputs, targets = batch.split()
    encoded = renderer.encode(inputs)
    cameras = targets.cameras[:1]
    frame = renderer.record(encoded[0], cameras[:, :1])
    frames = [frame(cameras[:, index : index + 1]) for index in range(cameras.shape[1])]
    return {"rendered": renderer.render(encoded, targets.cameras), "frames": torch.cat(frames, dim=1)}


def distances(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """How far each tensor is from the exact one, relative to its size."""
    return {name: ((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}


def too_far(fast: dict[str, float], plain: dict[str, float]) -> list[str]:
    """Names of tensors whose distance rounding does not explain, worst first; NaN is too far."""
    excess = {name: fast[name] - (TIMES * plain[name] + MORE) for name in plain}
    return sorted((name for name in excess if not excess[name] <= 0), key=lambda name: -excess[name])


def describe(name: str, far: dict[str, float]) -> dict[str, Any]:
    """One line of the table."""
    first = ("renders", "rendered", "frames", "loss")
    gradients = [value for key, value in far.items() if key not in first]
    row: dict[str, Any] = {"path": name, **{key: far[key] for key in first}}
    return row | {"gradients, median": statistics.median(gradients), "worst": max(gradients)}


def main(argv: Sequence[str]) -> None:
    """Compare, and say which tensor is off."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", type=path_argument, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args(argv)
    config = read_config(given.config, given.overrides)
    with process_group() as process:
        exact = results(config, process, **EXACT)
        plain = distances(results(config, process, **PLAIN), exact)
        fast = distances(results(config, process), exact)
    show([describe("plain", plain), describe("fast", fast)], given.json)
    if off := too_far(fast, plain):
        worst = f"{off[0]} by {fast[off[0]]:.2g}, the plain path by {plain[off[0]]:.2g}"
        raise SystemExit(f"the fast path is too far off in {counted(len(off), 'tensor')}: {worst}")


if __name__ == "__main__":
    run_main(main)

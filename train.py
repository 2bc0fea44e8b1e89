"""Train an LVSM.

    python train.py --config configs/LVSM_scene_decoder_only.yaml
    torchrun --nproc_per_node 8 train.py --config configs/LVSM_scene_decoder_only.yaml training.lr=4e-4

The run folder is `training.checkpoint_dir`; running the same command again goes on from its newest checkpoint.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.dataset import Batch, TrainingDataset, ViewLoader
from data.loader import TrainingLoader
from model import LVSM, build_model
from model.loss import Loss, build_loss, vgg19_path
from model.perceptual import fetch_vgg19
from model.weights import load_published, published_state
from setup import Config, TrainingConfig, autocast, load_config, run_main, seed_everything, set_threads_and_precision
from utils.checkpoint import find_checkpoint, numbered_checkpoints, read_checkpoint, write_checkpoint
from utils.distributed import Process, process_group
from utils.errors import InputError
from utils.files import write_text
from utils.media import save_grid
from utils.optim import build_optimizer, clip_and_step, load_optimizer, lr_at
from utils.tracking import RunningMean, Tracker, start_wandb

log = logging.getLogger("lvsm")


class Trainer:
    """Runs updates, from wherever its parts stand to `train_steps`.

    Args:
        model: the bare model, on the process's device; wrapped for data-parallel training here.
        loss: the loss, on the same device.
        loader: batches, from the position where training goes on.
        step: updates done before.
    """

    def __init__(
        self,
        cfg: TrainingConfig,
        process: Process,
        *,
        model: LVSM,
        loss: Loss,
        optimizer: torch.optim.AdamW,
        loader: TrainingLoader,
        tracker: Tracker,
        step: int = 0,
    ) -> None:
        self.cfg, self.process, self.step = cfg, process, step
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.loader, self.tracker = loader, tracker
        self.folder = Path(cfg.checkpoint_dir)
        self._parallel: nn.Module = model
        if process.world_size > 1:
            self._parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._means, self._wandb_means = RunningMean(), RunningMean()
        self._since, self._counted = time.perf_counter(), loader.position

    def run(self) -> None:
        """Train to the end, logging and saving on the way."""
        self.model.train()
        # None: silent unless a person is watching.
        silent = None if self.process.is_main else True
        with tqdm(total=self.cfg.train_steps, initial=self.step, unit="step", disable=silent) as bar:
            self._since = time.perf_counter()
            while self.step < self.cfg.train_steps:
                numbers = self.update()
                self.step += 1
                bar.update()
                self._log(numbers, bar)
                if self._due(self.cfg.checkpoint_every):
                    self.save()

    def update(self) -> dict[str, Tensor]:
        """One update: gradients over `grad_accum_steps` batches, communicated once; returns numbers on the device."""
        parts = []
        for micro_step in range(self.cfg.grad_accum_steps):
            batch = next(self.loader).to(self.process.device)
            with self._communicate(micro_step == self.cfg.grad_accum_steps - 1):
                terms = self._forward(batch, show=micro_step == 0)
                (terms["loss"] / self.cfg.grad_accum_steps).backward()
            parts.append({name: value.detach() for name, value in terms.items()})
        lr, details = lr_at(self.step, self.cfg), self._grad_norm_details()
        norm, skipped = clip_and_step(self.optimizer, self.model.parameters(), lr, self.cfg)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return means | {"grad_norm": norm, "skipped": skipped.float()} | details

    def save(self) -> None:
        """Write a checkpoint to the run folder (the main process does)."""
        if self.process.is_main:
            state = {
                "model": published_state(self.model),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "samples": self.loader.position,
            }
            log.info("saved %s", write_checkpoint(self.folder, self.step, state))

    def _communicate(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Forward and backward inside this all-reduce gradients only if `wanted`."""
        if isinstance(self._parallel, DistributedDataParallel) and not wanted:
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _forward(self, batch: Batch, show: bool) -> dict[str, Tensor]:
        inputs, targets = batch.split(self._num_inputs())
        with autocast(self.cfg, self.process.device):
            renders = self._parallel(inputs, targets.cameras)
            terms = self.loss(renders, targets.images)
        if show and (self.step + 1) % self.cfg.vis_every == 0 and self.process.is_main:
            picture = self.folder / "visuals" / f"{self.step + 1:08d}.png"
            save_grid(picture, [targets.images[0], renders[0]])
        return terms

    def _grad_norm_details(self) -> dict[str, Tensor]:
        """Gradient norms by part of the model, if asked for, before clipping."""
        if not self.cfg.log_grad_norm_details:
            return {}
        return {
            f"grad_norm/{name}": torch.nn.utils.get_total_norm(
                [p.grad for p in part.parameters() if p.grad is not None]
            )
            for name, part in self.model.named_children()
        }

    def _num_inputs(self) -> int:
        """The number of input views of this update, the same on all ranks."""
        if not self.cfg.dynamic_input_view_num:
            return self.cfg.num_input_views
        return int(np.random.default_rng([self.cfg.seed, 2, self.step]).integers(2, 5))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.cfg.train_steps

    def _log(self, numbers: dict[str, Tensor], bar: tqdm) -> None:
        """Averages since the last line go out when one is due; only then are they read from the device."""
        self._means.add(numbers)
        self._wandb_means.add(numbers)
        lr = {"lr": lr_at(self.step - 1, self.cfg)}
        if self._due(self.cfg.print_every):
            line = self._means.read(self.process) | lr | {"images_per_second": self._images_per_second()}
            self.tracker.write(self.step, line)
            text = " ".join(f"{name} {value:.4g}" for name, value in line.items())
            bar.set_postfix_str(text)
            if self.process.is_main and bar.disable:
                log.info("step %d/%d %s", self.step, self.cfg.train_steps, text)
        if self._due(self.cfg.wandb_log_every):
            self.tracker.write_wandb(self.step, self._wandb_means.read(self.process) | lr)

    def _images_per_second(self) -> float:
        """Target images rendered a second by all ranks since the last call."""
        now, position = time.perf_counter(), self.loader.position
        images = (position - self._counted) * self.cfg.num_target_views
        speed = images / (now - self._since)
        self._since, self._counted = now, position
        return speed


def restore(cfg: TrainingConfig, model: LVSM, optimizer: torch.optim.AdamW) -> tuple[int, int]:
    """Load what training goes on from; returns updates done and samples seen.

    The run folder's newest checkpoint comes first, then `resume_ckpt` (with `reset_training_state`, its weights alone).

    Raises:
        InputError: a checkpoint is unreadable, of another model, or holds no training state though one is needed.
    """
    own = numbered_checkpoints(Path(cfg.checkpoint_dir))
    if own and cfg.reset_training_state:
        log.warning("reset_training_state has no effect: this run has begun, %s goes on", cfg.checkpoint_dir)
    if not own and not cfg.resume_ckpt:
        return 0, 0
    path = own[-1] if own else find_checkpoint(Path(cfg.resume_ckpt), "training.resume_ckpt")
    state = read_checkpoint(path)
    load_published(model, state["model"], path)
    if not own and cfg.reset_training_state:
        log.info("weights from %s, training starts anew", path)
        return 0, 0
    if not {"optimizer", "step", "samples"} <= state.keys():
        raise InputError(f"{path} holds weights alone: set training.reset_training_state=true to start from them")
    load_optimizer(optimizer, state["optimizer"], path)
    log.info("going on from %s", path)
    return state["step"], state["samples"]


def prepare_loss(cfg: TrainingConfig, process: Process) -> Loss:
    """The loss on the process's device; one process a machine fetches VGG-19 if it is needed and missing."""
    if cfg.perceptual_loss_weight and process.local_rank == 0 and not vgg19_path(cfg).exists():
        fetch_vgg19(vgg19_path(cfg))
    process.barrier()
    return build_loss(cfg).to(process.device)


def prepare_folder(config: Config, process: Process) -> Tracker:
    """Record the configuration in the run folder and open the places where numbers go."""
    cfg, wandb_run = config.training, None
    folder = Path(cfg.checkpoint_dir)
    if process.is_main:
        resolved = OmegaConf.structured(config)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(resolved))
        wandb_run = start_wandb(
            project=cfg.wandb_project,
            name=cfg.wandb_exp_name,
            folder=folder,
            config=dataclasses.asdict(config),
            key_file=Path(cfg.api_key_path),
        )
    return Tracker(folder, process, wandb_run)


def build_trainer(config: Config, process: Process) -> Trainer:
    """Build every part of a run and restore its state.

    Raises:
        InputError: data, weights or values that cannot be used.
    """
    cfg, tokenizer = config.training, config.model.image_tokenizer
    _check_training(cfg)
    set_threads_and_precision(cfg)
    seed_everything(cfg.seed + process.rank)
    dataset = TrainingDataset(ViewLoader(cfg, tokenizer.image_size, tokenizer.patch_size), cfg.seed)
    loss = prepare_loss(cfg, process)
    model = build_model(config.model, cfg.grad_checkpoint_every).to(process.device)
    optimizer = build_optimizer(model, cfg)
    step, samples = restore(cfg, model, optimizer)
    loader = TrainingLoader(dataset, cfg, cfg.batch_size_per_gpu, process.rank, process.world_size, samples)
    tracker = prepare_folder(config, process)
    if process.is_main:
        _say(cfg, process, model, len(dataset.scenes))
    return Trainer(cfg, process, model=model, loss=loss, optimizer=optimizer, loader=loader, tracker=tracker, step=step)


def _check_training(cfg: TrainingConfig) -> None:
    if cfg.use_amp and cfg.amp_dtype == "fp16":
        raise InputError("training.amp_dtype=fp16 would need loss scaling: train with bf16 or fp32")
    free = cfg.num_views if cfg.target_has_input else cfg.num_views - cfg.num_target_views
    if cfg.dynamic_input_view_num and (free < 4 or cfg.pose_normalization != "all_views"):
        raise InputError(
            "training.dynamic_input_view_num draws 2 to 4 inputs: it needs room for 4 in num_views, "
            "and pose_normalization=all_views"
        )


def _say(cfg: TrainingConfig, process: Process, model: LVSM, num_scenes: int) -> None:
    total = cfg.batch_size_per_gpu * process.world_size * cfg.grad_accum_steps
    log.info(
        "%s, %.1f M parameters, %d scenes; batch %d x %d processes x %d accumulated = %d scenes an update",
        type(model).__name__,
        sum(p.numel() for p in model.parameters()) / 1e6,
        num_scenes,
        cfg.batch_size_per_gpu,
        process.world_size,
        cfg.grad_accum_steps,
        total,
    )


def main(argv: Sequence[str]) -> None:
    """Build and run."""
    config, _ = load_config(argv)
    with process_group() as process:
        trainer = build_trainer(config, process)
        try:
            trainer.run()
            process.barrier()
        finally:
            trainer.tracker.close()


if __name__ == "__main__":
    run_main(main)

"""Checkpoint files: which one is meant, reading without executing anything, writing whole or not at all."""

import logging
import re
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.files import atomic_path, remove_stale
from utils.hub import fetch_from_hub, is_hub_address

log = logging.getLogger("lvsm")

_NUMBERED = re.compile(r"ckpt_(\d+)\.pt")
FULL_DISK_ACTIONS = ("stop", "continue")


@dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to save; part of the `training` section of a configuration file.

    `keep_last` checkpoints stay (0: all of them), and beside them those of every `keep_every`-th step (0: none).
    `save_in_background` lets training go on while the file is written. `on_full_disk` says whether a checkpoint that
    cannot be written stops the run or only costs that checkpoint.
    """

    checkpoint_dir: str = "./experiments/checkpoints/LVSM_scene_decoder_only"
    checkpoint_every: int = 2000
    keep_last: int = 0
    keep_every: int = 0
    save_in_background: bool = False
    on_full_disk: str = "stop"


def check_checkpoint_config(cfg: CheckpointConfig) -> None:
    """Raises InputError, naming the key, for values that cannot be."""
    if cfg.on_full_disk not in FULL_DISK_ACTIONS:
        raise InputError(f"training.on_full_disk is {cfg.on_full_disk!r}; known: {', '.join(FULL_DISK_ACTIONS)}")
    for key, least in (("checkpoint_every", 1), ("keep_last", 0), ("keep_every", 0)):
        if getattr(cfg, key) < least:
            raise InputError(f"training.{key} is {getattr(cfg, key)}; it must be at least {least}")


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after `step` updates."""
    return f"ckpt_{step:016}.pt"


def checkpoint_step(path: Path) -> int:
    """The number of updates in a checkpoint's name."""
    match = _NUMBERED.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a numbered checkpoint")
    return int(match[1])


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((path for path in folder.glob("ckpt_*.pt") if _NUMBERED.fullmatch(path.name)), key=checkpoint_step)


def find_checkpoint(named: str | Path, key: str) -> Path:
    """The checkpoint that a path means: itself, or the newest of a folder; `hf://...` is fetched from the hub.

    A folder without numbered checkpoints may hold a single `.pt` file, such as a published one. `key` is the
    configuration key that named the path, for messages.

    Raises:
        InputError: there is none, or the folder holds several and none is numbered, or the hub does not give it.
    """
    if is_hub_address(named):
        return fetch_from_hub(str(named), key)
    path = Path(named)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path} ({key} names a file or a folder of ckpt_*.pt)")
    found = numbered_checkpoints(path) or sorted(path.glob("[!.]*.pt"))
    if not found:
        raise InputError(f"no checkpoint (*.pt) in the folder {path} ({key})")
    if len(found) > 1 and not _NUMBERED.fullmatch(found[-1].name):
        names = ", ".join(file.name for file in found)
        raise InputError(f"several checkpoints in {path} ({names}): name one as {key}")
    return found[-1]


def newest_readable(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder that can be read; None if the folder holds none at all.

    Raises:
        InputError: there are checkpoints and none can be read. Starting over would lose the run.
    """
    found = numbered_checkpoints(folder)
    for path in reversed(found):
        try:
            read_checkpoint(path)
        except InputError as error:
            log.error("SKIPPED %s%s", error, "" if path is found[0] else "; taking the checkpoint before it")
        else:
            return path
    if found:
        raise InputError(
            f"none of the {len(found)} checkpoints in {folder} can be read: "
            "bring one back, or move them away to start over"
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; only tensors and plain values are accepted.

    Raises:
        InputError: the file is missing, truncated or not a checkpoint with "model" in it.
    """
    try:
        # Mapping reads only what is used, and works for all but files of very old releases.
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise InputError(f"checkpoint not found: {path}") from None
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes in it
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
        raise InputError(f"checkpoint cannot be read (truncated?): {path}: {reason}") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), Mapping):
        raise InputError(f'not a checkpoint: {path}: it holds no "model"')
    return state


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `folder/ckpt_{step:016}.pt`.

    Raises:
        OSError: the disk is full or not writable; the folder is then as it was.
    """
    path = folder / checkpoint_name(step)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch hides the system's reason behind an error of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return path


class CheckpointWriter:
    """Saves to a run folder as configured, in the background if asked to, and removes what need not be kept.

    One process of a run has one; what an earlier one left half written is removed at the start.
    """

    def __init__(self, cfg: CheckpointConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.checkpoint_dir)
        remove_stale(self.folder)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, or start to; the state may change as soon as this returns.

        Raises:
            OSError: this or the last background save failed, and `on_full_disk` says to stop.
        """
        self.wait()
        if not self.cfg.save_in_background:
            self._write(step, state)
            self._raise_error()
            return
        self._thread = threading.Thread(target=self._write, args=(step, _copy_to_cpu(state)))
        self._thread.start()

    def wait(self) -> None:
        """Wait for a background save.

        Raises:
            OSError: it failed, and `on_full_disk` says to stop.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        try:
            log.info("saved %s", write_checkpoint(self.folder, step, state))
            self._prune()
        except OSError as error:
            log.error("CHECKPOINT OF STEP %d NOT SAVED: %s; earlier ones are kept", step, error)
            self._error = error if self.cfg.on_full_disk == "stop" else None
        except Exception as error:  # in a thread nobody else would hear of it
            self._error = error

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _prune(self) -> None:
        if not self.cfg.keep_last:
            return
        for path in numbered_checkpoints(self.folder)[: -self.cfg.keep_last]:
            if not self.cfg.keep_every or checkpoint_step(path) % self.cfg.keep_every:
                path.unlink()


def _copy_to_cpu(value: Any) -> Any:
    """The same nested state with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy_to_cpu(item) for item in value)
    return value

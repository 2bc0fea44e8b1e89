"""Checkpoint files: which one is meant, reading without executing anything, writing whole or not at all."""

import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from utils.errors import InputError, MisfitError
from utils.fields import bounded, file_path
from utils.files import atomic_path, parse_json, remove_stale
from utils.hub import fetch_from_hub, is_hub_address
from utils.random_state import random_state_fault
from utils.tensor_file import TensorFileError, read_metadata, read_tensors, write_safetensors
from utils.text import printable, shown

log = logging.getLogger("lvsm")

# Which weights of a checkpoint are taken: `auto` means their average if there is one.
WeightsChoice = Literal["auto", "trained", "ema"]

_NUMBERED = re.compile(r"ckpt_(\d+)\.pt")
_SUFFIXES = (".pt", ".safetensors")
# Under which of its names a checkpoint holds weights.
_WEIGHTS_NAMES = ("model", "state_dict")
# Under which name it holds their average, beside them.
AVERAGE = "ema"
# What a safetensors file keeps of a checkpoint in its metadata, and in which form.
_TEXTS = ("config",)
_JSON = ("function",)
# What messages call the weights that a checkpoint may hold.
_CALLED = {"trained": "weights as trained", "ema": "average of weights"}
# Names that a message lists.
_SHOWN = 4
# Beyond what any run counts.
_COUNT_LIMIT = 1 << 53
# What to do about a state that training cannot go on from.
WEIGHTS_ALONE = (
    "to start from its weights alone, name it as training.resume_ckpt with training.reset_training_state=true"
)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to save.

    `keep_last` checkpoints stay (0: all of them), and beside them those of every `keep_every`-th step (0: none).
    `save_in_background` lets training go on while the file is written. `on_full_disk` says whether a checkpoint that
    cannot be written stops the run or only costs that checkpoint.
    """

    checkpoint_dir: str = file_path("./experiments/checkpoints/LVSM_scene_decoder_only")
    checkpoint_every: int = bounded(2000, 1, 1_000_000_000)
    keep_last: int = bounded(0, 0, 1_000_000_000)
    keep_every: int = bounded(0, 0, 1_000_000_000)
    save_in_background: bool = False
    on_full_disk: Literal["stop", "continue"] = "stop"


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

    A folder without numbered checkpoints may hold a single file, such as a published one, `.pt` or `.safetensors`.
    `key` is the configuration key that named the path, for messages.

    Raises:
        InputError: there is none, or the folder holds several and none is numbered, or the hub does not give it.
    """
    if is_hub_address(named):
        return fetch_from_hub(str(named), key)
    path = Path(named)
    if not path.is_dir():
        if path.exists():
            return path
        raise InputError(f"no checkpoint at {path} ({key} names a file or a folder of ckpt_*.pt)")
    found = numbered_checkpoints(path) or sorted(file for file in path.glob("[!.]*") if file.suffix in _SUFFIXES)
    if not found:
        raise InputError(f"no checkpoint (*.pt, *.safetensors) in the folder {path} ({key})")
    if len(found) > 1 and not _NUMBERED.fullmatch(found[-1].name):
        names = ", ".join(printable(file.name, 80) for file in found[:_SHOWN])
        raise InputError(f"several checkpoints in {path} ({names}): name one as {key}")
    return found[-1]


def newest_readable(
    folder: Path, load: Callable[[dict[str, Any], Path], None] | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run folder that can be used, with its content; None if the folder holds none at all.

    Args:
        load: takes the weights of a checkpoint's content, and raises InputError if they are broken.

    Raises:
        MisfitError: the newest sound one is of another model.
        InputError: there are checkpoints and none can be used. Starting over would lose the run.
    """
    found = numbered_checkpoints(folder)
    faults = []
    for path in reversed(found):
        try:
            content = read_checkpoint(path)
            if load is not None:
                load(content, path)
            return path, content
        except MisfitError:
            raise
        except InputError as error:
            log.error("SKIPPED %s%s", error, "" if path is found[0] else "; taking the checkpoint before it")
            faults.append(error)
    if found:
        raise InputError(
            f"no checkpoint in {folder} can be used (the newest: {faults[0]}): "
            "bring one back, or move them away to start over"
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; only tensors and plain values are accepted.

    A state dict by itself, or under the name "state_dict", becomes the "model" of a checkpoint. What a safetensors file
    says of itself stands beside it, as `write_weights` wrote it.

    Raises:
        InputError: the file is missing, damaged or no checkpoint; the message says what it is instead.
    """
    named = printable(str(path))
    try:
        content = read_tensors(path)
        metadata = read_metadata(path)
    except FileNotFoundError:
        raise InputError(f"checkpoint not found: {named}") from None
    except (OSError, TensorFileError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"checkpoint cannot be read: {named}: {reason}") from None
    state = _with_model(content)
    if state is None:
        raise InputError(f"not a checkpoint: {named}: {_held_instead(content)}: name a file of weights")
    return state | _described(metadata, named)


def _described(metadata: Mapping[str, str], named: str) -> dict[str, Any]:
    """What metadata say of weights, as a checkpoint has it."""
    said: dict[str, Any] = {name: metadata[name] for name in _TEXTS if name in metadata}
    for name in (name for name in _JSON if name in metadata):
        try:
            said[name] = parse_json(metadata[name])
        except ValueError as error:
            reason = printable(str(error), 120)
            raise InputError(f"{named}: {name} in its metadata is not JSON ({reason}): its file is damaged") from None
    return said


def _held_instead(content: object) -> str:
    """What stands in the place of a checkpoint's weights."""
    if not isinstance(content, dict):
        return f'it holds no "model" but {shown(content)}'
    for name in _WEIGHTS_NAMES:
        if name in content:
            return f'its "{name}" is not a state dict but {shown(content[name])}'
    held = ", ".join(map(shown, list(content)[:_SHOWN]))
    return f'it holds no "model" but {held or "nothing"}'


def _with_model(content: object) -> dict[str, Any] | None:
    """A checkpoint with its weights under "model"; None if there are none."""
    if not isinstance(content, dict):
        return None
    for name in _WEIGHTS_NAMES:
        if isinstance(content.get(name), Mapping):
            return {**content, "model": content[name]}
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return {"model": content}
    return None


def held_average(content: Mapping[str, Any], path: Path, remedy: str) -> Mapping[str, Any] | None:
    """The average of weights in a checkpoint's content, if it holds one; `remedy` is the option that spares it.

    Raises:
        InputError: something else stands in its place.
    """
    average = content.get(AVERAGE)
    if average is not None and not isinstance(average, Mapping):
        raise InputError(
            f"{path}: {AVERAGE} is {shown(average)}, not an average of weights: set {remedy} to go without"
        )
    return average


def choose_weights(
    content: Mapping[str, Any], choice: WeightsChoice, path: Path, key: str, tell: bool = True
) -> tuple[dict[str, Any], Literal["trained", "ema"]]:
    """A checkpoint's content with the chosen weights as its "model", and which they are.

    Args:
        key: the option that made the choice, for messages.
        tell: say which they are, if there are two.

    Raises:
        InputError: the average is asked for, and there is none.
    """
    average = None if choice == "trained" else held_average(content, path, f"{key}=trained")
    if choice == "ema" and average is None:
        raise InputError(
            f"{path} holds no average of its weights, which {key}=ema asks for: take {key}=trained, "
            "or train with training.ema_decay"
        )
    chosen: Literal["trained", "ema"] = "trained" if average is None else "ema"
    if tell and AVERAGE in content:
        log.info("%s: taking its %s (%s=%s)", path, _CALLED[chosen], key, choice)
    return {**content, "model": content["model"] if average is None else average}, chosen


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint says of the training besides weights: updates done, samples seen, and states to go on from."""

    step: int
    samples: int
    optimizer: Mapping[str, Any]
    random_states: list[Any]


def training_state(state: Mapping[str, Any], path: Path) -> TrainingState:
    """The training state in a checkpoint's content.

    Raises:
        InputError: there is none, or a field is not what it should be.
    """
    if not {"optimizer", "step", "samples"} <= state.keys():
        raise InputError(f"{path} holds weights alone: set training.reset_training_state=true to start from them")
    for name, counted in (("step", "updates"), ("samples", "samples")):
        if type(state[name]) is not int or not 0 <= state[name] < _COUNT_LIMIT:
            raise InputError(f"{path}: {name} is {shown(state[name])}, not a number of {counted}: {WEIGHTS_ALONE}")
    if not isinstance(state["optimizer"], Mapping):
        raise InputError(f"{path}: optimizer is {shown(state['optimizer'])}, not a state: {WEIGHTS_ALONE}")
    states = state.get("random_states", [])
    if not isinstance(states, list):
        raise InputError(f"{path}: random_states is {shown(states)}, not a list: {WEIGHTS_ALONE}")
    for rank, one in enumerate(states):
        if fault := random_state_fault(one):
            raise InputError(f"{path}: random_states[{rank}]{fault}: {WEIGHTS_ALONE}")
    return TrainingState(state["step"], state["samples"], state["optimizer"], states)


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `folder/ckpt_{step:016}.pt`.

    Raises:
        OSError: the disk is full or not writable; the folder is then as it was.
    """
    path = folder / checkpoint_name(step)
    _save(path, state)
    return path


def _save(path: Path, state: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch hides the system's reason behind an error of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def write_weights(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint's weights, what they compute and the configuration of their training as one file.

    Its suffix decides the form: `.safetensors`, with texts in its metadata, or `.pt`.

    Raises:
        OSError: the disk is full or not writable; nothing is left then.
    """
    kept = {name: state[name] for name in ("model", *_TEXTS, *_JSON) if name in state}
    if path.suffix == ".safetensors":
        metadata = {name: kept[name] if name in _TEXTS else json.dumps(kept[name]) for name in kept if name != "model"}
        write_safetensors(path, kept["model"], metadata)
    else:
        _save(path, kept)


class CheckpointWriter:
    """Saves to a run folder as configured, in the background if asked to, and removes what need not be kept.

    One process of a run has one; what an earlier one left half written is removed at the start.
    """

    def __init__(self, cfg: CheckpointConfig) -> None:
        self.cfg = cfg
        self.folder = Path(cfg.checkpoint_dir)
        remove_stale(self.folder)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._lost: tuple[int, OSError] | None = None

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
        self.join()
        self._raise_error()

    def join(self) -> None:
        """Wait for a background save, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check_last(self) -> None:
        """Raises InputError if the newest checkpoint could not be written, though the run went on."""
        if self._lost is not None:
            step, error = self._lost
            raise InputError(f"the last checkpoint, of step {step}, is not on disk ({error}): make room and run again")

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        try:
            log.info("saved %s", write_checkpoint(self.folder, step, state))
            self._lost = None
            self._prune()
        except OSError as error:
            log.error("CHECKPOINT OF STEP %d NOT SAVED: %s; earlier ones are kept", step, error)
            self._error = error if self.cfg.on_full_disk == "stop" else None
            self._lost = step, error
        except Exception as error:  # in a thread nobody else would hear of it
            self._error = error

    def _raise_error(self) -> None:
        error = self._error
        self._error = None
        if error is not None:
            raise error

    def _prune(self) -> None:
        if not self.cfg.keep_last:
            return
        # A person's copy, such as ckpt_1.pt, is not this program's to remove.
        own = [
            path for path in numbered_checkpoints(self.folder) if path.name == checkpoint_name(checkpoint_step(path))
        ]
        for path in own[: -self.cfg.keep_last]:
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

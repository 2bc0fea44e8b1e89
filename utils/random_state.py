"""Random number generators of this process: seeding, and their state as plain values."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from utils.tensors import plain_fault
from utils.text import shown

# Of the Mersenne twister that Python and NumPy use.
_WORDS = 624


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of all generators, as tensors and plain values that a checkpoint may hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators into a state that `random_state` gave, and `random_state_fault` found sound."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_state_fault(state: object) -> str | None:
    """What keeps a value from a file from being a state of all generators, after its place; None if nothing does.

    Some generators would take a wrong state, and fail or read beyond their memory later.
    """
    if not isinstance(state, Mapping):
        return f" is {shown(state)}, not the state of a process"
    for name, fits in _CHECKS.items():
        if name not in state and name != "cuda":
            return f".{name} is missing"
        if name in state and not fits(state[name]):
            return f".{name} is not a state of that generator"
    return None


def _fits_python(state: Any) -> bool:
    """Whether it is (version, 624 words and a position, a number kept for later)."""
    if not _is_sequence(state, 3):
        return False
    version, internal, gauss = state
    if version != random.getstate()[0] or not _is_sequence(internal, _WORDS + 1):
        return False
    return _are_words(internal[:_WORDS]) and _is_position(internal[_WORDS]) and (gauss is None or _is_number(gauss))


def _fits_numpy(state: Any) -> bool:
    """Whether it is [name, 624 words, position, whether a number is kept for later, that number]."""
    if not _is_sequence(state, 5):
        return False
    name, keys, position, has_gauss, cached = state
    if name != "MT19937" or not _is_sequence(keys, _WORDS) or type(has_gauss) is not int:
        return False
    return _are_words(keys) and _is_position(position) and has_gauss in (0, 1) and _is_number(cached)


def _fits_torch(state: Any) -> bool:
    if plain_fault(state, torch.uint8) or state.ndim != 1:
        return False
    try:
        torch.Generator().set_state(state)
    except RuntimeError:
        return False
    return True


def _fits_cuda(state: Any) -> bool:
    """Whether it is a seed and an offset."""
    return plain_fault(state, torch.uint8) is None and tuple(state.shape) == (16,)


def _is_sequence(value: object, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _are_words(values: Sequence[object]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 32 for value in values)


def _is_position(value: object) -> bool:
    return type(value) is int and 0 <= value <= _WORDS


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "python": _fits_python,
    "numpy": _fits_numpy,
    "torch": _fits_torch,
    "cuda": _fits_cuda,
}

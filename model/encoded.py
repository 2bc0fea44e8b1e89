"""What a model keeps of scenes between `encode` and `decode`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Scenes [b] as `encode` gives them and `decode` takes them; only their model knows what is in them.

    A variant has a subclass with fields of its own: tensors whose first dimension is the scenes, and tuples or
    dataclasses of such tensors (keys and values of every layer, `Cameras`).
    """

    def __len__(self) -> int:
        """The number of scenes."""
        return len(next(_tensors(self)))

    def __getitem__(self, index: int | slice | Tensor) -> "Encoded":
        """Some of the scenes; a number gives one scene, which keeps its scene dimension."""
        if isinstance(index, int):
            start = range(len(self))[index]
            index = slice(start, start + 1)
        return _change(self, lambda tensor: tensor[index])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Encoded":
        """The same scenes on another device."""
        return _change(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> "Encoded":
        """A copy in memory of its own, which a CUDA graph can be recorded on."""
        return _change(self, torch.clone)


def _parts(value: Any) -> Iterator[Any]:
    if is_dataclass(value):
        return (getattr(value, declared.name) for declared in fields(value))
    return iter(value if isinstance(value, tuple) else ())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nest of dataclasses and tuples."""
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from _tensors(part)


def _change(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    parts = [_change(part, change) for part in _parts(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{declared.name: part for declared, part in zip(fields(value), parts, strict=True)})
    if isinstance(value, tuple):
        return value._make(parts) if hasattr(value, "_make") else tuple(parts)
    return value

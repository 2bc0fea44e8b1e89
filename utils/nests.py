"""Nests of dataclasses and tuples with tensors at their ends."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def ends_of(nest: Any) -> Iterator[Any]:
    """Tensors and whatever else is no dataclass or tuple, in an order that only the form of the nest decides."""
    if not is_dataclass(nest) and not isinstance(nest, tuple):
        yield nest
    for part in _parts(nest):
        yield from ends_of(part)


def tensors_of(nest: Any) -> Iterator[Tensor]:
    """Every tensor among the ends."""
    return (end for end in ends_of(nest) if isinstance(end, Tensor))


def change_tensors(nest: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest with every tensor changed; what is no tensor stays."""
    if isinstance(nest, Tensor):
        return change(nest)
    parts = [change_tensors(part, change) for part in _parts(nest)]
    if is_dataclass(nest) and not isinstance(nest, type):
        return replace(nest, **{declared.name: part for declared, part in zip(fields(nest), parts, strict=True)})
    if isinstance(nest, tuple):
        return nest._make(parts) if hasattr(nest, "_make") else tuple(parts)
    return nest


def _parts(nest: Any) -> Iterator[Any]:
    if is_dataclass(nest):
        return (getattr(nest, declared.name) for declared in fields(nest))
    return iter(nest if isinstance(nest, tuple) else ())

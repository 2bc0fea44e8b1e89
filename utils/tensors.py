"""Tensors from files: what may be wrong with them before they are computed with."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def tensor_fault(value: object, shape: Sequence[int] | None = None, least: float = -math.inf) -> str | None:
    """What keeps a value from a file from being plain, finite numbers on the CPU; None if nothing does.

    Looks at every element, in one pass and without a copy.

    Args:
        shape: the one it must have.
        least: the smallest number that may be in it.
    """
    return plain_fault(value) or _shape_fault(value, shape) or _value_fault(value, least)  # type: ignore[arg-type]


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; all are of one device, which is waited for once."""
    extremes = [torch.stack(torch.aminmax(value.detach())) for value in tensors.values() if value.numel()]
    if not extremes or bool(torch.isfinite(torch.stack(extremes)).all()):
        return None
    return next(name for name, value in tensors.items() if not bool(torch.isfinite(value).all()))


def plain_fault(value: object, dtype: torch.dtype | None = None) -> str | None:
    """What keeps a value from being a dense tensor of real floating-point numbers, or of `dtype`.

    Looks at no element.
    """
    if type(value) not in (Tensor, nn.Parameter):
        return f"is not a tensor but of type {type(value).__name__}"
    assert isinstance(value, Tensor)
    if value.is_nested:
        return "is a nested tensor"
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided:
        return f"is not dense ({value.layout})"
    if value.is_meta:
        return "holds no numbers (device meta)"
    if dtype is not None and value.dtype != dtype:
        return f"is of type {value.dtype}, not {dtype}"
    if dtype is None and not value.is_floating_point():
        return f"is of type {value.dtype}, not floating-point"
    return None


def _shape_fault(value: Tensor, shape: Sequence[int] | None) -> str | None:
    if shape is None or tuple(value.shape) == tuple(shape):
        return None
    return f"is {tuple(value.shape)}, expected {tuple(shape)}"


def _value_fault(value: Tensor, least: float) -> str | None:
    if not value.numel():
        return None
    # Of the types of 8 bits torch knows no extremes. NaN comes out of both, if it is anywhere.
    smallest, largest = torch.aminmax(value.detach() if value.element_size() > 1 else value.detach().float())
    if not (torch.isfinite(smallest) and torch.isfinite(largest)):
        return "holds numbers that are not finite"
    if smallest < least:
        return f"holds numbers below {least:g}"
    return None

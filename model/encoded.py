"""What a model keeps of scenes between `encode` and `decode`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.nests import change_tensors, tensors_of


@dataclass(frozen=True)
class Encoded:
    """Scenes [b] as `encode` gives them and `decode` takes them; only their model knows what is in them.

    Their tensors are not changed once they are made: who renders them may keep a copy. Only what
    `LVSM.prepare_frames` gives may be written to by `decode`.

    A variant has a subclass with fields of its own: tensors whose first dimension is the scenes, and tuples or
    dataclasses of such tensors (keys and values of every layer, `Cameras`).
    """

    def __len__(self) -> int:
        """The number of scenes."""
        return len(next(tensors_of(self)))

    def __getitem__(self, index: int | slice | Tensor) -> "Encoded":
        """Some of the scenes; a number gives one scene, which keeps its scene dimension."""
        if isinstance(index, int):
            start = range(len(self))[index]
            index = slice(start, start + 1)
        return change_tensors(self, lambda tensor: tensor[index])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in tensors_of(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Encoded":
        """The same scenes on another device."""
        return change_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def clone(self) -> "Encoded":
        """A copy in memory of its own: one of `encoded[0]`, say, does not keep the other scenes."""
        return change_tensors(self, torch.clone)

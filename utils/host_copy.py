"""Tensors on their way from a GPU to the host."""

import torch
from torch import Tensor


class HostCopy:
    """Begins to copy a tensor to the host; only `read` waits, and not for what the GPU was given since."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied = torch.cuda.Event() if tensor.is_cuda else None
        self._host = tensor
        if self._copied is not None:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied.record()

    def read(self) -> Tensor:
        """The copy; a tensor of the host is its own."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host

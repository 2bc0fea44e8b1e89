"""Kernels of a function recorded once and played again, which spares the host its work of starting them."""

import functools
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from model import Encoded
from utils.garbage import no_collection
from utils.nests import change_tensors, ends_of, tensors_of
from utils.text import described

log = logging.getLogger("lvsm")

# Plain calls before a record is made: compilation and choices by measuring must be over.
_WARM_UP = 3
# Records that are kept, those played last; each holds copies of its arguments.
_KEPT = 4
# Bytes of arguments, of which a record holds a copy.
_LARGEST = 2_000_000_000


def record_kernels(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """A CUDA graph of the function, called with other tensors in nests like `args`; its results are one's own.

    What the function reads beside its arguments is read where it lies, so the graph keeps the function alive.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        places = Places(args)
        for _ in range(_WARM_UP):
            function(*places.nests)
    graph = torch.cuda.CUDAGraph()
    # Other threads, as those of loaders, may go on meanwhile.
    recorder = torch.cuda.graph(graph, pool=_memory(), stream=stream, capture_error_mode="thread_local")
    # An older record, freed meanwhile, would spoil this one.
    with torch.inference_mode(), no_collection(), recorder:
        result = function(*places.nests)

    def play(*given: Any, _reads: object = function) -> Any:
        with torch.inference_mode():
            places.fill(given)
            graph.replay()
            return change_tensors(result, torch.clone)

    return play


class Places:
    """Memory from which a recorded function reads its arguments: copies of the first ones, until others are copied.

    Attributes:
        nests: the copies, in nests like the arguments.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.nests = change_tensors(args, torch.clone)
        # Scenes that are here whole, by their places.
        self._scenes = WeakValueDictionary({place: arg for place, arg in enumerate(args) if isinstance(arg, Encoded)})

    def fill(self, args: tuple[Any, ...]) -> None:
        """Copy arguments like the first; encoded scenes that are here already stay, since they never change."""
        for place, (nest, arg) in enumerate(zip(self.nests, args, strict=True)):
            if isinstance(arg, Encoded) and self._scenes.get(place) is arg:
                continue
            self._scenes.pop(place, None)
            for tensor, given in zip(tensors_of(nest), tensors_of(arg), strict=True):
                tensor.copy_(given, non_blocking=True)
            if isinstance(arg, Encoded):
                self._scenes[place] = arg


@functools.cache
def _memory() -> Any:
    """Memory that all records of the process share: a result is copied out of it before another record is played."""
    return torch.cuda.graph_pool_handle()


class Recordings:
    """Calls functions; those called again and again with tensors of the same shapes are recorded.

    Args:
        record: as `record_kernels`.
    """

    def __init__(self, record: Callable[..., Callable[..., Any]] = record_kernels) -> None:
        self._record = record
        self._calls: Counter[Hashable] = Counter()
        self._kept: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()
        self._failed = False

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function gives for `args`, nests of tensors; its name and their form tell calls apart."""
        form = (function.__name__, _form(args))
        if form in self._kept:
            self._kept.move_to_end(form)
            return self._kept[form](*args)
        self._calls[form] += 1
        if self._failed or self._calls[form] <= _WARM_UP or _bytes(args) > _LARGEST:
            return function(*args)
        return self._recorded(form, function, *args)

    def _recorded(self, form: Hashable, function: Callable[..., Any], *args: Any) -> Any:
        while len(self._kept) >= _KEPT:
            self._kept.popitem(last=False)
        try:
            self._kept[form] = self._record(function, *args)
        # Whatever a driver or a kernel raises while it is recorded, memory that is short as well: it runs plainly then.
        except Exception as error:
            self._failed = True
            log.warning("kernels could not be recorded, and rendering goes on without (%s)", described(error))
            return function(*args)
        return self._kept[form](*args)


def _form(args: Any) -> Hashable:
    """What a record depends on: shapes and types of tensors, and all that is no tensor."""
    return tuple((end.shape, end.dtype) if isinstance(end, Tensor) else end for end in ends_of(args))


def _bytes(args: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(args))

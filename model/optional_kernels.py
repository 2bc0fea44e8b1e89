"""Kernels of packages that are not always there: why they cannot run, and what takes their place where they fail."""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch

from utils.text import described

log = logging.getLogger("lvsm")

# The capability of Hopper cards, the oldest that the packages run on.
HOPPER = (9, 0)


def why_not(load: Callable[[], object]) -> str | None:
    """Why the kernels that `load` imports cannot run in this process; None if they can."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.cuda.get_device_capability() < HOPPER:
        return "the card is older than Hopper"
    try:
        load()
    except ModuleNotFoundError as error:
        return f"no module {error.name}; pip install -r requirements-fast.txt"
    # Whatever a broken installation raises: it is one more reason to do without.
    except Exception as error:
        return f"its import failed ({described(error)})"
    return None


@functools.cache
def written_in_triton(module: str, name: str) -> Callable[..., Any] | None:
    """A function of a module that imports Triton; None where Triton is not."""
    return getattr(importlib.import_module(module), name) if importlib.util.find_spec("triton") else None


class FallibleKernels:
    """Runs kernels of a package until one fails, and others from then on.

    Args:
        advice: what is said then, before the reason.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        # Why the package was given up, if it was.
        self.failures: list[Exception] = []

    def run(self, kernel: Callable[..., Any], instead: Callable[..., Any], *args: Any) -> Any:
        """What `kernel` gives, or `instead`, which computes the same.

        Raises:
            torch.OutOfMemoryError: there is no memory for `kernel`, which is not given up for it.
        """
        if not self.failures:
            try:
                return kernel(*args)
            except torch.OutOfMemoryError:
                raise
            # Whatever its compiler raises; an error of the arguments' own comes again below.
            except Exception as error:
                self.failures.append(error)
                log.warning("%s (%s)", self.advice, described(error))
        return instead(*args)

"""Functions of modules, run compiled or plainly, and what happens where the compiler fails."""

import functools
import logging
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from utils.text import described

log = logging.getLogger("lvsm")

# Why the compiler was given up, if it was.
_failed: list[BaseException] = []


def run_plainly(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result."""
    return function(*args)


def run_compiled(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, computed by compiled code; the function is compiled once for the whole process.

    Shapes are constants at first; the second one met makes what changed a variable, so there is no third time. Where
    the compiler fails, this and all other functions run as they are from then on; a line says so.
    """
    # Inside other compiled code it is not compiled by itself.
    if torch.compiler.is_compiling() or _failed:
        return function(*args)
    try:
        return _compile(function)(*args)
    except _compiler_errors() as error:
        # An error of the model's own comes again here, as itself.
        result = function(*args)
        _give_up(error)
        return result


class Compilable:
    """A mixin for modules with a function that is worth compiling, which they call through `self.run`.

    `run` is one of the two functions above and holds nothing of the module: the deep copy and the pickle of a
    compiled module are compiled modules with weights of their own.
    """

    run: Callable[..., Any] = staticmethod(run_plainly)


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@functools.cache
def _compiler_errors() -> tuple[type[BaseException], ...]:
    """What a failing compiler raises: torch's own, and those of the programs that it starts."""
    import torch._inductor.exc as inductor

    own = [getattr(inductor, name) for name in ("InductorError", "CppCompileError") if hasattr(inductor, name)]
    return (torch._dynamo.exc.TorchDynamoException, subprocess.SubprocessError, *own)


def _give_up(error: BaseException) -> None:
    _failed.append(error)
    log.warning(
        "compiling failed, so that nothing is compiled and an update takes half as long again; "
        "training.compile=off does without the attempt (%s)",
        described(error),
    )

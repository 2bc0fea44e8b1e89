"""Types and shapes, checked at every call of the product's functions, as jaxtyping's own decorator does.

That one checks parameters twice and binds them once more, also of functions that name no shape: half the time of many
tests. `install` puts this one in its place, before the rooms are imported.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

_own = jaxtyping.jaxtyped


def install() -> None:
    """Have the hook of `--jaxtyping-packages` decorate with `checked`."""
    jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(checked, check=typechecker)


def checked(given: Any, check: Callable) -> Any:
    """A function whose types and shapes are checked at every call, or a class whose `__init__` is if it has fields."""
    if inspect.isclass(given):
        if dataclasses.is_dataclass(given) and "__init__" in vars(given):
            given.__init__ = checked(given.__init__, check)
        return given
    typed = check(given)
    if not any(map(_names_shape, given.__annotations__.values())):
        return typed

    @functools.wraps(given)
    def in_scope(*args: Any, **kwargs: Any) -> Any:
        # The letters of shapes mean the same sizes from the first argument to the result.
        with _own("context"):
            return typed(*args, **kwargs)

    return in_scope


def _names_shape(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return True
    is_shape = inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_shape or any(map(_names_shape, typing.get_args(annotation)))

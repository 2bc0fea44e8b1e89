"""Slow tests: those that start programs or browsers, compile, train or evaluate; `make check` has no others."""

import functools
import inspect
import subprocess
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch

import inference
import train
from tests import processes
from tests.helpers import VARIANTS
from utils import pool

SLOW = (subprocess, processes.run_fresh)
# Doors whose runs take seconds; a test of them that does not is marked as fast.
DOORS = (train, inference)
# For a test marked as fast: one variant shows in `make check` that the whole runs.
ONE_FAST_VARIANT = [VARIANTS[0], *(pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS[1:])]


def is_slow(item: pytest.Item) -> bool:
    """Whether a test, a fixture that it asks for or a function of the tests that these call does so."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    functions = [item.function, *(fixture.func for several in fixtures for fixture in several)]  # type: ignore[attr-defined]
    return any(map(_leads_to_slow, functions))


@functools.cache
def _leads_to_slow(function: FunctionType) -> bool:
    return _is_slow(function, set())


def _is_slow(given: Any, seen: set[Any]) -> bool:
    given = inspect.unwrap(given) if callable(given) else given
    if isinstance(given, type) and given.__module__.startswith("tests."):
        return issubclass(given, processes.Forked) or any(_is_slow(part, seen) for part in vars(given).values())
    ours = isinstance(given, FunctionType) and given.__module__.startswith("tests.")
    if not ours or given in seen or given.__module__ == __name__:
        return False
    seen.add(given)
    names = set(_names(given.__code__))
    if {"torch", "compile"} <= names or "tests.browser" in (given.__module__, *names):
        return True
    used = [value for name, value in given.__globals__.items() if name in names]
    if names & {"main", "build_trainer"} and any(value is door for value in used for door in DOORS):
        return True
    return any(any(value is slow for slow in SLOW) or _is_slow(value, seen) for value in used)


def _names(code: CodeType) -> Iterator[str]:
    """Global names and attributes that code uses, with that of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def forbid_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a fast test fail that starts a program, other than Git for a version, or compiles."""
    started = subprocess.Popen.__init__

    def checked(self: subprocess.Popen, args: Any, *more: Any, **options: Any) -> None:
        if args[0] != "git":
            refuse(args)
        started(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", checked)
    monkeypatch.setattr(processes.Forked, "__init__", refuse)
    monkeypatch.setattr(torch, "compile", refuse)


def avoid_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a fast test do itself what it asks a single worker for: to fork takes longer than most of the work."""
    until_death = pool._until_death

    def work_here(work: Any, tasks: Any, workers: int, finished: Any) -> list[Any]:
        if workers > 1:
            return until_death(work, tasks, workers, finished)
        for task in tasks:
            finished(task, work(task))
        return []

    monkeypatch.setattr(pool, "_until_death", work_here)


def refuse(*given: Any, **_: Any) -> None:
    raise AssertionError(f"a fast test starts a program or compiles: mark it as slow ({given})")

"""Where a launcher (torchrun, srun, a script) puts this process, as its environment variables say."""

import os
import re
from dataclasses import dataclass

from utils.errors import InputError
from utils.text import shown

_HINT = "start with torchrun, which sets them all, or unset WORLD_SIZE to run alone"


@dataclass(frozen=True)
class Place:
    """This process among all (`rank` of `world_size`) and among those of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def one_machine(self) -> bool:
        """Whether the launcher says that all processes run on this machine."""
        return self.local_world_size == self.world_size


def read_place() -> Place:
    """The place that the environment gives; a plain `python` run is process 0 of 1.

    Raises:
        InputError: names the variable that is missing or cannot be.
    """
    world_size = _number("WORLD_SIZE", 1, least=1)
    if world_size > 1:
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise InputError(f"WORLD_SIZE is {world_size}, but {name} is not set: {_HINT}")
        _number("MASTER_PORT", 0, least=1, most=65535)
    rank = _number("RANK", 0, most=world_size - 1, why=f", since WORLD_SIZE is {world_size}")
    local_world_size = _number("LOCAL_WORLD_SIZE", 1, least=1)
    if not os.environ.get("LOCAL_WORLD_SIZE"):
        return Place(rank, world_size, _number("LOCAL_RANK", 0))
    why = f", since LOCAL_WORLD_SIZE is {local_world_size}"
    return Place(rank, world_size, _number("LOCAL_RANK", 0, most=local_world_size - 1, why=why), local_world_size)


def prefix() -> str:
    """Which process speaks, for messages of several; never fails, whatever the environment says."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return f"[rank {os.environ.get('RANK', '?')}] " if several else ""


def _number(name: str, default: int, least: int = 0, most: int | None = None, why: str = "") -> int:
    text = os.environ.get(name) or str(default)
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if number < least or (most is not None and number > most):
        wanted = f"from {least} to {most}" if most is not None else f"at least {least}"
        raise InputError(
            f"the environment variable {name} is {shown(text)}; it must be a number, {wanted}{why}: {_HINT}"
        )
    return number

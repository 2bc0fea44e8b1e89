"""What the keys of a configuration may hold, declared beside their defaults: ranges of numbers, paths, names."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_RANGE = "range"
_PATH = "path"
_TABLE = "table"


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `open_below` and `open_above` leave the ends out. NaN is in no range."""

    least: int | float
    most: int | float
    open_below: bool = False
    open_above: bool = False

    def admits(self, value: int | float) -> bool:
        """Whether a number is in the range."""
        above = self.least < value if self.open_below else self.least <= value
        below = value < self.most if self.open_above else value <= self.most
        return above and below

    def describe(self, value: int | float) -> str:
        """What a number outside of the range must be."""
        # Not isfinite, for which integers can be too large.
        finite = abs(value) < math.inf
        if finite and value <= self.least:
            return f"above {self.least}" if self.open_below else f"at least {self.least}"
        if finite:
            return f"below {self.most}" if self.open_above else f"at most {self.most}"
        return f"a number from {self.least} to {self.most}"


def bounded(
    default: int | float, least: int | float, most: int | float, *, open_below: bool = False, open_above: bool = False
) -> Any:  # what `dataclasses.field` gives has the field's type for a type checker
    """A dataclass field for a number from `least` to `most`, or for a list of such if its type says so."""
    return field(default=default, metadata={_RANGE: Range(least, most, open_below, open_above)})


def all_bounded(default: Sequence[Any], least: int | float, most: int | float) -> Any:
    """A dataclass field for a list of numbers from `least` to `most`, or of lists of such."""
    return field(default_factory=lambda: list(default), metadata={_RANGE: Range(least, most)})


def file_path(default: str) -> Any:
    """A dataclass field for a path, in which `~` and `$VARIABLES` are replaced when it is read."""
    return field(default=default, metadata={_PATH: True})


def is_path(declared: dataclasses.Field[Any]) -> bool:
    """Whether the field is a path."""
    return bool(declared.metadata.get(_PATH))


def one_of(default: str, table: Callable[[], Mapping[str, Any]]) -> Any:
    """A dataclass field for a name that stands in the table that `table` gives, also one that is added later."""
    return field(default=default, metadata={_TABLE: table})


def some_of(default: Sequence[str], table: Callable[[], Mapping[str, Any]]) -> Any:
    """A dataclass field for a list of such names."""
    return field(default_factory=lambda: list(default), metadata={_TABLE: table})


def table_of(declared: dataclasses.Field[Any]) -> Mapping[str, Any] | None:
    """The names that a field may hold, if it holds names."""
    table = declared.metadata.get(_TABLE)
    return None if table is None else table()


def range_of(declared: dataclasses.Field[Any]) -> Range | None:
    """The range of a field, if it holds numbers."""
    return declared.metadata.get(_RANGE)

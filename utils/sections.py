"""Sections of a configuration: as their owners declare them, and as users write them."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from utils.errors import InputError
from utils.fields import range_of, table_of
from utils.text import shown

T = TypeVar("T")


class Composed:
    """Base of a section that several owners share.

    Its fields are the owners' configs. Users write the fields of all owners as one flat section, so no two owners may
    have a field of one name: TypeError where such a class is defined.
    """

    def __init_subclass__(cls) -> None:
        owners: dict[str, type] = {}
        for owner in get_type_hints(cls).values():
            for name in keys_of(owner):
                first = owners.setdefault(name, owner)
                if first is not owner:
                    raise TypeError(f"{cls.__name__}: {first.__name__} and {owner.__name__} both have a field {name}")


@dataclass(frozen=True)
class Key:
    """What a section holds under one name: its type, and the field that declares it."""

    kind: Any
    declared: dataclasses.Field[Any]


def is_section(kind: Any) -> bool:
    """Whether a key of this type holds keys of its own."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def holds_numbers(kind: Any) -> bool:
    """Whether a key of this type holds a whole number or a list of such."""
    return kind == int | list[int]


@functools.cache
def keys_of(section: Any) -> dict[str, Key]:
    """The keys of a section as users write them, by name; a nested section is one of them."""
    kinds = get_type_hints(section)
    if issubclass(section, Composed):
        return {name: key for owner in kinds.values() for name, key in keys_of(owner).items()}
    return {declared.name: Key(kinds[declared.name], declared) for declared in dataclasses.fields(section)}


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Dotted paths and keys of all values below a section."""
    for name, key in keys_of(section).items():
        if is_section(key.kind):
            yield from leaves(key.kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", key


@functools.cache
def flat_type(section: Any) -> type:
    """A dataclass with the fields that users write, without defaults; choices are plain text."""
    return dataclasses.make_dataclass(
        section.__name__, [(name, _plain(key.kind)) for name, key in keys_of(section).items()]
    )


def _plain(kind: Any) -> Any:
    if is_section(kind):
        return flat_type(kind)
    if get_origin(kind) is Literal:
        return str
    if holds_numbers(kind):
        return Any
    if get_origin(kind) is list:
        return list[_plain(get_args(kind)[0])]  # type: ignore[misc]
    return kind


def flatten(section: Any) -> dict[str, Any]:
    """The values of a section as users write them."""
    values: dict[str, Any] = {}
    for declared in dataclasses.fields(section):
        value = getattr(section, declared.name)
        if isinstance(section, Composed):
            values |= flatten(value)
        else:
            values[declared.name] = flatten(value) if dataclasses.is_dataclass(value) else value
    return values


def distribute(section: type[T], values: Mapping[str, Any]) -> T:
    """A section from the values of all its keys as users write them, each given to its owner."""
    made = {}
    for name, kind in get_type_hints(section).items():
        if issubclass(section, Composed):
            made[name] = distribute(kind, values)
        else:
            made[name] = distribute(kind, values[name]) if is_section(kind) else values[name]
    return section(**made)


def check_fields(section: Any) -> None:
    """`check_values` of a section that is there already."""
    check_values(type(section), flatten(section))


def check_values(section: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Check every number and every choice of a section, given as users write them; its keys begin with `prefix`.

    Raises:
        InputError: a number is outside of its range or a choice is not known; the message names the key.
    """
    for name, key in keys_of(section).items():
        if is_section(key.kind):
            check_values(key.kind, values[name], f"{prefix}{name}.")
        else:
            _check_value(f"{prefix}{name}", values[name], key)


def _check_value(path: str, value: Any, key: Key) -> None:
    if get_origin(key.kind) is list:
        (kind,) = get_args(key.kind)
        for item in value:
            _check_value(path, item, Key(kind, key.declared))
        return
    allowed = range_of(key.declared)
    known = _known_names(key)
    for item in value if isinstance(value, list) else [value]:
        if holds_numbers(key.kind) and (isinstance(item, bool) or not isinstance(item, int)):
            raise InputError(f"{path} is {shown(item)}; it must be a whole number, or a list of such")
        if allowed is not None and not allowed.admits(item):
            raise InputError(f"{path} is {shown(item)}; it must be {allowed.describe(item)}")
        if known is not None and item not in known:
            raise InputError(f"{path} is {shown(item)}; known: {', '.join(known)}")


def _known_names(key: Key) -> Collection[str] | None:
    """The names that a key may hold, or None if it holds something else."""
    return get_args(key.kind) if get_origin(key.kind) is Literal else table_of(key.declared)

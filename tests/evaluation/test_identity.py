"""What an evaluation's identity depends on: everything, but for a short list."""

import dataclasses

import pytest

from evaluation.identity import CANNOT_MATTER, identify_run
from setup import build_config, owners

CONFIGS = owners(build_config({}))


OTHER_CHOICES = {"auto": "median", "exact": "fast"}


def another(value):
    """A value of the same kind that differs."""
    if dataclasses.is_dataclass(value):
        return another(dataclasses.asdict(value))
    if isinstance(value, dict):
        first = next(iter(value))
        return value | {first: another(value[first])}
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] if isinstance(value, list) else OTHER_CHOICES.get(value, f"{value}x")


def changed(owner, name):
    """The configs with another value in one place."""
    config = CONFIGS[owner]
    if not dataclasses.is_dataclass(config):
        return CONFIGS | {owner: another(config)}
    values = vars(config) | {name: another(getattr(config, name))}
    other = dataclasses.make_dataclass("Other", list(values))
    return CONFIGS | {owner: other(**values)}


PLACES = [
    (owner, name)
    for owner, config in CONFIGS.items()
    for name in (vars(config) if dataclasses.is_dataclass(config) else [""])
]


@pytest.mark.parametrize(("owner", "name"), PLACES)
def test_every_value_counts_but_those_that_cannot_matter(owner, name):
    listed = bool({owner, f"{owner}.{name}"} & CANNOT_MATTER)
    same = identify_run(changed(owner, name), {}) == identify_run(CONFIGS, {})
    assert same == listed


@pytest.mark.parametrize("owner", sorted(set(CONFIGS) - CANNOT_MATTER - {"inference_out_dir"}))
def test_a_new_option_gives_another_identity(owner):
    config = CONFIGS[owner]
    wider = dataclasses.make_dataclass("Wider", [("new_option", int, 3)], bases=(type(config),), frozen=True)
    configs = CONFIGS | {owner: wider(**vars(config))}
    assert identify_run(configs, {}) != identify_run(CONFIGS, {})


def test_everything_listed_is_there():
    there = set(CONFIGS) | {f"{owner}.{name}" for owner, name in PLACES}
    assert there >= CANNOT_MATTER


def test_other_files_give_another_identity():
    assert identify_run(CONFIGS, {"checkpoint_sha256": "a"}) != identify_run(CONFIGS, {"checkpoint_sha256": "b"})

"""Imports run one way: benchmarks, doors, setup, {training, viewer}, evaluation, {model, data}, geometry, utils."""

import ast
import functools
import re

import pytest

from tests.helpers import DOORS, ROOMS, ROOT

INNER = {"setup", *ROOMS}
ALLOWED = {
    "utils": {"utils"},
    "geometry": {"geometry", "utils"},
    "data": {"data", "geometry", "utils"},
    "model": {"model", "geometry", "utils"},
    "setup": {"model", "data", "evaluation", "training", "viewer", "geometry", "utils"},
    "evaluation": {"evaluation", "model", "data", "geometry", "utils"},
    "training": {"training", "model", "data", "geometry", "utils"},
    "viewer": {"viewer", "evaluation", "model", "data", "geometry", "utils"},
    **dict.fromkeys(DOORS, INNER),
    "benchmarks": {"benchmarks", *DOORS, *INNER},
}


def rooms(path):
    """The project's rooms that a file imports, wherever in it."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            imported.add((node.module or "").split(".")[0])
    return imported & ALLOWED.keys()


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    files = sorted((ROOT / room).glob("**/*.py")) or [ROOT / f"{room}.py"]
    for path in files:
        assert rooms(path) <= ALLOWED[room], path


def test_attention_lives_in_one_place():
    files = [path for room in ALLOWED for path in (ROOT / room).glob("**/*.py")]
    users = [path for path in files if ".scaled_dot_product_attention(" in path.read_text(encoding="utf-8")]
    assert users == [ROOT / "model" / "transformer.py"]


def test_viser_is_imported_in_one_place():
    files = [path for room in ALLOWED for path in [*(ROOT / room).glob("**/*.py"), *ROOT.glob(f"{room}.py")]]
    users = [path for path in files if re.search(r"^\s*(import|from) viser\b", path.read_text("utf-8"), re.MULTILINE)]
    assert users and {path.parent for path in users} == {ROOT / "viewer"}


@functools.cache
def parsed_tests():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests").glob("**/*.py"))}


def test_tests_share_helpers_not_one_another():
    for path, tree in parsed_tests().items():
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in modules if ".test_" in module], path


def test_programs_that_tests_run_are_files():
    for path, tree in parsed_tests().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call | ast.List | ast.Tuple):
                words = [getattr(part, "value", None) for part in ast.iter_child_nodes(node)]
                assert "-c" not in words or "bash" in words, f"{path}:{node.lineno}"

"""Imports run one way: benchmarks -> entry scripts -> {evaluation, trainer} -> setup -> {model, data} -> utils."""

import ast

import pytest

from tests.helpers import ROOT

ENTRIES = ("train", "inference", "preprocess_data")
INNER = {"evaluation", "trainer", "setup", "model", "data", "utils"}
ALLOWED = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "model": {"model", "utils"},
    "setup": {"model", "data", "utils"},
    "evaluation": {"setup", "model", "data", "utils"},
    "trainer": {"setup", "model", "data", "utils"},
    **dict.fromkeys(ENTRIES, INNER),
    "benchmarks": {"benchmarks", *ENTRIES, *INNER},
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
    files = [path for path in ROOT.glob("*/*.py") if path.parent.name in ALLOWED]
    users = [path for path in files if ".scaled_dot_product_attention(" in path.read_text()]
    assert users == [ROOT / "model" / "transformer.py"]

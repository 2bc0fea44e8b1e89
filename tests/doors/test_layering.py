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
# They take a second or more, and few commands need them: who calls them imports them, not the file.
SLOW_TO_IMPORT = {"lpips", "scipy", "skimage", "torchvision", "wandb"}


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes, path):
    """The packages and rooms that statements of a file import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def files_of(room):
    return sorted((ROOT / room).glob("**/*.py")) or [ROOT / f"{room}.py"]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    for path in files_of(room):
        assert imported(ast.walk(parse(path)), path) & ALLOWED.keys() <= ALLOWED[room], path


def test_no_command_waits_for_packages_that_it_does_not_need():
    for path in (path for room in INNER | set(DOORS) for path in files_of(room)):
        # The viewer and the synthetic rooms need theirs in any case.
        needed = {"scipy", "skimage"} if {"viewer", "synthetic"} & set(path.parts) else set()
        assert imported(parse(path).body, path) & SLOW_TO_IMPORT <= needed, path


def imported_in_the_end(room, seen):
    """What importing a file of the project imports, at once or through others."""
    path = ROOT / f"{room.replace('.', '/')}.py"
    path = path if path.exists() else ROOT / room.replace(".", "/") / "__init__.py"
    if room in seen or not path.exists():
        return {room}
    seen.add(room)
    statements = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [name.name for node in statements if isinstance(node, ast.Import) for name in node.names]
    modules += [node.module for node in statements if isinstance(node, ast.ImportFrom)]
    return {room}.union(*(imported_in_the_end(module, seen) for module in modules))


def test_processes_that_make_synthetic_clips_do_without_torch():
    found = imported_in_the_end("data.synthetic.clips", set())
    assert {"data.synthetic.textures", "cv2"} <= found and "torch" not in found


def test_attention_lives_in_one_place():
    files = [path for room in ALLOWED for path in (ROOT / room).glob("**/*.py")]
    users = [path for path in files if ".scaled_dot_product_attention(" in path.read_text(encoding="utf-8")]
    # The benchmark measures what there is to choose from.
    assert set(users) == {ROOT / "model" / "transformer.py", ROOT / "benchmarks" / "attention.py"}


def test_viser_is_imported_in_one_place():
    files = [path for room in ALLOWED for path in [*(ROOT / room).glob("**/*.py"), *ROOT.glob(f"{room}.py")]]
    users = [path for path in files if re.search(r"^\s*(import|from) viser\b", path.read_text("utf-8"), re.MULTILINE)]
    assert users and {path.parent for path in users} == {ROOT / "viewer"}


@functools.cache
def parsed_tests():
    return {path: parse(path) for path in sorted((ROOT / "tests").glob("**/*.py"))}


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

"""What the pages say exists: links, files, modules, keys."""

import ast
import re

import pytest

from model import VARIANTS
from setup import Config
from tests.helpers import DOORS, ROOMS, ROOT
from utils.sections import leaves

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# What commands of the pages make or bring, and what a person has.
MADE = ("rooms/", "objects/", "preprocessed_data/", "demo_output", "experiments/", "re10k", "../", "./")
KEYS = {key for key, _ in leaves(Config)}
FOLDERS = ("configs", "benchmarks", "tests", "docs", *ROOMS)
NAMED = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
FILES = [path.as_posix() for path in NAMED]
# Files that a person makes, and what docs/extending.md makes (test_extending.py runs it).
OWN = {"configs/api_keys.yaml", "poses.py", "model/pooled.py", "data/importers/poses.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings_of_the_page(page):
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-") for line in text.splitlines()}
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_keys_exist(page):
    named = re.findall(
        r"\b((?:model|training|inference)\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)", page.read_text(encoding="utf-8")
    )
    sections = {key.rsplit(".", 1)[0] for key in KEYS}
    modules = {f"model.{path.stem}" for path in (ROOT / "model").glob("*.py")}
    others = modules | {"model.encode", "model.decode", "inference.py", "model.pooled", "training.l1_loss_weight"}
    assert set(named) <= KEYS | sections | others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_modules_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.-])((?:[\w-]+/)*[\w-]+\.(?:py|yaml|sh|sbatch))\b", text):
        if not path.startswith(MADE) and path not in OWN:
            assert any(f"/{known}".endswith(f"/{path}") for known in FILES), path
    for module in re.findall(r"python -m ((?:data|model|benchmarks|tests)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def product():
    doors = [ROOT / f"{name}.py" for name in ("setup", *DOORS)]
    return [*doors, *(path for room in ("benchmarks", *ROOMS) for path in (ROOT / room).rglob("*.py"))]


def texts(path):
    """All texts in a file's code, those of documentation among them."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_keys_in_messages_exist():
    sections = {key.rsplit(".", 1)[0] for key in KEYS}
    modules = {f"{path.parent.name}.{path.stem}" for path in product()} | {"inference.py"}
    known = KEYS | sections | modules | {variant.published_class for variant in VARIANTS.values()}
    for path in product():
        text = "\n".join(texts(path))
        assert set(re.findall(r"\b(?:model|training|inference)\.\w+(?:\.\w+)*", text)) <= known, path

"""The recipes of docs/extending.md, applied to a copy of the project and run."""

import csv
import json
import re
import shutil

import pytest

from tests.helpers import DOORS, ROOMS, ROOT, write_toy_set
from tests.processes import run_fresh
from tests.runs import training_command
from utils.checkpoint import checkpoint_name

CODE = re.compile(r"```python\n# (\S+?\.py)(?:, (before|in|after the) (\w+))?\n(.*?)```", re.DOTALL)


def recipes():
    """The text of each recipe, by its heading."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return dict(re.findall(r"## (.*?)\n(.*?)(?=\n## |\Z)", text, re.DOTALL))


def line_of(lines, where, name):
    """Where code is put: before the table `name`, at the end of it or of the fields of a class, after the imports."""
    if where == "after the":
        return max(n for n, line in enumerate(lines) if line.startswith(("from ", "import "))) + 1
    start = next(n for n, line in enumerate(lines) if re.match(rf"(class )?{name}\b", line))
    if where == "before":
        return start - 1 if lines[start - 1].startswith("#") else start
    if lines[start].startswith("class"):
        return next(n for n in range(start, len(lines)) if re.match(r"    \w+: ", lines[n]))
    return next(n for n in range(start, len(lines)) if lines[n].startswith("}"))


def apply(project, path, where, name, code):
    file = project / path
    lines = file.read_text(encoding="utf-8").splitlines() if where else []
    start = line_of(lines, where, name) if where else 0
    lines[start:start] = code.splitlines()
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_is_short(name):
    code = [line for *_, block in CODE.findall(recipes()[name]) for line in block.splitlines()]
    own = [line for line in code if line.strip() and not line.startswith(("from ", "import "))]
    assert 0 < len(own) <= 15


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with all recipes in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("configs", *ROOMS):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "evaluation_index_*"))
    for name in ("setup", *DOORS):
        shutil.copy(ROOT / f"{name}.py", folder)
    for text in recipes().values():
        for block in CODE.findall(text):
            apply(folder, *block)
    return folder


def write_poses(folder, scenes):
    """The toy scenes as the recipe's source has them."""
    for metadata in sorted(scenes.parent.glob("metadata/*.json")):
        record = json.loads(metadata.read_text())
        place = folder / "train" / record["scene_name"]
        place.mkdir(parents=True)
        frames = []
        for number, frame in enumerate(record["frames"]):
            image = metadata.parent / frame["image_path"]
            shutil.copy(image, place / f"{number}{image.suffix}")
            frames.append({"image": f"{number}{image.suffix}", "fxfycxcy": frame["fxfycxcy"], "w2c": frame["w2c"]})
        (place / "poses.json").write_text(json.dumps(frames))


def test_the_recipes_work_together(project, place):
    write_poses(place / "poses", write_toy_set(place / "toy"))
    imported = ["--source", "poses", "--base_path", str(place / "poses"), "--output_dir", str(place), "--mode", "train"]
    model = ["model.class_name=pooled", f"training.dataset_path={place}/train/full_list.txt"]
    learned = ["training.l1_loss_weight=0.1", "training.view_sampler=neighbours", "training.print_every=1"]
    training = [*training_command(place, place / "run"), *model, *learned]
    out = place / "out"
    scored = [f"inference.view_idx_file_path={place}/index.json", f"inference_out_dir={out}"]
    evaluation = [*training_command(place, place / "run"), *model, *scored, "inference.metrics=[psnr,mae]"]
    commands = [["preprocess_data", *imported], ["train", *training], ["inference", *evaluation]]
    program = ROOT / "tests" / "programs" / "run_doors.py"
    done = run_fresh(program, *map(json.dumps, commands), folder=project)
    assert done.returncode == 0, done.stderr
    line = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 2 and line["l1_loss"] > 0
    assert (place / "run" / checkpoint_name(2)).is_file()
    (*_, last) = csv.DictReader((out / "summary.csv").read_text().splitlines())
    assert 0 < float(last["mae"]) < 1 and float(last["psnr"]) > 0

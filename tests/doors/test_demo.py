"""What `make demo` says at its end, and the animation of the README."""

import json

import pytest
from PIL import Image

from benchmarks import animation, demo_summary
from tests.helpers import ROOT, write_run
from tests.messages import refused
from tests.runs import evaluation_command as command
from tests.runs import save_model


def write_demo(folder, **psnrs):
    (folder / "run").mkdir()
    scores = [{"step": 20, "loss": 1.0}, {"step": 20, "validation/psnr": 12.0}, {"step": 40, "validation/psnr": 16.0}]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    for name, psnr in psnrs.items():
        write_run(folder / "evaluation" / name, {"a": psnr - 1, "b": psnr + 1})


def test_the_summary_shows_the_curve_the_means_and_where_to_look(tmp_path, capsys):
    write_demo(tmp_path, nearest_input=16.0, trained_here=17.25, shipped_weights=24.5)
    demo_summary.main([str(tmp_path)])
    said = capsys.readouterr().out
    first, last = (line for line in said.splitlines() if " updates " in line)
    assert "20 updates  12.00" in first and "40 updates  16.00" in last and last.count("#") > 2 * first.count("#")
    for psnr in ("16.00 dB", "17.25 dB", "24.50 dB"):
        assert psnr in said
    assert (tmp_path / "comparison" / "index.html").as_uri() in said and "make view" in said


@pytest.mark.parametrize(("trained", "shipped"), [(16.0, 24.0), (17.0, 15.0)])
def test_a_model_that_is_no_better_than_copying_ends_the_demo_with_an_error(tmp_path, trained, shipped):
    write_demo(tmp_path, nearest_input=16.0, trained_here=trained, shipped_weights=shipped)
    with refused("copying"):
        demo_summary.main([str(tmp_path)])


def test_a_demo_that_was_not_finished_is_named(tmp_path):
    write_demo(tmp_path, nearest_input=16.0)
    with refused(tmp_path / "evaluation" / "trained_here" / "results.json"):
        demo_summary.main([str(tmp_path)])
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 20, "loss": 1.0}\n')
    with refused(tmp_path / "run" / "metrics.jsonl", "training.validate_every"):
        demo_summary.main([str(tmp_path)])


def test_the_animation_goes_there_and_back(place):
    save_model(place)
    given = [argument for argument in command(place) if "inference" not in argument]
    rooms = ["--rooms", "0", "2", "--inputs", "0", "3"]
    animation.main([*given, *rooms, "--output", str(place / "walk.webp")])
    with Image.open(place / "walk.webp") as image:
        assert image.n_frames == 6 and image.size == (2 * 32 + 6, 3 * 16 + 6)
    with refused("--rooms"):
        animation.main([*given, "--rooms", "3", "--output", str(place / "walk.webp")])


def test_the_animation_of_the_readme_is_small_and_moves():
    path = ROOT / "docs" / "walk.webp"
    with Image.open(path) as image:
        assert image.n_frames > 20
    assert path.stat().st_size <= 3_000_000

"""What `make demo` says at its end, the animation of the README, the pictures of docs/own_photos.md."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import animation, demo_summary, object_pictures, photo_pictures
from evaluation.compare import compare_runs
from evaluation.pages.comparison import comparison_data
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


def test_the_summary_rounds_as_the_pages_do(tmp_path):
    write_demo(tmp_path, nearest_input=17.36500480439928, trained_here=18.0, shipped_weights=24.5)
    runs = [tmp_path / "evaluation" / name for name in ("nearest_input", "trained_here")]
    data = comparison_data(compare_runs(runs), tmp_path)
    (copied, *_), *_ = data["averages"][data["metrics"].index("psnr")]
    means = demo_summary.read_means(tmp_path)
    assert means["nearest_input"] == copied and f"{copied:.2f}" == "17.36"


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


def test_cameras_walk_round_what_they_look_at_or_turn_in_one_place():
    moved = photo_pictures.walking_round(np.eye(4))
    looked_at = moved[:, :3, 3] + 2.5 * moved[:, :3, 2]
    np.testing.assert_allclose(looked_at[:, [0, 2]], [[0, 2.5]] * 3, atol=1e-12)
    assert np.linalg.norm(np.diff(moved[:, :3, 3], axis=0), axis=1).min() > 0.5
    turned = photo_pictures.turning(np.eye(4), 9.0)
    assert not turned[:, :3, 3].any() and np.ptp(turned[:, 0, 2]) > 0.3


@pytest.mark.slow
def test_the_pictures_of_own_photographs_are_drawn_and_small(tmp_path):
    photo_pictures.main(["--output_dir", str(tmp_path), "--width", "192"])
    for name in ("moving.jpg", "epipolar.jpg"):
        drawn, kept = (Image.open(folder / name) for folder in (tmp_path, ROOT / "docs"))
        assert drawn.width / drawn.height == pytest.approx(kept.width / kept.height, rel=0.03)
        assert (ROOT / "docs" / name).stat().st_size <= 150_000


@pytest.mark.slow
def test_the_picture_of_objects_is_drawn_and_small(tmp_path):
    object_pictures.main(["--output", str(tmp_path / "objects.jpg"), "--lines", "1", "--size", "16"])
    drawn, kept = (Image.open(folder / "objects.jpg") for folder in (tmp_path, ROOT / "docs"))
    assert drawn.size == (8 * 22 - 6, 16) and kept.size == (8 * 118 - 6, 6 * 118 - 6)
    assert np.asarray(drawn).min() < 128 and np.asarray(drawn)[0, 0].min() > 240
    assert (ROOT / "docs" / "objects.jpg").stat().st_size <= 150_000

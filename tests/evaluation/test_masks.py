"""Scores of images with alpha: on the composite, and inside the mask."""

import csv
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from data.transforms import BACKGROUNDS, plan_crop
from evaluation.metrics import psnr, psnr_in_mask
from evaluation.results import averages
from evaluation.scene_files import make_record, read_finished, write_metrics
from model.weights import published_state
from setup import build_config, with_fixed_background
from tests.helpers import INDEX, write_toy_set
from tests.messages import check_told
from tests.runs import evaluation_command as command
from tests.runs import save_model
from utils.checkpoint import checkpoint_name, write_checkpoint
from utils.distributed import process_group

COPIES = ["inference.predictor=nearest_input", "training.square_crop=false"]


@pytest.fixture
def pair():
    render, image = torch.rand(2, 4, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    return 1.2 * render - 0.1, image


def test_psnr_in_a_mask_by_the_formula(pair):
    mask = np.random.default_rng(0).integers(0, 256, (4, 10, 12), dtype=np.uint8)
    mask[1, :, 3:] = 0
    found = psnr_in_mask(*pair, torch.from_numpy(mask))
    for render, image, coverage, value in zip(*(x.numpy() for x in pair), mask / 255, found, strict=True):
        error = (np.clip(render, 0, 1) - image) ** 2
        assert value.item() == pytest.approx(-10 * np.log10((error * coverage).sum() / (3 * coverage.sum())), rel=1e-6)


def test_a_whole_mask_gives_psnr_and_an_empty_one_nothing(pair):
    mask = torch.full((4, 10, 12), 255, dtype=torch.uint8)
    mask[2] = 0
    found = psnr_in_mask(*pair, mask)
    assert found.isnan().tolist() == [False, False, True, False]
    torch.testing.assert_close(found[[0, 1, 3]], psnr(*pair)[[0, 1, 3]])
    assert psnr_in_mask(pair[1], pair[1], mask)[0].item() == pytest.approx(100)


def test_what_is_outside_the_mask_does_not_count(pair):
    render, image = pair
    mask = torch.zeros(4, 10, 12, dtype=torch.uint8)
    mask[:, 2:5, 3:9] = 200
    elsewhere = torch.where(mask[:, None] > 0, render, torch.zeros(()))
    torch.testing.assert_close(psnr_in_mask(render, image, mask), psnr_in_mask(elsewhere, image, mask))


@pytest.fixture
def place(tmp_path):
    """Scenes with alpha, of which scene1 has none, and where scene2 shows nothing in frame 4."""
    write_toy_set(tmp_path / "scenes", alpha=True)
    for path in (tmp_path / "scenes" / "images" / "scene1").iterdir():
        Image.open(path).convert("RGB").save(path)
    Image.new("RGBA", (48, 32)).save(tmp_path / "scenes" / "images" / "scene2" / "00004.png")
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    return tmp_path


def stored(place, scene, frame):
    """Colours and alpha, in [0, 1], of a frame as it is evaluated."""
    image = Image.open(place / "scenes" / "images" / scene / f"{frame:05d}.png").convert("RGBA")
    crop = plan_crop(48, 32, 16, 8, False)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(crop.image(white)) / 255, np.asarray(crop.image(image.getchannel("A"))) / 255


@pytest.mark.parametrize("batch", [1, 3])
def test_an_evaluation_scores_the_composite_and_inside_the_mask(place, batch):
    inference.main(command(place, *COPIES, f"training.batch_size_per_gpu={batch}"))
    metrics = {
        name: json.loads((place / "out" / name / "metrics.json").read_text()) for name in INDEX if name[-1] in "012"
    }
    for frame, view in zip(INDEX["scene0"]["target"], metrics["scene0"]["per_view"], strict=True):
        # The toy cameras slide along a line: the nearest other input by its number.
        nearest = min((n for n in (0, 12) if n != frame), key=lambda n: abs(n - frame))
        (truth, mask), (copy, _) = stored(place, "scene0", frame), stored(place, "scene0", nearest)
        error = (copy - truth) ** 2
        assert view["psnr"] == pytest.approx(-10 * np.log10(error.mean()), abs=0.05)
        inside = (error * mask[..., None]).sum() / (3 * mask.sum())
        assert view["psnr_in_mask"] == pytest.approx(-10 * np.log10(inside), abs=0.05)
    has = {name: ["psnr_in_mask" in view for view in found["per_view"]] for name, found in metrics.items()}
    assert has == {"scene0": [True] * 3, "scene1": [False] * 3, "scene2": [False, True, True]}
    means = {name: found["summary"].get("psnr_in_mask") for name, found in metrics.items()}
    known = [view["psnr_in_mask"] for view in metrics["scene2"]["per_view"][1:]]
    assert means["scene1"] is None and means["scene2"] == pytest.approx(np.mean(known))
    results = json.loads((place / "out" / "results.json").read_text())
    assert results["averages"]["psnr_in_mask"] == pytest.approx((means["scene0"] + means["scene2"]) / 2)
    rows = list(csv.DictReader((place / "out" / "summary.csv").open()))
    assert [row["psnr_in_mask"] == "" for row in rows] == [False, True, False]
    assert '"psnr_in_mask"' in (place / "out" / "index.html").read_text()


def test_what_is_finished_is_known_again_without_numbers_that_not_every_target_has(place, caplog):
    with caplog.at_level(logging.INFO, "lvsm"):
        for _ in range(2):
            inference.main(command(place, *COPIES))
    check_told(caplog.messages, "evaluated before: 3 of 3 scenes")


def test_a_target_without_a_number_that_all_must_have_is_evaluated_anew(tmp_path):
    scores = {"psnr": [20.0, 22.0], "psnr_in_mask": [float("nan"), 15.0]}
    record = make_record("a", [3, 7, 9], 1, scores, False)
    assert record.metrics == {"psnr": 21.0, "psnr_in_mask": 15.0}
    assert [sorted(view) for view in record.per_view] == [["psnr", "view"], ["psnr", "psnr_in_mask", "view"]]
    (tmp_path / "a").mkdir()
    for name in ("input.png", "gt_vs_pred.png"):
        (tmp_path / "a" / name).write_bytes(b"x")
    write_metrics(tmp_path, record, "run")
    assert read_finished(tmp_path, "a", [3, 7, 9], 1, "run") == record
    path = tmp_path / "a" / "metrics.json"
    content = json.loads(path.read_text())
    del content["per_view"][0]["psnr"]
    content["summary"]["psnr"] = 22.0
    path.write_text(json.dumps(content))
    assert read_finished(tmp_path, "a", [3, 7, 9], 1, "run") is None


def test_averages_are_over_the_scenes_that_have_a_number():
    scenes = [{"psnr": 20.0}, {}, {"psnr": 22.0, "psnr_in_mask": 15.0}, {"psnr": 24.0, "psnr_in_mask": 16.0}]
    assert averages(scenes) == {"psnr": 22.0, "psnr_in_mask": 15.5}


def test_an_evaluation_depends_on_the_background_and_is_never_random(place, caplog):
    model = save_model(place)
    content = {"model": published_state(model), "config": "training: {background: random}"}
    write_checkpoint(place / "checkpoints", 1, content)
    runs = {}
    for background in ("random", *BACKGROUNDS):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lvsm"):
            inference.main(command(place, f"training.background={background}", out=background))
        said = [line for line in caplog.messages if "training.background" in line]
        assert len(said) == 1
        words = (
            ["for training alone"] if background == "random" else [f"'{background}'", checkpoint_name(1), "'random'"]
        )
        check_told(said, "training.background", *words)
        runs[background] = json.loads((place / background / "scene0" / "metrics.json").read_text())
    assert runs["random"] == runs["white"]
    assert runs["black"]["run"] != runs["white"]["run"]
    assert runs["black"]["per_view"] != runs["white"]["per_view"]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_fixed_background_stays(background, caplog):
    config = build_config({"training": {"background": background}})
    with process_group() as process:
        assert with_fixed_background(config, process) is config
    assert not caplog.messages

import csv
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from data.evaluation_index import Selection
from evaluation import nearest_input_psnr
from model import build_model
from model.weights import published_state
from setup import load_config
from tests.helpers import INDEX, ROOT, VARIANTS, random_views, run, small_overrides
from utils.checkpoint import checkpoint_name, write_checkpoint
from utils.errors import InputError
from utils.metrics import psnr, ssim


def command(place, *overrides, variant="decoder_only", out="out"):
    values = [
        f"training.dataset_path={place}/scenes/full_list.txt",
        f"training.checkpoint_dir={place}/checkpoints",
        f"inference.view_idx_file_path={place}/index.json",
        f"inference_out_dir={place}/{out}",
        "inference.metrics=[psnr,ssim]",
    ]
    config = ROOT / "configs" / f"LVSM_scene_{variant}.yaml"
    return ["--config", str(config), *small_overrides(variant), *values, *overrides]


def save_model(place, variant="decoder_only"):
    """A checkpoint of random weights, large enough that views differ."""
    torch.manual_seed(0)
    config, _ = load_config(command(place, variant=variant))
    model = build_model(config.model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    write_checkpoint(place / "checkpoints", 1, {"model": published_state(model)})
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_writes_every_file_with_the_right_content(variant, place):
    save_model(place, variant)
    inference.main(command(place, "inference.render_video=true", "inference.nearest_input=true", variant=variant))
    out = place / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "index.html",
        "results.json",
        "scene0",
        "scene1",
        "scene2",
        "summary.csv",
    ]
    for scene in ("scene0", "scene1", "scene2"):
        assert sorted(p.name for p in (out / scene).iterdir()) == [
            "gt_vs_pred.png",
            "input.png",
            "metrics.json",
            "rendered_video.mp4",
        ]
        metrics = json.loads((out / scene / "metrics.json").read_text())
        assert [view["view"] for view in metrics["per_view"]] == INDEX[scene]["target"]
        mean = np.mean([view["psnr"] for view in metrics["per_view"]])
        assert metrics["summary"]["scene_name"] == scene
        assert metrics["summary"]["psnr"] == pytest.approx(mean)
    assert Image.open(out / "scene0" / "input.png").size == (2 * 16, 16)
    picture = np.asarray(Image.open(out / "scene0" / "gt_vs_pred.png")) / 255
    assert picture.shape == (32, 48, 3)
    # The picture's own pixels give the numbers, but for rounding to 8 bits.
    truth, prediction = (torch.tensor(half).permute(2, 0, 1).float() for half in np.split(picture, 2))
    views = [(t[None], p[None]) for t, p in zip(truth.split(16, 2), prediction.split(16, 2), strict=True)]
    metrics = json.loads((out / "scene0" / "metrics.json").read_text())["per_view"]
    for (image, render), view in zip(views, metrics, strict=True):
        assert view["psnr"] == pytest.approx(psnr(render, image).item(), abs=0.05)
        assert view["ssim"] == pytest.approx(ssim(render, image).item(), abs=0.01)
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["scene_name"] for row in rows] == ["scene0", "scene1", "scene2"]
    averages = json.loads((out / "results.json").read_text())["averages"]
    assert averages["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))


def test_results_say_what_they_came_from(place):
    save_model(place)
    inference.main(command(place))
    results = json.loads((place / "out" / "results.json").read_text())
    run = results["provenance"]
    for key, path in (("checkpoint", place / "checkpoints" / checkpoint_name(1)), ("index", place / "index.json")):
        assert run[key] == str(path)
        assert run[f"{key}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run["scenes"] == 3 and run["dtype"] == "fp32" and run["packages"]["torch"] == torch.__version__.split("+")[0]
    assert run["config"]["training"]["batch_size_per_gpu"] == 2
    psnrs = [scene["psnr"] for scene in results["scenes"].values()]
    assert results["spread"]["psnr"] == pytest.approx(np.std(psnrs))
    # Frame 12 of scene0 is both input and target; it is left out here.
    views = json.loads((place / "out" / "scene0" / "metrics.json").read_text())["per_view"]
    without = np.mean([view["psnr"] for view in views if view["view"] != 12])
    expected = np.mean([without, *psnrs[1:]])
    assert results["averages_without_input_frames"]["psnr"] == pytest.approx(expected)
    page = (place / "out" / "index.html").read_text()
    assert run["checkpoint_sha256"] in page and run["index_sha256"] in page


def states(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("scene*/*")}


def test_an_interrupted_evaluation_goes_on(place, monkeypatch, caplog):
    save_model(place)
    one_by_one = command(place, "training.batch_size_per_gpu=1", "inference.render_video=true")
    inference.main([*one_by_one, f"inference_out_dir={place}/whole"])
    evaluate, calls = inference.Evaluator.evaluate, []

    def interrupted(self, batch):
        calls.append(batch.scenes)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, batch)

    monkeypatch.setattr(inference.Evaluator, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inference.main(one_by_one)
    before = states(place / "out")
    assert not (place / "out" / "summary.csv").exists()
    with caplog.at_level("INFO", "lvsm"):
        inference.main(one_by_one)
    assert "2 of 3 scenes were evaluated before" in caplog.text and calls[3:] == [["scene2"]]
    assert before.items() <= states(place / "out").items()
    for name in ("summary.csv", "scene1/metrics.json"):
        assert (place / "out" / name).read_text() == (place / "whole" / name).read_text()


def test_what_another_run_left_is_evaluated_anew(place, caplog):
    model = save_model(place)
    inference.main(command(place))
    before = scores(place, "out")
    with torch.no_grad():
        model.head.weight.mul_(-1)
    write_checkpoint(place / "checkpoints", 2, {"model": published_state(model)})
    (place / "out" / "stale").mkdir()
    (place / "out" / "stale" / "metrics.json").write_text('{"summary": {"psnr": 99}}')
    with caplog.at_level("INFO", "lvsm"):
        inference.main(command(place))
    assert "evaluated before" not in caplog.text
    assert scores(place, "out").keys() == before.keys() and scores(place, "out") != pytest.approx(before)


def scores(place, out):
    return {row["scene_name"]: float(row["psnr"]) for row in csv.DictReader((place / out / "summary.csv").open())}


def test_batches_and_processes_change_no_number(place):
    save_model(place)
    inference.main(command(place, "training.batch_size_per_gpu=1", out="one"))
    inference.main(command(place, "training.batch_size_per_gpu=4", out="four"))
    result = run("inference.py", *command(place, out="two"), processes=2)
    assert result.returncode == 0, result.stderr
    for other in ("four", "two"):
        assert list(scores(place, other)) == list(scores(place, "one"))
        assert scores(place, other) == pytest.approx(scores(place, "one"), abs=1e-4)


def test_pictures_alone_without_metrics(place):
    save_model(place)
    inference.main(command(place, "inference.compute_metrics=false", "inference.generate_website=false"))
    assert not (place / "out" / "scene0" / "metrics.json").exists()
    assert (place / "out" / "scene0" / "gt_vs_pred.png").exists()
    assert not (place / "out" / "index.html").exists()


def test_view_counts_follow_the_index(place):
    save_model(place)
    agreeing = ["training.num_views=5", "training.num_input_views=2", "training.num_target_views=3"]
    inference.main(command(place, *agreeing, "training.target_has_input=false"))
    for contradicting in ("training.num_views=8", "training.num_input_views=3", "training.num_target_views=6"):
        with pytest.raises(InputError, match=rf"{contradicting} contradicts .*index.json.* the index decides"):
            inference.main(command(place, contradicting))


def test_poses_may_be_normalised_by_the_inputs(place):
    save_model(place)
    inference.main(command(place, out="all"))
    inference.main(command(place, "training.pose_normalization=input_views", out="inputs"))
    assert scores(place, "all") != pytest.approx(scores(place, "inputs"), abs=1e-6)


def test_a_misspelled_normalisation_is_refused(place):
    with pytest.raises(InputError, match="pose_normalization is 'input_veiws'"):
        inference.main(command(place, "training.pose_normalization=input_veiws"))


def test_broken_weights_are_named(place):
    model = save_model(place)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    write_checkpoint(place / "checkpoints", 2, {"model": published_state(model)})
    with pytest.raises(InputError, match="scene scene0: the model renders NaN"):
        inference.main(command(place))
    assert not (place / "out" / "summary.csv").exists()


def test_copying_the_nearest_input_never_copies_the_target():
    views = random_views(1, 3)
    targets = views[:, 2:]
    same = torch.tensor([[[False, False]]])
    distances = (views.cameras.c2w[0, :2, :3, 3] - views.cameras.c2w[0, 2, :3, 3]).norm(dim=1)
    nearest = int(distances.argmin())
    expected = psnr(views.images[0, nearest][None], views.images[0, 2][None])
    torch.testing.assert_close(nearest_input_psnr(views[:, :2], targets, same)[0], expected)
    same = torch.tensor([[[nearest == 0, nearest == 1]]])
    expected = psnr(views.images[0, 1 - nearest][None], views.images[0, 2][None])
    torch.testing.assert_close(nearest_input_psnr(views[:, :2], targets, same)[0], expected)


def test_selections_are_plain(place):
    items = inference.choose_items(load_config(command(place))[0], set())
    assert [selection for _, selection in items] == [Selection([0, 12], INDEX[f"scene{i}"]["target"]) for i in range(3)]

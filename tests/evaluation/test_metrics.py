import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from evaluation.evaluator import EvaluationConfig
from evaluation.metrics import METRICS, build_metrics, psnr, score, ssim
from tests.messages import check_names, refused
from utils.errors import InputError
from utils.sections import check_fields


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    target = rng.random((3, 3, 40, 56), dtype=np.float32)
    # One smooth image, where variances cancel, one noisy, one with a flat half.
    target[0] = np.linspace(0, 1, 56, dtype=np.float32)
    target[2, :, :20] = 0.7
    prediction = np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1).astype(np.float32)
    return torch.from_numpy(prediction), torch.from_numpy(target)


def test_psnr_by_the_formula(pair):
    expected = [10 * np.log10(1 / ((p - t) ** 2).mean()) for p, t in zip(*(x.numpy() for x in pair), strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)


def test_psnr_clamps_and_stays_finite(pair):
    prediction, target = pair
    torch.testing.assert_close(psnr(prediction + 5, target), psnr(torch.ones_like(target), target))
    assert psnr(target, target).tolist() == pytest.approx([100.0] * 3)


def test_ssim_is_what_scikit_image_gives(pair):
    expected = [
        structural_similarity(p.numpy(), t.numpy(), win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0)
        for p, t in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair), expected, atol=1e-6)


def test_score_is_exact_inside_autocast(pair):
    prediction, target = (x[None] for x in pair)
    metrics = build_metrics(["psnr", "ssim"], torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = score(metrics, prediction, target)
    assert list(inside) == ["psnr", "ssim"]
    assert torch.equal(inside["psnr"][0], psnr(*pair))
    assert torch.equal(inside["ssim"][0], ssim(*pair))


def test_unknown_metric_is_named():
    with refused("metrics", "'fid'", "psnr, ssim, lpips"):
        check_fields(EvaluationConfig(metrics=["psnr", "fid"]))


def test_a_new_metric_is_one_row_of_the_table(monkeypatch):
    monkeypatch.setitem(METRICS, "mse", lambda device: lambda render, image: (render - image).square().mean((1, 2, 3)))
    check_fields(EvaluationConfig(metrics=["psnr", "mse"]))
    render, image = torch.rand(2, 1, 2, 3, 16, 16)
    scores = score(build_metrics(["psnr", "mse"], torch.device("cpu")), render, image)
    assert torch.allclose(-10 * scores["mse"].log10(), scores["psnr"], atol=1e-4)


def test_missing_lpips_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    try:
        metrics = build_metrics(["lpips"], torch.device("cpu"))
    except InputError as error:
        check_names(str(error), tmp_path / "hub/checkpoints/vgg16-397923af.pth", "inference.metrics")
    else:  # a network let the weights through
        images = torch.rand(1, 3, 64, 64)
        assert metrics["lpips"](images, images).abs().item() < 1e-6


@pytest.mark.parametrize("size", [1, 8, 10, [8, 16], [16, 8]])
def test_ssim_of_images_smaller_than_its_window_is_refused_beforehand(size):
    with refused(f"model.image_tokenizer.image_size is {size}", "inference.metrics"):
        build_metrics(["psnr", "ssim"], torch.device("cpu"), size)
    assert list(build_metrics(["psnr"], torch.device("cpu"), size)) == ["psnr"]
    images = torch.rand(1, 3, 11, 11)
    assert build_metrics(["ssim"], torch.device("cpu"), 11)["ssim"](images, images).item() == pytest.approx(1)

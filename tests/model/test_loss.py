import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat

import model.perceptual as perceptual
from model.loss import Loss, LossConfig, build_loss
from model.perceptual import PerceptualLoss, load_vgg19, read_vgg19
from tests.helpers import CONVOLUTIONS
from tests.messages import refused
from utils import download


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (out, into) in CONVOLUTIONS.items():
        state[f"{index}.weight"] = torch.randn(out, into, 3, 3, generator=generator) * (2 / (9 * into)) ** 0.5
        state[f"{index}.bias"] = torch.randn(out, generator=generator) * 0.1
    return state


def plain_perceptual(weights, render, image):
    """The formula of the perceptual loss, layer by layer."""
    mean = torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)
    x, y = render * 255 - mean, image * 255 - mean
    errors = [(x - y).abs().mean()]
    for layer in range(32):
        if layer in (4, 9, 14, 23):
            errors.append((x - y).abs().mean())
        if f"{layer}.weight" in weights:
            x, y = (F.conv2d(t, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1) for t in (x, y))
        elif layer in (4, 9, 18, 27):
            x, y = (F.avg_pool2d(t, 2) for t in (x, y))
        else:
            x, y = x.clamp_min(0), y.clamp_min(0)
    errors.append((x - y).abs().mean())
    e0, e1, e2, e3, e4, e5 = errors
    return (e0 + e1 / 2.6 + e2 / 4.8 + e3 / 3.7 + e4 / 5.6 + e5 * 10 / 1.5) / 255


def test_perceptual_loss_equals_the_formula(weights):
    render, image = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(1)).unbind(0)
    loss = PerceptualLoss(weights)(render, image)
    torch.testing.assert_close(loss, plain_perceptual(weights, render, image), rtol=1e-5, atol=0)


def test_chunks_give_the_gradients_of_the_formula(weights, monkeypatch):
    monkeypatch.setattr(perceptual, "_CHUNK", 2)
    renders, images = torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(1)).unbind(0)
    gradients = []
    for loss in (PerceptualLoss(weights), lambda x, y: plain_perceptual(weights, x, y)):
        render = renders.clone().requires_grad_()
        (3 * loss(render, images)).backward()
        gradients.append(render.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert not PerceptualLoss(weights)(renders, images).requires_grad


def test_gradients_reach_the_render_alone(weights):
    render, image = torch.rand(2, 1, 3, 16, 16).unbind(0)
    render.requires_grad_(), image.requires_grad_()
    module = PerceptualLoss(weights)
    module(render, image).backward()
    assert render.grad.abs().sum() > 0 and image.grad is None
    assert not any(p.requires_grad for p in module.parameters())


def test_terms_add_up(weights):
    renders, images = torch.rand(2, 2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    cfg = LossConfig(l2_loss_weight=2.0, perceptual_loss_weight=0.25)
    terms = Loss(cfg, {"perceptual": PerceptualLoss(weights)})(renders, images)
    mse = ((renders - images) ** 2).mean()
    torch.testing.assert_close(terms["l2_loss"], mse)
    torch.testing.assert_close(terms["psnr"], -10 * torch.log10(mse))
    torch.testing.assert_close(terms["loss"], 2 * mse + 0.25 * terms["perceptual_loss"])


def test_networks_are_built_only_for_a_weight():
    loss = build_loss(LossConfig(perceptual_loss_weight=0.0))
    assert not list(loss.parameters())
    assert set(loss(torch.rand(1, 1, 3, 8, 8), torch.rand(1, 1, 3, 8, 8))) == {"loss", "l2_loss", "psnr"}


def test_lpips_enters_the_loss():
    class Constant(torch.nn.Module):
        def forward(self, renders, images):
            return torch.full((len(renders),), 3.0)

    cfg = LossConfig(l2_loss_weight=0.0, lpips_loss_weight=0.5, perceptual_loss_weight=0.0)
    assert Loss(cfg, {"lpips": Constant()})(torch.rand(1, 2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8))["loss"] == 1.5


def write_mat(path, weights):
    """A file laid out as MatConvNet's: `layers` a cell row of structs, weights in their third field."""
    layers = np.empty((1, 43), dtype=object)
    for index in range(43):
        cell = np.empty((1, 2), dtype=object)
        cell[0, 0] = cell[0, 1] = np.zeros((0, 0))
        if index in CONVOLUTIONS:
            cell[0, 0] = weights[f"{index}.weight"].numpy().transpose(2, 3, 1, 0)
            cell[0, 1] = weights[f"{index}.bias"].numpy()[:, None]
        layer = np.empty((1, 1), dtype=[("name", object), ("type", object), ("weights", object)])
        layer[0, 0] = (f"layer{index}", "conv", cell)
        layers[0, index] = layer
    savemat(path, {"layers": layers})


@pytest.mark.slow
def test_vgg19_file_is_read_and_checked(weights, tmp_path, monkeypatch):
    path = tmp_path / "vgg.mat"
    write_mat(path, weights)
    read = read_vgg19(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    with refused(path, "MD5", "106118b7cf60435e6d8e04f6a6dc3657"):
        load_vgg19(path)
    monkeypatch.setattr(perceptual, "VGG19_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    PerceptualLoss(load_vgg19(path))


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_receive", lambda _url, _limit: [b"half"])
    perceptual.fetch_vgg19(tmp_path / "vgg.mat")
    assert not list(tmp_path.iterdir())


def test_missing_vgg19_says_where_to_get_it_and_put_it(tmp_path):
    cfg = LossConfig(vgg19_path=str(tmp_path / "vgg.mat"))
    with refused(perceptual.VGG19_URL, tmp_path / "vgg.mat"):
        build_loss(cfg)

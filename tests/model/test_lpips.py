"""The network of LPIPS from files that were checked, instead of files that ran."""

import io
import os
import pickle
from types import SimpleNamespace

import lpips
import pytest
import torch
import torchvision
from torchvision.models import vgg

from evaluation.metrics import Lpips
from tests.messages import refused
from utils import download, lpips_network
from utils.files import sha256
from utils.lpips_network import vgg16_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty TORCH_HOME and no network."""

    def no_network(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "urlopen", no_network)
    vgg16_path().parent.mkdir(parents=True)
    return tmp_path


def check_refused(*culprits):
    advice = (lpips_network.VGG16_URL, "inference.metrics", "training.lpips_loss_weight=0")
    with refused(vgg16_path(), *advice, *culprits):
        Lpips()


def trust(path, monkeypatch):
    """Make the file there the published one."""
    monkeypatch.setattr(lpips_network, "VGG16_SHA256", sha256(path)[:8])


class Canary:
    """Leaves a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def zipped(value, path):
    torch.save(value, path)


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def bare(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("write", [zipped, legacy, bare])
@pytest.mark.parametrize("right_digest", [False, True])
def test_nothing_in_the_file_is_executed(home, monkeypatch, write, right_digest):
    write({"features.0.weight": Canary(home / "executed")}, vgg16_path())
    if right_digest:
        trust(vgg16_path(), monkeypatch)
    check_refused()
    assert not (home / "executed").exists()


def test_nothing_in_the_package_is_executed(home, monkeypatch):
    state = {name: torch.zeros(1) for name in ("features.0.weight",)}
    torch.save(state, vgg16_path())
    trust(vgg16_path(), monkeypatch)
    package = home / "lpips"
    (package / "weights" / "v0.1").mkdir(parents=True)
    torch.save({"lin0.model.1.weight": Canary(home / "executed")}, package / "weights" / "v0.1" / "vgg.pth")
    monkeypatch.setattr(lpips, "__file__", str(package / "__init__.py"))
    check_refused()
    assert not (home / "executed").exists()


def write_pipe(path):
    os.mkfifo(path)


def write_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def write_link_to_zeros(path):
    path.symlink_to("/dev/zero")


def write_broken_link(path):
    path.symlink_to("nowhere")


def write_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "write", [write_pipe, write_link_to_a_pipe, write_link_to_zeros, write_broken_link, write_folder]
)
def test_what_is_not_a_regular_file_is_refused(home, write):
    write(vgg16_path())
    check_refused()


@pytest.mark.parametrize("content", [b"", b"half", b"<html>Sign in"])
def test_a_file_of_another_content_is_refused(home, content):
    vgg16_path().write_bytes(content)
    check_refused("SHA-256")


@pytest.fixture(scope="module")
def plain():
    """The package's own network, its backbone random, and the file that torchvision would have for that."""
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    with pytest.MonkeyPatch.context() as patch:
        # The real one spends seconds on a classifier that nobody asks.
        patch.setattr(torchvision.models, "vgg16", lambda pretrained: SimpleNamespace(features=layers))
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    return network, {"classifier.0.bias": torch.zeros(3), **state}


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_numbers_are_those_of_the_package(home, monkeypatch, plain, old):
    network, state = plain
    torch.save(state, vgg16_path(), _use_new_zipfile_serialization=not old)
    trust(vgg16_path(), monkeypatch)
    before = torch.get_rng_state()
    ours = Lpips()
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(*images), network(*(images * 2 - 1)).flatten())
    assert not any(parameter.requires_grad for parameter in ours.parameters()) and not ours.network.training
    assert all(value.device.type == "cpu" for value in ours.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        (lambda state: state.pop("features.28.bias"), ["net.slice5.28.bias"]),
        (lambda state: state.update({"features.0.bias": torch.zeros(3)}), ["net.slice1.0.bias", "(3,)", "(64,)"]),
        (lambda state: state.update({"features.0.bias": torch.full((64,), torch.nan)}), ["net.slice1.0.bias"]),
        (lambda state: state.update({"features.0.bias": torch.zeros(64).to_sparse()}), ["net.slice1.0.bias"]),
    ],
)
def test_every_tensor_is_checked(home, monkeypatch, plain, change, culprits):
    state = dict(plain[1])
    change(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    vgg16_path().write_bytes(buffer.getvalue())
    trust(vgg16_path(), monkeypatch)
    check_refused(*culprits)

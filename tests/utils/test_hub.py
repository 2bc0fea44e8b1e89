"""Weights by their address on the Hugging Face hub; nothing is fetched here."""

import sys

import pytest

import inference
import train
from model import convert
from tests.messages import check_error_line, check_names, refused
from tests.processes import run
from tests.runs import evaluation_command as command
from tests.runs import save_model, scores
from utils import checkpoint
from utils import hub as module
from utils.checkpoint import checkpoint_name, find_checkpoint
from utils.errors import InputError
from utils.text import shown

ADDRESS = "hf://coast01/LVSM/scene_decoder_only_256.pt"
PAGE = "https://huggingface.co/coast01/LVSM"
FILE = "scene_decoder_only_256.pt"
# What can be done without the hub: fetch it from there, and name it as that key.
BY_HAND = (f"{PAGE}/resolve/main/{FILE}", "training.checkpoint_dir")


def refusal(address=ADDRESS):
    with pytest.raises(InputError) as caught:
        find_checkpoint(address, "training.checkpoint_dir")
    return str(caught.value)


def test_without_the_package_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    check_names(refusal(), f"training.checkpoint_dir={ADDRESS}", "`pip install huggingface_hub`", *BY_HAND)


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://coast01/LVSM",
        "hf://coast01/LVSM/../x.pt ",
        "hf://coast01/LVSM/../x.pt",
        "hf://coast01/LVSM/a/../../../x.pt",
        "hf://../LVSM/x.pt",
        "hf://coast01/./x.pt",
        "hf://coast01/LVSM//x.pt",
        "hf://coast01/LVSM/x.pt\n",
        "hf://a b/c/d.pt",
        "hf://a/b/\x1b[2J",
    ],
)
def test_an_address_of_another_form_is_refused(address):
    check_names(refusal(address), "training.checkpoint_dir", shown(address), "hf://OWNER/REPOSITORY/FILE")


@pytest.mark.parametrize(
    ("name", "culprits"),
    [
        ("LocalEntryNotFoundError", [ADDRESS, "HF_HUB_OFFLINE", *BY_HAND]),
        ("EntryNotFoundError", [PAGE, FILE]),
        ("RemoteEntryNotFoundError", [PAGE, FILE]),
        ("RepositoryNotFoundError", [PAGE, *BY_HAND]),
        ("OfflineModeIsEnabled", [ADDRESS, "OfflineModeIsEnabled", *BY_HAND]),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(name, culprits, monkeypatch):
    hub, errors = (pytest.importorskip(f"huggingface_hub{part}") for part in ("", ".errors"))
    kind = getattr(errors, name)

    def refuse(*_, local_files_only=False):
        raised = errors.LocalEntryNotFoundError if local_files_only else kind
        raise raised.__new__(raised)

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    monkeypatch.setattr(module, "is_reachable", lambda _: True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    check_names(refusal(), *culprits)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_library_is_not_asked(monkeypatch, tmp_path, offline):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def answer(repository, file, **options):
        asked.append(options)
        raise hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(hub, "hf_hub_download", answer)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    check_names(refusal(), ADDRESS, "HF_HUB_OFFLINE", *BY_HAND)
    assert asked == [{"local_files_only": True}]


def test_what_is_in_the_cache_asks_nobody(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    def answer(repository, file, *, local_files_only):
        assert (repository, file, local_files_only) == ("coast01/LVSM", "scene_decoder_only_256.pt", True)
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", answer)
    assert find_checkpoint(ADDRESS, "training.checkpoint_dir") == tmp_path / "scene_decoder_only_256.pt"


@pytest.fixture
def cache(place):
    """The cache folder that a download of the model's file would have left."""
    pytest.importorskip("huggingface_hub")
    save_model(place)
    folder = place / "hub" / "models--coast01--LVSM"
    for name in ("blobs", "refs", "snapshots/abc"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (place / "checkpoints" / checkpoint_name(1)).rename(folder / "blobs" / "123")
    (folder / "snapshots" / "abc" / "scene_decoder_only_256.pt").symlink_to("../../blobs/123")
    (place / "checkpoints" / checkpoint_name(1)).symlink_to(folder / "blobs" / "123")
    return {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place / "hub")}


def test_what_was_fetched_before_is_evaluated_without_a_network(place, cache):
    inference.main(command(place, out="file"))
    done = run("inference.py", *command(place, f"training.checkpoint_dir={ADDRESS}"), **cache)
    assert done.returncode == 0, done.stderr
    assert scores(place, "out") == pytest.approx(scores(place, "file"), abs=1e-4)
    other = "training.checkpoint_dir=hf://coast01/LVSM/other.pt"
    done = run("inference.py", *command(place, other, out="other"), **cache)
    assert not (place / "other").exists()
    assert len(done.stderr.splitlines()) == 2, "the device, and the error"
    check_error_line(done, "training.checkpoint_dir", "hf://coast01/LVSM/other.pt", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_training_may_start_from_an_address(place, monkeypatch, suffix):
    save_model(place)
    file = place / f"fetched{suffix}"
    convert.main([str(place / "checkpoints"), str(file)])
    asked = []
    monkeypatch.setattr(checkpoint, "fetch_from_hub", lambda *arguments: asked.append(arguments) or file)
    fresh = ["training.reset_training_state=true", f"training.resume_ckpt={ADDRESS}", "training.train_steps=1"]
    train.main(command(place, *fresh, f"training.checkpoint_dir={place}/run"))
    assert asked == [(ADDRESS, "training.resume_ckpt")] and (place / "run" / checkpoint_name(1)).exists()


def test_a_run_folder_is_no_address(place):
    with refused("training.checkpoint_dir", f"'{ADDRESS}'", "training.resume_ckpt"):
        train.main(command(place, f"training.checkpoint_dir={ADDRESS}"))

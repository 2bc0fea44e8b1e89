"""view.py as a person starts it: the address when it is ready, a clean end, one line for what cannot be."""

import re
import signal
import socket

import pytest

import view
from model.weights import published_state
from setup import build_config
from tests.helpers import ROOT, VARIANTS, small_overrides
from tests.messages import check_error_line, check_names, refusal
from tests.processes import run, start
from tests.runs import save_model, wait_for
from utils.checkpoint import checkpoint_name, write_checkpoint
from viewer.headless import HeadlessClient

pytestmark = pytest.mark.slow


def command(place, *overrides, variant="decoder_only"):
    config = ROOT / "configs" / f"LVSM_scene_{variant}.yaml"
    values = [
        f"viewer.scene={place}/scenes/full_list.txt",
        f"training.checkpoint_dir={place}/checkpoints",
        f"viewer.out_dir={place}/out",
        "viewer.port=0",
    ]
    return ["--config", str(config), *small_overrides(variant), *values, *overrides]


def address(program):
    """What it says once it is ready."""

    def said():
        return re.search(r"open http://(\S+)", program.said()[1])

    wait_for(lambda: said() or program.poll() is not None)
    assert said(), program.communicate()
    return said()[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_shows_every_variant_and_ends_when_asked(place, variant):
    save_model(place, variant)
    number = signal.SIGTERM if variant == "prefix" else signal.SIGINT
    program = start("view.py", *command(place, "viewer.input_frames=[0,12]", variant=variant))
    try:
        where = address(program)
        assert where.startswith("127.0.0.1:")
        with HeadlessClient(where) as client:
            client.stand((0, 0, 0))
            assert client.next_picture(1800).std() > 1
            program.send_signal(number)
            assert program.wait() == 0
    finally:
        program.kill()
    out, err = program.communicate()
    assert out == "" and "Traceback" not in err and not (place / "out").exists()


def test_a_port_that_is_taken(place):
    save_model(place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("view.py", *command(place, f"viewer.port={port}"))
    check_error_line(done, "viewer.port", port)


@pytest.mark.parametrize(
    ("overrides", "culprits"),
    [
        (["viewer.scene=/none.json"], ["/none.json"]),
        (["viewer.scene=/none.txt"], ["viewer.scene", "/none.txt"]),
        (["viewer.input_frames=[0,99]"], ["scene scene0", "frame 99"]),
        (["viewer.input_frames=[3,3]"], ["scene scene0", "frame 3"]),
        (["viewer.out_dir=/"], ["viewer.out_dir"]),
        (["viewer.host=no.such.host.invalid"], ["viewer.host"]),
    ],
)
def test_what_cannot_be_shown_is_named(place, overrides, culprits):
    save_model(place)
    check_names(refusal(view.main, command(place, *overrides)), *culprits)


def test_a_missing_image_is_named(place):
    save_model(place)
    (place / "scenes" / "images" / "scene0" / "00012.jpg").unlink()
    check_names(refusal(view.main, command(place, "viewer.input_frames=[0,12]")), "scene scene0", "frame 12")


def test_weights_may_come_from_the_hub(place, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    save_model(place)
    file = place / "checkpoints" / checkpoint_name(1)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **_given: str(file))
    shown = []
    monkeypatch.setattr(
        view, "serve", lambda cfg, films, sessions, scenes: shown.append(sessions.open(scenes[0], [0, 12]))
    )
    view.main(command(place))
    view.main(command(place, "training.checkpoint_dir=hf://somebody/something/model.pt"))
    local, fetched = (session.render(session.camera_of(5)) for session in shown)
    assert (local == fetched).all() and local.std() > 1


def test_it_listens_to_this_machine_alone_unless_told():
    assert build_config({}).viewer.host == "127.0.0.1"


@pytest.mark.parametrize(("chosen", "used"), [([], "median"), (["training.pose_normalization=none"], "none")])
def test_poses_are_normalised_as_in_training_unless_told_otherwise(place, monkeypatch, chosen, used):
    model = save_model(place)
    content = {"model": published_state(model), "config": "training: {pose_normalization: median}"}
    write_checkpoint(place / "checkpoints", 1, content)
    served = []
    monkeypatch.setattr(view, "serve", lambda cfg, video, sessions, scenes: served.append(sessions.load.cfg))
    view.main(command(place, *chosen))
    assert [cfg.pose_normalization for cfg in served] == [used]

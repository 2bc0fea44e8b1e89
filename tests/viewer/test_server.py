"""The viewer over its protocol, without a browser: several clients, and what they may send."""

import logging
import math
import threading
import time

import numpy as np
import pytest
import torch

from data import packing
from data.packed import PackedImage
from data.scene import read_cameras, read_scene_list
from tests.helpers import PATIENCE, write_toy_object, write_toy_scene, write_toy_set
from tests.messages import refused
from tests.runs import wait_for
from tests.viewing import toy_viewer
from viewer import panels
from viewer.config import ViewerConfig
from viewer.geometry import letterbox, to_world
from viewer.headless import HeadlessClient
from viewer.server import check_address, find_scenes

pytestmark = pytest.mark.slow

# Of JPEG, on pictures of a random model, in levels of 255.
_LOSS = 12


@pytest.fixture
def served(tmp_path):
    with toy_viewer(tmp_path, "prefix+prope") as served:
        yield served


def here(served, frame):
    """Orientation and place, in the window's world, of a frame of the first scene."""
    wxyz, position = to_world(served.viewer.first.camera_of(frame).c2w.double().numpy())
    return {"wxyz": wxyz, "position": position}


def window_of(served, client):
    """The window of a client that has just come."""
    known = set(served.windows.values())
    client.stand(**here(served, 0))
    wait_for(lambda: set(served.windows.values()) - known)
    (window,) = set(served.windows.values()) - known
    client.last_picture(0.5, PATIENCE)
    return window


def expected(window):
    """What the client is to see: the scene through its lens, letterboxed."""
    look = window.painter.latest
    return letterbox(look.session.render(look.camera), look.camera, look.viewpoint)


def go(served, window, client, frame):
    """Have the client stand at a frame's camera; the picture that it sees then, which is the right one."""
    place = here(served, frame)

    def is_there():
        if np.allclose(window.painter.latest.viewpoint.c2w[:3, 3] * 4, place["position"]):
            return True
        # Again while it is elsewhere, as a browser would: a scene that is being opened still moves its client.
        client.stand(**place)
        return False

    client.stand(**place)
    wait_for(is_there)
    return check_sees(window, client)


def check_sees(window, client):
    """Wait for the right picture, after which others may have been on their way."""
    while True:
        picture = client.next_picture(PATIENCE)
        right = expected(window)
        if picture.shape == right.shape and np.abs(picture.astype(int) - right).mean() < _LOSS:
            return picture


def control(client, label, kind="Gui"):
    """The identity of the control of a label, which may have come only in part yet."""

    def found():
        return [
            message["uuid"]
            for message in list(client.messages)
            if message["type"].startswith(kind) and message.get("props", {}).get("label") == label
        ]

    wait_for(found)
    return found()[-1]


def press(client, label, value=True):
    client.send("GuiUpdateMessage", uuid=control(client, label), updates={"value": value})


def notices(client):
    return [
        message["props"]["body"] for message in list(client.messages) if message["type"] == "NotificationShowMessage"
    ]


def test_every_client_has_a_pose_and_a_scene_of_its_own(served):
    with HeadlessClient(served.address) as one, HeadlessClient(served.address, 700, 900) as two:
        first, second = window_of(served, one), window_of(served, two)
        seen = go(served, first, one, 3)
        assert seen.shape == (512, 819, 3) and second.viewpoint().c2w[0, 3] != first.viewpoint().c2w[0, 3]
        press(one, "Go to", "Next")
        wait_for(lambda: first.number == 1)
        assert second.number == 0 and second.session is served.viewer.first
        a = go(served, first, one, 5)
        b = go(served, second, two, 5)
        assert a.shape != b.shape == (512, 398, 3)


def test_a_packed_scene_is_shown_as_a_loose_one(tmp_path):
    loose = write_toy_set(tmp_path / "scenes")
    packing.main([str(loose), "--output_dir", str(tmp_path / "packed"), "--num_processes", "1"])
    with toy_viewer(tmp_path, "prefix+prope", tmp_path / "packed" / "full_list.txt") as served:
        with HeadlessClient(served.address) as client:
            window = window_of(served, client)
            go(served, window, client, 4)
            look = window.painter.latest
        sessions = served.viewer.sessions
        of_files = sessions.open(read_scene_list(loose)[0], look.session.inputs)
        assert isinstance(look.session.scene.image_path(0), PackedImage)
        assert np.array_equal(of_files.render(look.camera), look.session.render(look.camera))
        truths = [sessions.truth(session, 4).images for session in (of_files, look.session)]
        assert torch.equal(*truths)


def test_a_client_that_returns_is_a_new_one(served):
    with HeadlessClient(served.address) as one:
        window_of(served, one)
        for _ in range(3):
            with HeadlessClient(served.address) as other:
                other.stand(**here(served, 0))
                # Gone at once, or when the first picture is there.
                other.next_picture(PATIENCE)
            wait_for(lambda: len(served.windows) == 1)
        with HeadlessClient(served.address) as other:
            again = window_of(served, other)
            go(served, again, other, 7)


def test_the_latest_pose_wins(served, monkeypatch):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        rendered = []
        paint = window.painter._paint
        monkeypatch.setattr(window.painter, "_paint", lambda: (rendered.append(window.painter.latest), paint()))
        release = threading.Event()
        held = threading.Thread(target=lambda: served.viewer.model.run(release.wait))
        held.start()
        for frame in range(13):
            client.stand(**here(served, frame))
        last = here(served, 13)
        client.stand(**last)
        wait_for(lambda: np.allclose(window.viewpoint().c2w[:3, 3] * 4, last["position"]))
        wait_for(lambda: np.allclose(window.painter.latest.viewpoint.c2w[:3, 3] * 4, last["position"]))
        client.drain()
        release.set()
        held.join()
        check_sees(window, client)
        assert [np.allclose(look.viewpoint.c2w[:3, 3] * 4, last["position"]) for look in rendered] == [True]


NONSENSE = [
    {"wxyz": [math.nan] * 4},
    {"position": [math.inf, 0, 0]},
    {"wxyz": [0, 0, 0, 0]},
    {"wxyz": [1, 0]},
    {"fov": 0.0},
    {"image_width": 0},
    {"image_height": 2**40},
]
GARBAGE = ["text", b"", b"\xc1", b"\x80", b"\x81\xa4type\xa9NoMessage", b"\x93\x01\x02\x03", bytes(range(256))]


def test_nonsense_harms_nobody(served, caplog):
    with HeadlessClient(served.address) as good:
        window = window_of(served, good)
        pose = {"wxyz": [1.0, 0, 0, 0], "position": [0.0, 0, 0], "fov": 1.0, "image_width": 640, "image_height": 480}
        pose |= {"near": 0.01, "far": 100.0, "look_at": [0.0, 0, 1], "up_direction": [0.0, -1, 0]}
        with HeadlessClient(served.address) as bad:
            spoiled = window_of(served, bad)
            with caplog.at_level(logging.WARNING):
                for wrong in NONSENSE:
                    bad.send("ViewerCameraMessage", **(pose | wrong))
                bad.send("ShareUrlRequest")
                for label, value in [("Frames", "../../x"), ("Frames", 7), ("How many", math.nan), ("How many", 10**9)]:
                    press(bad, label, value)
                press(bad, "Frame", -5)
                press(bad, "Number", 10**6)
                bad.send("GuiUpdateMessage", uuid=control(bad, "Frame"), updates={"no_such_property": 1})
                bad.send("GuiUpdateMessage", uuid=control(good, "Frame"), updates={"value": 5})
                bad.stand(**here(served, 4))
                # It is listened to again once it says what can be.
                wait_for(lambda: spoiled.number == 2)
                check_sees(spoiled, bad)
        for content in GARBAGE:
            with HeadlessClient(served.address) as bad, caplog.at_level(logging.WARNING):
                bad.stand(**here(served, 0))
                bad.send_raw(content)
                with pytest.raises(ConnectionError):
                    while True:
                        bad.next_jpeg(PATIENCE)
        wait_for(lambda: len(served.windows) == 1)
        go(served, window, good, 9)
        assert served.server._share_tunnel is None and window.session is served.viewer.first
        assert [record for record in caplog.records if record.exc_info or "\n" in record.getMessage()] == []
        assert any("orientation" in record.getMessage() for record in caplog.records)


def test_inputs_are_changed_and_the_client_stays_where_it_is(served):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        go(served, window, client, 4)
        before = window.session
        stood = before.transform.normalization.inverse(window.viewpoint().c2w[None])
        press(client, "Frames", "0, 6 13")
        press(client, "Encode anew")
        wait_for(lambda: window.session is not before)
        wait_for(lambda: not window._opening.locked())
        assert window.session.inputs == (0, 6, 13)
        # It is sent to the same place, which is another one in the new frame.
        wait_for(lambda: np.allclose(sent_to(window, client), stood[0, :3, 3], atol=1e-5))
        wait_for(lambda: 100 in [message["updates"].get("value") for message in updates(client)])
        press(client, "Frames", "0, 99")
        press(client, "Encode anew")
        wait_for(lambda: any("frame 99" in body for body in notices(client)))
        assert window.session.inputs == (0, 6, 13)


def updates(client):
    return [message for message in list(client.messages) if message["type"] == "GuiUpdateMessage"]


def sent_to(window, client):
    """The last place that the client was sent to, as the scene's file has it."""
    places = [message for message in list(client.messages) if message["type"] == "SetCameraPositionMessage"]
    pose = np.eye(4)
    pose[:3, 3] = np.array(places[-1]["position"]) / 4
    return window.session.transform.normalization.inverse(pose[None])[0, :3, 3]


def test_the_truth_stands_beside_the_render(served):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        press(client, "Frame", 5)
        wait_for(lambda: "Frame 5, not an input" in window.compare_panel._score.content)
        press(client, "Stand there")
        camera = window.session.camera_of(5)
        wait_for(lambda: window._anchor is not None and torch.equal(window._anchor.c2w, camera.c2w))
        score = window.compare_panel._score.content
        assert 0 < float(score.split("**")[1].split()[0]) < 40
        press(client, "Frame", 12)
        wait_for(lambda: "Frame 12, an input" in window.compare_panel._score.content)


def test_a_click_on_an_input_leads_to_its_camera(served):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        (number,) = [number for number, found in served.windows.items() if found is window]
        ray = {"ray_origin": [0.0, 0.0, 0.0], "ray_direction": [0.0, 0.0, 1.0], "screen_pos": [0.5, 0.5]}
        click = {"instance_index": None, "modifier": None, "owner": str(number), **ray}
        for input_number, frame in enumerate(window.session.inputs):
            client.send("SceneNodeClickMessage", name=f"/inputs/{input_number}", **click)
            camera = window.session.camera_of(frame)
            wait_for(lambda camera=camera: window._anchor is not None and torch.equal(window._anchor.c2w, camera.c2w))
            wait_for(lambda frame=frame: f"Frame {frame}, an input" in window.compare_panel._score.content)


def test_playing_walks_the_path_until_it_is_stopped(served):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        for count, frame in ((1, 0), (2, 13)):
            go(served, window, client, frame)
            press(client, "Add keyframe")
            wait_for(lambda count=count: len(window.path_panel._keyframes) == count)
        press(client, "Seconds", 0.3)
        wait_for(lambda: window.path_panel._seconds.value == 0.3)
        press(client, "Play")
        end = served.viewer.first.scene.w2c[13]
        wait_for(lambda: np.allclose(sent_to(window, client), np.linalg.inv(end)[:3, 3], atol=1e-4))
        wait_for(lambda: not window.path_panel._playing.is_set())
        press(client, "Seconds", 60.0)
        wait_for(lambda: window.path_panel._seconds.value == 60.0)
        for playing in (True, False):
            press(client, "Play")
            wait_for(lambda playing=playing: window.path_panel._playing.is_set() == playing)


def test_a_path_is_laid_saved_loaded_and_filmed(served):
    out = served.viewer.out_dir
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        press(client, "Render film")
        wait_for(lambda: any("two keyframes" in body for body in notices(client)))
        for frame in (0, 6, 13):
            go(served, window, client, frame)
            press(client, "Add keyframe")
            wait_for(lambda frame=frame: len(window.path_panel._keyframes) == (0, 6, 13).index(frame) + 1)
        press(client, "Seconds", 1.0)
        press(client, "Save path")
        wait_for(
            lambda: list(out.glob("*.json")) and any("saved" in body or ".json" in body for body in notices(client))
        )
        (file,) = out.glob("*.json")
        w2c, _ = read_cameras(file, (48, 32))
        assert len(w2c) == 10
        scene = window.session.scene
        np.testing.assert_allclose(w2c[[0, -1]], scene.w2c[[0, 13]], atol=1e-4)
        press(client, "Keyframes", "Remove all")
        wait_for(lambda: not window.path_panel._keyframes)
        upload(client, "Load path", file.read_bytes(), "../../../etc/passwd")
        wait_for(lambda: len(window.path_panel._keyframes) == 10)
        upload(client, "Load path", b'{"frames": [{"w2c": 3}]}', "x.json")
        wait_for(lambda: any("uploaded.json" in body and "frame 0" in body for body in notices(client)))
        press(client, "Render film")
        wait_for(lambda: list(out.glob("*.mp4")))
        wait_for(lambda: any(message["type"] == "FileTransferStartDownload" for message in client.messages))
        assert sorted(path.suffix for path in out.iterdir()) == [".json", ".json", ".mp4"]


def upload(client, label, content, name):
    button = control(client, label)
    kind = {"transfer_uuid": f"transfer {time.monotonic()}", "source_component_uuid": button}
    size = {"part_count": 1, "size_bytes": len(content)}
    client.send("FileTransferStartUpload", **kind, **size, filename=name, mime_type="application/json")
    client.send("FileTransferPart", **kind, part_index=0, content=content)


def test_a_film_that_is_cut_short_leaves_nothing(served, monkeypatch):
    endless = (np.zeros((8, 16, 16, 3), np.uint8) for _ in iter(int, 1))
    monkeypatch.setattr(panels, "film_frames", lambda *_: (endless, 10**9))
    out = served.viewer.out_dir
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        for count in (1, 2):
            press(client, "Add keyframe")
            wait_for(lambda count=count: len(window.path_panel._keyframes) == count)
        press(client, "Render film")
        wait_for(lambda: list(out.glob(".*.mp4")))
        served.viewer.stop()
        wait_for(lambda: [path.suffix for path in out.iterdir()] == [".json"])


def test_a_page_of_another_site_gets_no_window(served, caplog):
    with caplog.at_level(logging.WARNING), HeadlessClient(served.address, origin="https://elsewhere.example") as other:
        other.stand(**here(served, 0))
        wait_for(lambda: any("another site" in message for message in caplog.messages))
    with HeadlessClient(served.address, origin=f"http://{served.address}") as own:
        assert window_of(served, own)


def test_a_screenshot_is_the_picture_as_it_was_painted(served):
    with HeadlessClient(served.address) as client:
        window = window_of(served, client)
        go(served, window, client, 4)
        press(client, "Screenshot")

        def sent():
            return [message for message in list(client.messages) if message["type"] == "FileTransferStartDownload"]

        wait_for(sent)
        assert sent()[0]["filename"].startswith("scene0-") and sent()[0]["filename"].endswith(".png")
        assert not served.viewer.out_dir.exists()


def test_a_port_that_is_taken_is_named(served):
    port = served.server.get_port()
    with refused("viewer.port", port, "viewer.host"):
        check_address(ViewerConfig(port=port))
    with refused("viewer.host", "'no.such.host.invalid'"):
        check_address(ViewerConfig(host="no.such.host.invalid"))


def test_scenes_are_one_or_a_list(tmp_path):
    path = write_toy_set(tmp_path)
    assert find_scenes(ViewerConfig(scene=str(path)), "nowhere") == find_scenes(ViewerConfig(), str(path))
    one = tmp_path / "metadata" / "scene1.json"
    assert find_scenes(ViewerConfig(scene=str(one)), "nowhere") == [one]
    with refused("viewer.scene", tmp_path):
        find_scenes(ViewerConfig(scene=str(tmp_path)), "nowhere")
    with refused("viewer.scene", tmp_path / "none.txt"):
        find_scenes(ViewerConfig(scene=str(tmp_path / "none.txt")), "nowhere")


def test_the_window_of_an_object_turns_about_its_middle(tmp_path):
    """That of a room beside it does not: what a scene's cameras look at, and up for them, comes with the camera."""
    scenes = [write_toy_object(tmp_path / "objects", "object", 13), write_toy_scene(tmp_path / "rooms", "room", 14)]
    listed = tmp_path / "listed.txt"
    listed.write_text("".join(f"{scene}\n" for scene in scenes))
    with toy_viewer(tmp_path, "prefix", listed) as served, HeadlessClient(served.address) as client:
        window = window_of(served, client)
        camera = window.client.camera
        for number in (0, 1, 0):
            if number != window.number:
                window.open(number)
            orbit = window.session.orbit
            pose = window.session.lens.c2w.double().numpy()
            place = 4 * pose[:3, 3]
            np.testing.assert_allclose(camera.position, place, atol=1e-3)
            np.testing.assert_allclose(
                camera.look_at, place + 3 * pose[:3, 2] if number else 4 * orbit.centre, atol=1e-3
            )
            np.testing.assert_allclose(camera.up_direction, [0, -1, 0] if number else orbit.up, atol=1e-3)
        wait_for(lambda: np.allclose(look_at_told(client), 4 * window.session.orbit.centre, atol=1e-3))


def look_at_told(client):
    """The last point that the client was told to look at; NaN before."""
    told = [message["look_at"] for message in list(client.messages) if message["type"] == "SetCameraLookAtMessage"]
    return [[np.nan] * 3, *told][-1]

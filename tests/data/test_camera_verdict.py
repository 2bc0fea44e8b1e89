"""The check of cameras: right ones pass, misread ones are named, and where nothing can be told that is said."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.importers import check
from data.importers.check_page import scene_section, write_check_page
from data.importers.verdict import check_scene, judge_cameras, remarks_on_inputs
from data.matching import MOST_PAIRS, agree, candidate_pairs, match_scene
from data.scene import Scene, write_scene
from geometry.misreadings import MISREADINGS
from tests.camera_cases import HEIGHT, MISREAD, PHOTOGRAPHS, WIDTH, X, lund_door, misread, part, photograph_room
from tests.messages import check_names
from utils.errors import InputError

pytestmark = pytest.mark.slow  # rooms take a second each to build

# Rooms and, every fifth, sets of photographs that are judged, each as it is and misread in every way.
CASES = range(int(os.environ["LVSM_CAMERA_CASES"])) if "LVSM_CAMERA_CASES" in os.environ else (0, 4)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return photograph_room(tmp_path_factory.mktemp("room"), seed=0)


@pytest.fixture(scope="module")
def matches(room):
    return match_scene(room, range(len(room)))


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    return lund_door(tmp_path_factory.mktemp("door"))


def verdicts(scene):
    """The verdict on right cameras, and on each misreading."""
    matches = match_scene(scene, range(len(scene)))
    right = judge_cameras(scene, matches, {})
    return right, {how: judge_cameras(misread(scene, how), matches, {}) for how in MISREAD}


def seeded_scene(seed, folder):
    """A walk of 5 to 9 frames that are 6 to 16 cm apart."""
    rng = np.random.default_rng([seed, 2])
    return photograph_room(folder, seed, frames=int(rng.integers(5, 10)), speed=rng.uniform(0.06, 0.16))


def seeded_photographs(seed, door):
    """5 to 12 photographs that follow one another."""
    rng = np.random.default_rng([seed, 3])
    count = int(rng.integers(5, 13))
    start = int(rng.integers(0, 13 - count))
    return part(door, list(range(start, start + count)))


def test_right_cameras_are_never_refused_and_misreadings_are_named(tmp_path, request):
    refused = []
    named = dict.fromkeys(MISREAD, 0)
    used = 0.0
    for seed in CASES:
        photographs = seed % 5 == 4 and PHOTOGRAPHS.is_dir()
        scene = (
            seeded_photographs(seed, request.getfixturevalue("door")) if photographs else seeded_scene(seed, tmp_path)
        )
        start = time.process_time()
        right, wrong = verdicts(scene)
        used += time.process_time() - start
        if right.state == "bad":
            refused.append((seed, right.line()))
        for how, verdict in wrong.items():
            named[how] += verdict.state == "bad" and verdict.misreading == how
            if verdict.misreading != how:
                print(f"case {seed}, {how}: {verdict.line()}")
    print(f"{len(CASES)} cases, {used / len(CASES):.2f} CPU seconds each: {named}")
    assert not refused
    assert min(named.values()) >= 0.95 * len(CASES)


@pytest.mark.parametrize("factor", [0.25, 0.8, 1.5, 2.4, 4])
def test_intrinsics_of_another_size_are_named_whatever_the_size(room, matches, factor):
    verdict = judge_cameras(replace(room, fxfycxcy=room.fxfycxcy * factor), matches, {})
    assert verdict.misreading == "intrinsics of another size"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored left to right"),
        (Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
        (Image.Transpose.TRANSPOSE, "x and y swapped"),
        (Image.Transpose.ROTATE_180, "images upside down"),
        (Image.Transpose.ROTATE_90, "images turned counterclockwise"),
        (Image.Transpose.ROTATE_270, "images turned clockwise"),
    ],
)
def test_images_that_were_changed_are_named(room, tmp_path, how, named):
    paths = []
    for path in room.image_paths:
        paths.append(tmp_path / path.name)
        with Image.open(path) as image:
            image.transpose(how).save(paths[-1])
    assert check_scene(replace(room, image_paths=paths)).misreading == named


@pytest.mark.parametrize(
    ("damage", "word"),
    [(X, "mirrored"), (np.diag([1.2, 1.2, 1.2, 1]), "scales"), (np.eye(4) + 0.1 * np.eye(4, k=1), "shears")],
)
def test_poses_that_are_no_rotations_are_refused(room, damage, word):
    verdict = check_scene(replace(room, w2c=damage @ room.w2c))
    assert verdict.state == "bad" and word in verdict.reason and "frame 0" in verdict.reason


def test_cameras_of_another_scene_are_refused_and_no_misreading_is_blamed(room, matches):
    other = np.roll(room.w2c, 3, axis=0)
    verdict = judge_cameras(replace(room, w2c=other[np.random.default_rng(0).permutation(len(room))]), matches, {})
    assert verdict.state == "bad" and verdict.misreading is None


def test_a_frame_with_a_wrong_pose_is_named(room, matches):
    w2c = room.w2c.copy()
    w2c[6, :3, 3] += [0.3, 0.2, 0]
    verdict = judge_cameras(replace(room, w2c=w2c), matches, {})
    assert verdict.state == "good" and "frames 5 and 6" in verdict.line()


@pytest.mark.parametrize("kind", ["same", "on a line", "in one place", "unrelated"])
@pytest.mark.parametrize("count", [20, 300])
def test_points_without_an_epipolar_geometry_agree_on_none_or_on_any(kind, count):
    rng = np.random.default_rng(count)
    first = rng.uniform(0, 480, (count, 2))
    second = {
        "same": first,
        "on a line": first[:, :1] * [1, 1] + 3,
        "in one place": np.full((count, 2), 7.0),
        "unrelated": rng.uniform(0, 480, (count, 2)),
    }[kind]
    found = agree(first, second)
    assert found.shape == (count,) and (kind != "unrelated" or found.mean() < 0.6)


def blank_scene(folder, images):
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number}.png")
        image.save(paths[-1])
    lens = np.tile([300.0, 300, WIDTH / 2, HEIGHT / 2], (len(paths), 1))
    return Scene("blank", paths, lens, np.tile(np.eye(4), (len(paths), 1, 1)), folder / "blank.json")


def test_where_nothing_matches_nothing_is_told(tmp_path, room):
    gray = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    noise = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for seed in range(3)
    ]
    (tmp_path / "noise").mkdir()
    assert check_scene(blank_scene(tmp_path, [gray] * 4)).state == "cannot tell"
    assert check_scene(blank_scene(tmp_path / "noise", noise)).state == "cannot tell"
    assert check_scene(part(room, [3])).state == "cannot tell"


def test_a_scene_without_a_usable_frame_is_bad(room):
    verdict = check_scene(replace(room, image_paths=[None] * len(room)))
    assert verdict.state == "bad" and "no frame" in verdict.reason


def test_images_that_are_all_the_same_tell_nothing(room):
    verdict = check_scene(part(room, [2, 2, 2, 2]))
    assert verdict.state == "cannot tell" and "move the camera" in verdict.reason


def test_what_cannot_be_used_is_named_and_the_rest_judged(room, tmp_path):
    w2c = room.w2c.copy()
    w2c[2] = np.nan
    paths = list(room.image_paths)
    paths[4] = tmp_path / "damaged.png"
    paths[4].write_bytes(b"no image")
    verdict = check_scene(replace(room, w2c=w2c, image_paths=paths))
    assert verdict.state == "good" and "2 of 7 frames" in verdict.line() and "frame 2" in verdict.line()


def test_figures_are_those_of_the_cameras(room, matches):
    verdict = judge_cameras(room, matches, {})
    figures = verdict.figures
    assert 0.05 < figures["baseline_over_depth"] < 1
    wide = np.degrees(2 * np.arctan(WIDTH / 2 / room.fxfycxcy[0, 0]))
    assert figures["field_of_view_x"] == pytest.approx(wide) and figures["aspect"] == pytest.approx(16 / 9)
    assert figures["largest_roll"] < 10 and not verdict.warnings


def test_a_camera_that_only_turns_fits_and_is_told_to_move(tmp_path):
    scene = photograph_room(tmp_path, seed=0, frames=4, turn=6.0)
    verdict = check_scene(scene)
    assert verdict.state == "good" and "move the camera" in verdict.line()
    assert verdict.figures["baseline_over_depth"] < 0.01
    check_names(remarks_on_inputs(scene, [0, 1], shape=(1, 1))["baseline"], "scene room", "move the camera")


def test_a_long_lens_is_named(tmp_path):
    verdict = check_scene(photograph_room(tmp_path, seed=0, frames=4, speed=0.05, zoom=3.0))
    assert verdict.state == "good" and "field of view" in verdict.line()


def test_a_photograph_taken_sideways_is_named(room, tmp_path):
    paths = list(room.image_paths)
    with Image.open(paths[6]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    paths[6] = tmp_path / "turned.png"
    fxfycxcy = room.fxfycxcy.copy()
    w2c = room.w2c.copy()
    turned = MISREADINGS["images turned counterclockwise"]
    fxfycxcy[6:], w2c[6:] = turned.correct(fxfycxcy[6:], w2c[6:], np.array([[HEIGHT, WIDTH]], np.float64))
    verdict = check_scene(replace(room, image_paths=paths, fxfycxcy=fxfycxcy, w2c=w2c))
    assert verdict.state == "good" and 60 < verdict.figures["largest_roll"] < 100
    assert "turned by" in verdict.line()


def test_of_usual_inputs_nothing_is_said_but_that_they_are_cut(room):
    assert list(remarks_on_inputs(room, [0, 6], shape=(1, 1))) == ["crop"]
    assert remarks_on_inputs(room, [0, 6], shape=None) == {}
    assert list(remarks_on_inputs(room, [3], shape=(1, 1))) == ["crop"]


def test_inputs_unlike_those_of_training_are_named(room, tmp_path):
    gray = blank_scene(tmp_path, [Image.new("RGB", (HEIGHT, WIDTH), (128, 128, 128))] * 2)
    misfit = misread(room, "OpenGL for OpenCV")
    for scene, inputs, kind, culprit in [
        (gray, [0, 1], "crop", f"{HEIGHT}x{WIDTH}"),
        (gray, [0, 1], "baseline", "inference.input_frames"),
        (part(room, [2, 2]), [0, 1], "baseline", "inference.input_frames"),
        (misfit, [0, 6], "baseline", "data.importers.check"),
    ]:
        check_names(remarks_on_inputs(scene, inputs, shape=(1, 1))[kind], f"scene {scene.name}", culprit)


def test_the_field_of_view_is_that_of_what_the_model_sees(room):
    """40 degrees are usual; this lens sees 55 of them across, and 32 in the square."""
    long_lens = replace(room, fxfycxcy=room.fxfycxcy * [2, 2, 1, 1])
    assert "lens" in remarks_on_inputs(long_lens, [0, 6], shape=(1, 1))
    assert "lens" not in remarks_on_inputs(long_lens, [0, 6], shape=None)


def test_what_a_wide_model_does_not_see_is_said(room):
    """The frames are 16:9."""
    assert remarks_on_inputs(room, [0, 6], shape=(256, 456)) == {}
    said = remarks_on_inputs(room, [0, 6], shape=(256, 384))["crop"]
    check_names(said, f"scene {room.name}", f"{WIDTH}x{HEIGHT}", "270x180", "model.image_tokenizer.image_size")


@pytest.mark.parametrize("frames", [2, 3, 8, 12, 150, 5000])
def test_few_pairs_are_tried_each_once_first_those_that_span_most(frames):
    pairs = list(candidate_pairs(frames))
    assert len(set(pairs)) == len(pairs) and all(0 <= a < b < frames for a, b in pairs)
    first = pairs[: min(frames - 1, 6)]
    assert len({a for a, _ in first}) == len(first)
    assert first[-1][1] >= 0.8 * (frames - 1)
    assert MOST_PAIRS <= 20


def write(scene, **changes):
    scene.source.parent.mkdir(exist_ok=True)
    named = replace(scene, **changes)
    write_scene(named)
    return named.source


def test_the_command_says_a_line_a_scene_and_writes_figures_and_a_page(room, capsys):
    folder = room.source.parent
    right = write(room)
    wrong = write(misread(room, "OpenGL for OpenCV"), name="wrong", source=folder / "wrong.json")
    mirrored = write(room, name="mirrored", source=folder / "mirrored.json", w2c=X @ room.w2c)
    listing = folder.parent / "full_list.txt"
    listing.write_text("".join(f"metadata/{path.name}\n" for path in (right, wrong, mirrored)))
    out = folder.parent / "out"
    check.main([str(right)])
    assert capsys.readouterr().out.startswith("room: good")
    with pytest.raises(InputError, match="2 of 3 scenes"):
        check.main([str(listing), "--json", str(out / "check.json"), "--page", str(out / "check.html")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["room", " good"], ["wrong", " bad"], ["mirrored", " bad"]]
    assert "OpenGL" in lines[1] and "mirrored (determinant" in lines[2]
    scenes = json.loads((out / "check.json").read_text())["scenes"]
    assert [scene["misreading"] for scene in scenes] == [None, "OpenGL for OpenCV", None]
    assert scenes[0]["errors"]["as given"] < 0.5 < scenes[1]["errors"]["as given"]
    page = (out / "check.html").read_text()
    assert page.count("data:image/jpeg") == 1 + 2 * 3 and "<script" not in page


def test_a_page_shows_names_and_reasons_as_text(room, matches, tmp_path):
    evil = "<img src=x onerror=alert(1)>&\"'"
    verdict = replace(judge_cameras(room, matches, {}), scene=evil, reason=evil, warnings=[evil])
    write_check_page(tmp_path / "page.html", [scene_section(verdict)])
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page and page.count("&lt;img src=x") == 3


@pytest.mark.parametrize("arguments", [["nothing.json"], ["nothing.txt"], ["list.txt", "--num_scenes", "0"]])
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a.json\n")
    with pytest.raises(InputError, match="nothing|num_scenes"):
        check.main(arguments)

"""SceneWriter: what every source of scenes shares."""

import json

import numpy as np
import pytest

from data.importers.re10k_chunks import chunk_files, clip_record, open_chunk, parse_clip, write_split
from data.scene import read_scene, read_scene_list
from data.writing import NewScene, SceneWriter
from tests.chunks import camera_rows, contents, jpeg
from tests.messages import check_names
from tests.scenes import import_scenes, photographs
from utils.errors import DamagedError
from utils.lock import LOCK_NAME


def test_a_source_of_ones_own_is_written_and_read_back(tmp_path):
    result = import_scenes(tmp_path, [photographs("b"), photographs("a")])
    assert (result.written, result.kept, result.lost) == (2, 0, {})
    scenes = [read_scene(path) for path in read_scene_list(tmp_path / "full_list.txt")]
    assert [scene.name for scene in scenes] == ["a", "b"]
    assert scenes[0].fxfycxcy.tolist() == [[50, 50, 32, 18]] * 3
    assert scenes[0].image_path(2).read_bytes() == jpeg(64, 36, 2)
    assert not (tmp_path / "lost.json").exists()


def test_normalised_intrinsics_become_pixels(tmp_path):
    new = photographs("a")
    import_scenes(tmp_path, [NewScene("a", new.read_image, np.tile([0.5, 0.9, 0.5, 0.5], (3, 1)), new.w2c, True)])
    assert read_scene(tmp_path / "metadata" / "a.json").fxfycxcy[0].tolist() == pytest.approx([32, 32.4, 32, 18])


def test_a_second_run_leaves_what_is_complete(tmp_path):
    import_scenes(tmp_path, [photographs("a")])
    before = contents(tmp_path)
    result = import_scenes(tmp_path, [photographs("a"), photographs("b")])
    assert (result.written, result.kept) == (1, 1)
    assert before.items() - {("full_list.txt", before["full_list.txt"])} <= contents(tmp_path).items()


def test_lost_frames_and_scenes_are_named_and_take_nobody_along(tmp_path):
    one_bad = photographs("a", images={1: b"nothing"})
    none_good = photographs("b", images=dict.fromkeys(range(3), b"nothing"))
    result = import_scenes(tmp_path, [one_bad, none_good, photographs("c")])
    assert list(result.lost) == ["clip a, frame 1", "clip b"]
    assert json.loads((tmp_path / "lost.json").read_text()) == result.lost
    assert [path.stem for path in read_scene_list(tmp_path / "full_list.txt")] == ["a", "c"]
    assert read_scene(tmp_path / "metadata" / "a.json").image_paths[1] is None
    assert not (tmp_path / "images" / "b").exists()


def test_an_unusable_camera_costs_its_frame_and_its_file(tmp_path):
    w2c = np.tile(np.eye(4), (3, 1, 1))
    w2c[1, 2, 2] = -1
    result = import_scenes(tmp_path, [photographs("a", w2c=w2c)])
    assert list(result.lost) == ["clip a, frame 1"]
    check_names(result.lost["clip a, frame 1"], "mirrored")
    assert sorted(path.name for path in (tmp_path / "images" / "a").iterdir()) == ["00000.jpg", "00002.jpg"]


def test_a_damaged_source_leaves_nothing_of_its_scene(tmp_path):
    def broken(_frame):
        raise DamagedError("the archive ends here")

    result = import_scenes(tmp_path, [NewScene("a", broken, np.ones((2, 4)), np.tile(np.eye(4), (2, 1, 1)))])
    assert result.lost == {"clip a": "the archive ends here"}
    assert list((tmp_path / "images").iterdir()) == [] and list((tmp_path / "metadata").iterdir()) == []


def test_another_scene_of_the_name_is_named(tmp_path):
    import_scenes(tmp_path, [photographs("a")])
    moved = np.tile(np.eye(4), (3, 1, 1))
    moved[:, 0, 3] = 5
    result = import_scenes(tmp_path, [photographs("a", w2c=moved)])
    assert (result.written, result.kept) == (0, 0)
    check_names(result.lost["clip a"], tmp_path / "metadata" / "a.json")


def test_a_session_leaves_nothing_hidden(tmp_path):
    writer = SceneWriter(tmp_path / "set")
    with writer.session():
        assert (writer.root / LOCK_NAME).exists()
        writer.images(".a.lvsm-12345678.tmp").mkdir()
    assert not list(writer.root.rglob(".*")) and (writer.root / "full_list.txt").read_text() == ""


def test_another_image_format_is_counted(tmp_path):
    import_scenes(tmp_path, [photographs("a")])
    assert import_scenes(tmp_path, [photographs("a")], "png").other_format == 1
    assert import_scenes(tmp_path / "other", [photographs("a")], "png").other_format == 0
    assert import_scenes(tmp_path / "other", [photographs("a")]).other_format == 1


def test_chunks_that_are_written_are_read_back(tmp_path):
    images = [jpeg(seed=number) for number in range(3)]
    cameras = camera_rows(3).numpy()
    write_split(tmp_path, (clip_record(key, cameras, images) for key in "abc"), clips_per_chunk=2)
    chunks = chunk_files(tmp_path)
    assert {path.name: keys for path, keys in chunks.items()} == {"000000.torch": ["a", "b"], "000001.torch": ["c"]}
    with open_chunk(tmp_path / "000000.torch") as chunk:
        clip = parse_clip(chunk.content[1])
        assert clip.key == "b" and [clip.image(frame) for frame in range(3)] == images
        np.testing.assert_array_equal(clip.cameras, cameras)


def test_no_clips_are_no_split(tmp_path):
    write_split(tmp_path, [], clips_per_chunk=2)
    assert list(tmp_path.iterdir()) == []

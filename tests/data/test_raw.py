"""preprocess_data.py on raw RealEstate10K: camera files with images, videos, both or neither."""

import importlib.util
import json
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

import preprocess_data
from data.importers import re10k_raw
from data.importers.re10k_cameras import read_camera_file
from data.importers.video import Video, open_video
from data.transforms import JPEG_QUALITY, encode_pixels, read_image
from tests.chunks import (
    contents,
    damaged_inside,
    jpeg,
    make_clip,
    names,
    names_in,
    preprocess,
    preprocess_with_losses,
    scene_of,
    write_chunks,
)
from tests.messages import check_names, check_told, refused
from tests.processes import run
from tests.raw import (
    MOST,
    SIZE,
    camera_lines,
    number_of,
    numbers,
    write_cameras,
    write_film,
    write_stills,
)

# 25 frames a second.
EVEN = range(0, 40 * 60, 40)


def table(text):
    """The table at the end of a run."""
    rows = [line.rsplit(maxsplit=1) for line in text.splitlines() if re.search(r"   [\d,]+$", line)]
    return {what: int(count.replace(",", "")) for what, count in rows}


@pytest.fixture
def base(tmp_path):
    """Two clips of one video, and one whose frames are images."""
    write_cameras(tmp_path / "raw", "a", [80, 120, 160])
    write_cameras(tmp_path / "raw", "b", [1200, 1280, 1360])
    write_cameras(tmp_path / "raw", "c", [33, 66], "other")
    write_film(tmp_path / "raw" / "videos" / "video.mp4", EVEN)
    write_stills(tmp_path / "raw" / "frames" / "train" / "c", [33, 66])
    return tmp_path / "raw"


# What frames are taken


def test_clips_of_images_and_of_a_video_become_scenes(base, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "lvsm")
    preprocess(base, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a", "b", "c"]
    assert [numbers(tmp_path / "out", key) for key in "abc"] == [[2, 3, 4], [30, 32, 34], [0, 1]]
    cameras = read_camera_file(base / "train" / "a.txt")
    scene = scene_of(tmp_path / "out", "a")
    np.testing.assert_array_equal(scene.w2c, cameras.w2c)
    np.testing.assert_array_equal(scene.fxfycxcy, cameras.rows[:, :4] * [*SIZE, *SIZE])
    check_told(caplog.messages, base / "train", "raw", 3)
    check_told(caplog.messages, 25, "ms", "--tolerance", JPEG_QUALITY)
    assert list(table(capsys.readouterr().out).items()) == [
        ("clips with sound cameras", 3),
        ("clips with an image of every frame", 1),
        ("clips with a video", 2),
        ("scenes with all frames", 3),
    ]


@pytest.mark.parametrize(
    ("place", "suffix"), [("frames/train/c", "jpg"), ("frames/c", "png"), ("train/c", "JPEG"), ("named/c", "jpg")]
)
def test_images_keep_their_bytes(tmp_path, place, suffix):
    write_cameras(tmp_path / "raw", "c", [33, 66])
    images = write_stills(tmp_path / "raw" / place, [33, 66, 99], suffix)
    more = ["--frames", tmp_path / "raw" / "named"] if place.startswith("named") else []
    preprocess(tmp_path / "raw", tmp_path / "out", *more)
    written = scene_of(tmp_path / "out", "c").image_paths
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in images[:2]]


def test_raw_clips_and_chunks_give_the_same_files(tmp_path):
    chunks = write_chunks(tmp_path, [make_clip("a", 4)])
    write_cameras(tmp_path / "raw", "a", [33, 66, 99, 132])
    for number, path in enumerate(write_stills(tmp_path / "raw" / "frames" / "a", [33, 66, 99, 132])):
        path.write_bytes(jpeg(seed=number))
    preprocess(chunks, tmp_path / "of_chunks")
    preprocess(tmp_path / "raw", tmp_path / "of_raw")
    assert contents(tmp_path / "of_raw") == contents(tmp_path / "of_chunks")


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_frames_of_a_video_are_stored_in_its_size(base, tmp_path, image_format):
    preprocess(base, tmp_path / "out", "--image_format", image_format)
    with open_video(base / "videos" / "video.mp4") as film:
        pixels = film.pixels(120_000, 0)
    image = scene_of(tmp_path / "out", "a").image_paths[1]
    assert read_image(image, "a").size == SIZE
    with Image.open(image) as stored:
        assert stored.format == image_format.upper()
        if image_format == "png":
            np.testing.assert_array_equal(np.asarray(stored), pixels)
        else:
            assert image.read_bytes() == encode_pixels(pixels, "jpeg")


def test_the_video_fills_in_for_images_that_are_missing(base, tmp_path, capsys):
    write_stills(base / "frames" / "a", [120])
    preprocess(base, tmp_path / "out")
    assert numbers(tmp_path / "out", "a") == [2, 0, 4]
    assert table(capsys.readouterr().out)["clips with images of some frames"] == 1


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_the_nearest_frame_is_taken_of_every_kind_of_video(tmp_path, suffix, codec):
    path = write_film(tmp_path / f"film.{suffix}", EVEN, codec)
    times = [0, 15_000, 25_000, 1_580_001, 1_600_000, 2_379_999]
    with open_video(path) as film:
        seen = [number_of(Image.fromarray(film.pixels(time, 20_000))) for time in times]
    assert seen == [0, 0, 1, 40, 40, 59]


def test_a_video_of_a_variable_frame_rate_is_read_by_its_times(tmp_path):
    times = [0, 10, 100, 110, 400, 401, 1000, 1300]
    path = write_film(tmp_path / "film.mkv", times)
    with open_video(path) as film:
        assert [number_of(Image.fromarray(film.pixels(1000 * time, 0))) for time in times] == list(range(8))
        assert number_of(Image.fromarray(film.pixels(249_000, 150_000))) == 3
        with refused(path, "600000", "199", error=ValueError):
            film.pixels(600_000, 150_000)


def test_times_count_from_the_first_frame_that_the_video_shows(tmp_path):
    path = write_film(tmp_path / "film.mkv", range(5000, 6000, 40))
    with open_video(path) as film:
        assert number_of(Image.fromarray(film.pixels(400_000, 0))) == 10


def test_a_video_is_decoded_once_for_times_that_grow(tmp_path, monkeypatch):
    path = write_film(tmp_path / "film.mp4", range(0, 40 * MOST, 40))
    decoded = []
    seek = Video._decoded_from

    def counted(self, start):
        for shown in seek(self, start):
            decoded.append(round(shown.time / 40_000))
            yield shown

    monkeypatch.setattr(Video, "_decoded_from", counted)
    with open_video(path) as film:
        times = [3_200_000, 3_200_000, 3_440_000, 4_000_000]
        assert [number_of(Image.fromarray(film.pixels(time, 0))) for time in times] == [80, 80, 86, 100]
        assert decoded == list(range(decoded[0], 102)) and 0 < decoded[0] <= 80
        assert number_of(Image.fromarray(film.pixels(40_000, 0))) == 1


# What is lost


def test_frames_after_the_end_of_the_video_are_named(base, tmp_path, capsys):
    write_cameras(base, "a", [2320, 2360, 2400, 9000])
    write_cameras(base, "b", [9000, 9040])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a, frame 2", "clip a, frame 3", "clip b"]
    for name, time in (("clip a, frame 2", 2400000), ("clip a, frame 3", 9000000), ("clip b", 9000000)):
        check_names(lost[name], base / "videos" / "video.mp4", time, "--tolerance")
    assert numbers(tmp_path / "out", "a") == [58, 59, None, None]
    counts = table(capsys.readouterr().out)
    assert counts["scenes with all frames"] == counts["scenes that lack frames"] == 1
    assert counts["clips lost, since their images, their video or an earlier scene cannot be used"] == 1


def test_the_tolerance_is_an_option(base, tmp_path):
    write_cameras(base, "a", [80, 135, 160])
    lost = preprocess_with_losses(base, tmp_path / "strict", "--tolerance", 10)
    assert list(lost) == ["clip a, frame 1"]
    check_names(lost["clip a, frame 1"], 135000, "15 ms", "10 ms")
    preprocess(base, tmp_path / "out", "--tolerance", 15)
    assert numbers(tmp_path / "out", "a") == [2, 3, 4]


DAMAGED_VIDEOS = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "page": lambda content: b"sign in to confirm that you are not a robot",
    "playlist": lambda content: b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nvideo.mp4\n#EXT-X-ENDLIST\n",
    "picture": lambda content: jpeg(),
}


def test_a_damaged_video_costs_its_clips(base, tmp_path):
    content = (base / "videos" / "video.mp4").read_bytes()
    for name, damage in DAMAGED_VIDEOS.items():
        (base / "videos" / f"{name}.mp4").write_bytes(damage(content))
        write_cameras(base, f"{name}1", [80, 120], name)
        write_cameras(base, f"{name}2", [200, 240], name)
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert sorted(lost) == sorted(f"clip {name}{number}" for name in DAMAGED_VIDEOS for number in (1, 2))
    for name in DAMAGED_VIDEOS:
        check_names(lost[f"clip {name}2"], base / "videos" / f"{name}.mp4", "fetch")
    assert names_in(tmp_path / "out") == ["a", "b", "c"]


def test_damage_in_the_middle_costs_the_frames_there(base, tmp_path):
    path = write_film(base / "videos" / "video.mp4", EVEN, bf="0", sc_threshold="0")
    write_cameras(base, "a", range(0, 2400, 40))
    content = path.read_bytes()
    start = content.find(b"mdat") + 4
    stored = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    middle = start + stored // 2
    path.write_bytes(content[:middle] + bytes(stored // 10) + content[middle + stored // 10 :])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert all(path.name in reason for reason in lost.values())
    seen = numbers(tmp_path / "out", "a")
    assert 0 < seen.count(None) < 30 and all(number in (None, frame) for frame, number in enumerate(seen))


def no_row(lines):
    return lines[:1]


def short_line(lines):
    return [*lines[:3], lines[3][:40]]


def twice(lines):
    return [*lines[:3], lines[2]]


def unsorted(lines):
    return [lines[0], lines[2], lines[1], lines[3]]


def no_number(lines):
    return [*lines[:3], lines[3].replace(" 0.0 ", " x ", 1)]


def no_timestamp(lines):
    return [*lines[:3], "-" + lines[3]]


BAD_TEXTS = {
    no_row: ["no_row.txt"],
    short_line: ["short_line.txt", "line 4"],
    twice: ["frame 2", "120000"],
    unsorted: ["frame 1", "80000", "120000"],
    no_number: ["no_number.txt", "line 4"],
    no_timestamp: ["no_timestamp.txt", "line 4"],
}


def test_a_bad_camera_file_costs_its_clip(base, tmp_path, capsys):
    for damage in BAD_TEXTS:
        path = write_cameras(base, damage.__name__, [80, 120, 160])
        path.write_text("\n".join(damage(path.read_text().splitlines())))
    (base / "train" / "no_text.txt").write_bytes(b"\xff\xfe\0")
    os.mkfifo(base / "train" / "pipe.txt")
    lost = preprocess_with_losses(base, tmp_path / "out")
    culprits = {damage.__name__: named for damage, named in BAD_TEXTS.items()}
    culprits |= {name: [f"{name}.txt"] for name in ("no_text", "pipe")}
    assert sorted(lost) == sorted(f"clip {name}" for name in culprits)
    for name, named in culprits.items():
        check_told([lost[f"clip {name}"]], *[re.compile(re.escape(part)) for part in named])
    assert names_in(tmp_path / "out") == ["a", "b", "c"]
    counts = table(capsys.readouterr().out)
    assert counts["clips with sound cameras"] == counts["scenes with all frames"] == 3
    assert counts["clips lost, since their cameras cannot be used"] == len(lost) == 8


def test_a_camera_that_is_not_finite_costs_its_frame(base, tmp_path, capsys):
    path = base / "train" / "a.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].rpartition(" ")[0] + " nan", lines[3]]))
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a, frame 1"]
    assert numbers(tmp_path / "out", "a") == [2, None, 4]


def test_names_that_are_no_plain_ones_are_refused(base, tmp_path):
    odd = ["a b", "é", "a\\b", "a\n"]
    for name in odd:
        write_cameras(base, name, [80, 120])
        write_stills(base / "frames" / name, [80, 120])
    write_cameras(base, "-", [80, 120])
    write_cameras(base, ".hidden", [80, 120])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert len(lost) == len(odd) and all("plain name" in reason for reason in lost.values())
    assert names_in(tmp_path / "out") == ["-", "a", "b", "c"]


ADDRESSES = {
    "https://www.youtube.com/watch?v=../../up": False,
    "https://www.youtube.com/watch?v=/up": False,
    "https://example.org/video": False,
    "watch?list=a://b": False,
    "https://[x": False,
    "": False,
    "https://www.youtube.com/watch?v=video": True,
    "https://www.youtube.com/watch?t=1&v=video&x=2": True,
    "https://youtu.be/video?t=3": True,
    "https://www.youtube.com/embed/video": True,
}


def test_addresses_name_videos_or_lead_nowhere(base, tmp_path):
    write_film(base / "up.mp4", [0, 40])
    for number, address in enumerate(ADDRESSES):
        (base / "train" / f"clip{number}.txt").write_text("\n".join(camera_lines([80, 120], address)))
    lost = preprocess_with_losses(base, tmp_path / "out")
    bad = {f"clip clip{number}": address for number, address in enumerate(ADDRESSES) if not ADDRESSES[address]}
    assert lost.keys() == bad.keys()
    assert all(f"'{address}'" in lost[name] for name, address in bad.items())
    for number in range(len(bad), len(ADDRESSES)):
        assert numbers(tmp_path / "out", f"clip{number}") == [2, 3]


def test_missing_videos_and_images_are_named(base, tmp_path, capsys):
    (base / "videos" / "video.mp4").unlink()
    (base / "frames" / "train" / "c" / "66000.jpg").unlink()
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a", "clip b", "clip c, frame 1"]
    check_names(lost["clip a"], "video")
    check_names(lost["clip c, frame 1"], 66000, "other")
    assert table(capsys.readouterr().out) == {
        "clips with sound cameras": 3,
        "clips with images of some frames": 1,
        "clips with neither images nor a video": 2,
        "scenes that lack frames": 1,
        "clips lost, since there are neither images nor a video": 2,
    }


def test_a_damaged_image_is_found_by_decoding_it(base, tmp_path):
    (base / "frames" / "train" / "c" / "66000.jpg").write_bytes(damaged_inside())
    preprocess(base, tmp_path / "unchecked")
    lost = preprocess_with_losses(base, tmp_path / "out", "--check_images")
    assert list(lost) == ["clip c, frame 1"]


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patch reaches workers by fork alone")
@pytest.mark.slow
def test_a_clip_that_kills_its_process_costs_itself(base, tmp_path, monkeypatch, capsys):
    find = re10k_raw.find_clip

    def die_at_b(path, media):
        if path.stem == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return find(path, media)

    monkeypatch.setattr(re10k_raw, "find_clip", die_at_b)
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip b"]
    check_names(lost["clip b"], "memory")
    assert names_in(tmp_path / "out") == ["a", "c"]
    assert table(capsys.readouterr().out)["clips lost, since the process that read them died"] == 1


# Runs


def test_a_second_run_leaves_what_is_complete(base, tmp_path, capsys):
    preprocess(base, tmp_path / "out", processes=2)
    before = contents(tmp_path / "out")
    (base / "videos" / "video.mp4").write_bytes(b"damaged since")
    (base / "train" / "b.txt").write_text("damaged, too")
    capsys.readouterr()
    preprocess(base, tmp_path / "out", processes=2)
    out = capsys.readouterr().out
    check_told(out.splitlines(), "0 clips written", "3 already")
    assert table(out)["scenes with all frames"] == 3 and not any("lost" in what for what in table(out))
    assert contents(tmp_path / "out") == before


def test_another_clip_of_a_name_is_not_taken_for_it(base, tmp_path):
    preprocess(base, tmp_path / "out")
    address, *frames = camera_lines([80, 120, 160], "https://youtu.be/video")
    times, rows = zip(*(frame.split(maxsplit=1) for frame in frames), strict=True)
    moved = map(" ".join, zip(times, reversed(rows), strict=True))
    (base / "train" / "a.txt").write_text("\n".join([address, *moved]))
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a"]


def test_a_killed_run_started_again_gives_the_same_files(base, tmp_path):
    out = tmp_path / "out"
    write_cameras(base, "d", [2000, 2040])
    preprocess(base, tmp_path / "undisturbed")
    arguments = ["--base_path", base, "--output_dir", out, "--mode", "train", "--num_processes", 1]
    assert run("-m", "tests.programs.run_struck", "all", *arguments).returncode == -signal.SIGKILL
    assert names(out / "train" / "metadata") == ["a.json", "b.json"]
    preprocess(base, out, processes=2)
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("pack", [(), ("--pack",)])
def test_shards_together_are_the_whole_set(base, tmp_path, pack):
    out = tmp_path / "out"
    preprocess(base, tmp_path / "whole", *pack)
    for number in (1, 2, 0):
        preprocess(base, out, *pack, "--num_shards", 3, "--shard", number)
    preprocess_data.main(["--merge", "--output_dir", str(out), "--mode", "train"])
    assert names_in(out) == ["a", "b", "c"]
    shards = [contents(out / "train" / f"shard_{number}_of_3") for number in range(3)]
    assert sum(len(shard) > 1 for shard in shards) == 2
    whole = contents(tmp_path / "whole" / "train")
    assert shards[0] | shards[1] | shards[2] | {"full_list.txt": whole["full_list.txt"]} == whole
    metadata = tmp_path / "whole" / "train" / "metadata" / "a.json"
    assert ("member" in json.loads(metadata.read_text())["frames"][0]) == bool(pack)


def test_the_splits_are_found_apart(base, tmp_path):
    write_cameras(base, "t", [0, 40], mode="test")
    preprocess_data.main(["--base_path", str(base), "--output_dir", str(tmp_path / "out"), "--mode", "test"])
    assert names(tmp_path / "out") == ["test"] and names(tmp_path / "out" / "test" / "metadata") == ["t.json"]


# What is missing


def missing(capsys, base, *more):
    """The lines that --list_missing prints."""
    capsys.readouterr()
    preprocess_data.main(["--base_path", str(base), "--mode", "train", "--list_missing", *map(str, more)])
    return capsys.readouterr().out.splitlines()


def test_ids_of_missing_videos_are_all_that_is_printed(base, tmp_path, capsys, caplog):
    assert missing(capsys, base) == []
    (base / "videos" / "video.mp4").unlink()
    write_cameras(base, "d", [0, 40], "-fourth")
    (base / "frames" / "train" / "c" / "66000.jpg").unlink()
    (base / "train" / "e.txt").write_text("https://youtu.be/damaged\n80000 1\n")
    before = contents(tmp_path)
    assert missing(capsys, base) == ["-fourth", "other", "video"]
    check_told(caplog.messages, "e", base / "train" / "e.txt", "line 2")
    assert missing(capsys, base, "--videos", tmp_path / "not_yet", "--num_processes", 2) == [
        "-fourth",
        "other",
        "video",
    ]
    shards = [missing(capsys, base, "--num_shards", 3, "--shard", number) for number in range(3)]
    assert sorted({*shards[0], *shards[1], *shards[2]}) == ["-fourth", "other", "video"]
    assert [] in shards and ["video"] in shards
    assert contents(tmp_path) == before


def test_nothing_is_missing_of_scenes_that_are_whole(base, tmp_path, capsys):
    write_cameras(base, "e", [80, 9000], "fifth")
    write_film(base / "videos" / "fifth.mp4", EVEN)
    preprocess_with_losses(base, tmp_path / "out")
    for name in ("video", "fifth"):
        (base / "videos" / f"{name}.mp4").unlink()
    write_cameras(base, "d", [0, 40], "fourth")
    before = contents(tmp_path)
    assert missing(capsys, base, "--output_dir", tmp_path / "out") == ["fifth", "fourth"]
    assert missing(capsys, base) == ["fifth", "fourth", "video"]
    assert missing(capsys, base, "--output_dir", tmp_path / "new") == ["fifth", "fourth", "video"]
    assert contents(tmp_path) == before and not (tmp_path / "new").exists()


# What a folder holds


def test_chunks_are_still_found(tmp_path, caplog):
    caplog.set_level("INFO", "lvsm")
    chunks = write_chunks(tmp_path, [make_clip("a")])
    (chunks / "train" / "notes.txt").write_text("what\nthis is")
    preprocess(chunks, tmp_path / "out")
    check_told(caplog.messages, chunks / "train", "chunks")


@pytest.mark.parametrize("option", [["--frames", "."], ["--videos", "."], ["--tolerance", "0"], ["--list_missing"]])
def test_options_of_raw_clips_are_of_no_use_with_chunks(tmp_path, option):
    chunks = write_chunks(tmp_path, [make_clip("a")])
    with refused(option[0], chunks / "train"):
        preprocess(chunks, tmp_path / "out", *option)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_neither_meets_one_line(tmp_path):
    (tmp_path / "raw" / "train").mkdir(parents=True)
    (tmp_path / "raw" / "train" / "full_list.txt").write_text("metadata/a.json\nmetadata/b.json\n")
    for folder in (tmp_path, tmp_path / "raw"):
        with refused(folder / "train", "*.torch", "*.txt", "--base_path"):
            preprocess(folder, tmp_path / "out")
    with refused(tmp_path / "raw" / "train", "*.txt"):
        preprocess(tmp_path / "raw", tmp_path / "out", "--source", "re10k_raw")
    assert not (tmp_path / "out").exists()


def test_camera_files_without_any_frames_meet_one_line(base, tmp_path):
    (base / "videos").rename(base / "films")
    (base / "frames").rename(base / "stills")
    culprits = [base / "frames" / "train" / "CLIP", base / "train" / "CLIP", base / "videos" / "ID", "--list_missing"]
    with refused(*culprits):
        preprocess(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    preprocess(base, tmp_path / "out", "--videos", base / "films", "--frames", base / "stills")
    assert names_in(tmp_path / "out") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("option", "culprit"),
    [
        (["--frames", "nowhere"], "nowhere"),
        (["--videos", "nowhere"], "nowhere"),
        (["--tolerance", "-1"], "-1"),
        (["--tolerance", "nan"], "nan"),
        (["--tolerance", "2000"], "2000"),
    ],
)
def test_options_that_cannot_be_are_named(base, tmp_path, option, culprit):
    with refused(option[0], culprit):
        preprocess(base, tmp_path / "out", *option)
    assert not (tmp_path / "out").exists()


def test_videos_without_pyav_meet_one_line(base, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find(name))
    with refused("PyAV", "requirements.txt"):
        preprocess(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (base / "videos").rename(base / "films")
    write_stills(base / "frames" / "a", [80, 120, 160])
    write_stills(base / "frames" / "b", [1200, 1280, 1360])
    preprocess(base, tmp_path / "out")

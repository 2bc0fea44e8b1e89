"""preprocess_data.py on chunks of odd and hostile records."""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.scene import read_cameras
from tests.chunks import (
    CHUNKS,
    as_tensor,
    camera_rows,
    jpeg,
    make_clip,
    names,
    names_in,
    preprocess,
    preprocess_with_losses,
    scene_of,
    without_index,
    write_chunks,
)
from tests.messages import refused
from utils import torch_file


def encoded(kind, mode="RGB", size=(64, 36), **options):
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


# Odd frames

ODD_IMAGES = {
    "expanded": torch.zeros(1, dtype=torch.uint8).expand(10**13),
    "expanded a little": torch.zeros(1, dtype=torch.uint8).expand(1000),
    "sparse": torch.eye(3, dtype=torch.uint8).to_sparse(),
    "csr": torch.eye(3).to_sparse_csr(),
    "meta": torch.empty(9, dtype=torch.uint8, device="meta"),
    "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "floats": torch.ones(9),
    "signed": as_tensor(jpeg()).to(torch.int8),
    "array": np.frombuffer(jpeg(), dtype=np.uint8),
    "objects": np.array([{}], dtype=object),
    "text": "image",
    "none": None,
    "list": [1, 2],
    "empty": torch.empty(0, dtype=torch.uint8),
    "scalar": torch.tensor(255, dtype=torch.uint8),
    **{kind: as_tensor(encoded(kind)) for kind in ("eps", "tiff", "gif", "bmp", "webp", "ppm", "ico", "tga")},
    "narrow": as_tensor(encoded("jpeg", size=(5000, 2))),
    "header alone": as_tensor(jpeg()[:300] + b"\xff\xd9"),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_an_odd_frame_costs_itself(tmp_path, kind, monkeypatch):
    # Nothing may be started for it: Pillow would start Ghostscript for PostScript.
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    clip = make_clip("a", 3)
    clip["images"][1] = ODD_IMAGES[kind]
    lost = preprocess_with_losses(write_chunks(tmp_path, [clip, make_clip("b")]), tmp_path / "out")
    assert list(lost) == ["clip a, frame 1"] and not (tmp_path / "canary").exists()
    assert [path and path.name for path in scene_of(tmp_path / "out", "a").image_paths] == [
        "00000.jpg",
        None,
        "00002.jpg",
    ]
    assert names_in(tmp_path / "out") == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.tobytes(),
        lambda data: as_tensor(data.repeat(2).tobytes())[::2],
        lambda data: as_tensor(data.tobytes())[None],
        lambda data: torch.nn.Parameter(as_tensor(data.tobytes()), requires_grad=False),
    ],
    ids=["bytes", "steps", "two dimensions", "parameter"],
)
def test_frames_that_hold_the_bytes_of_a_file_are_read(tmp_path, change):
    clip = make_clip("a", images=[jpeg(seed=1), jpeg(seed=2)])
    clip["images"][1] = change(np.frombuffer(jpeg(seed=2), dtype=np.uint8))
    preprocess(write_chunks(tmp_path, [clip]), tmp_path / "out")
    assert scene_of(tmp_path / "out", "a").image_path(1).read_bytes() == jpeg(seed=2)


def test_png_frames_keep_their_bytes_and_have_the_name_of_their_kind(tmp_path):
    preprocess(write_chunks(tmp_path, [make_clip("a", images=[jpeg(), encoded("png")])]), tmp_path / "out")
    assert names(tmp_path / "out" / "train" / "images" / "a") == ["00000.jpg", "00001.png"]
    cut = make_clip("b", images=[jpeg(), encoded("png")[:-30]])
    assert list(preprocess_with_losses(write_chunks(tmp_path, [cut]), tmp_path / "out")) == ["clip b, frame 1"]


def test_frames_that_share_what_is_stored_are_bounded(tmp_path, monkeypatch):
    clip, image = make_clip("a", 60), as_tensor(jpeg())
    base = write_chunks(tmp_path, [clip | {"images": [image] * 60}, make_clip("b")])
    preprocess(base, tmp_path / "out")
    monkeypatch.setattr(torch_file, "LARGEST_CONTENT", 1)
    assert list(preprocess_with_losses(base, tmp_path / "bounded")) == ["clip a"]
    assert names_in(tmp_path / "bounded") == ["b"]


# Odd cameras and fields

ODD_CAMERAS = {
    "sparse": camera_rows(3).to_sparse(),
    "csr": camera_rows(3).to_sparse_csr(),
    "meta": camera_rows(3).to("meta"),
    "quantised": torch.quantize_per_tensor(camera_rows(3), 0.1, 0, torch.qint8),
    "nested": torch.nested.nested_tensor(list(camera_rows(3))),
    "complex": camera_rows(3).to(torch.complex64),
    "integers": camera_rows(3).long(),
    "array": camera_rows(3).numpy(),
    "scalar": torch.tensor(1.0),
    "expanded": torch.zeros(1).expand(10**7, 18),
    "turned": camera_rows(18)[:, :3],
    "none": None,
}


@pytest.mark.parametrize("kind", ODD_CAMERAS)
def test_odd_cameras_cost_their_clip(tmp_path, kind):
    base = write_chunks(tmp_path, [make_clip("bad", cameras=ODD_CAMERAS[kind]), make_clip("good")], [make_clip("c")])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip bad"] and "cameras" in lost["clip bad"]
    assert names_in(tmp_path / "out") == ["c", "good"]


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda t: t.requires_grad_(), lambda t: t.T.contiguous().T])
def test_cameras_of_any_dense_form_are_read(tmp_path, change):
    preprocess(write_chunks(tmp_path, [make_clip("a", cameras=change(camera_rows(3)))]), tmp_path / "out")
    np.testing.assert_array_equal(scene_of(tmp_path / "out", "a").w2c[:, :3].reshape(3, 12), camera_rows(3)[:, 6:])


@pytest.mark.parametrize(
    "value",
    [np.arange(3), np.array([{}, open], dtype=object), np.float64(3), torch.eye(3).to_sparse(), {1, 2}, Path("a")],
    ids=["array", "objects", "number", "sparse", "set", "path"],
)
def test_a_field_that_nobody_reads_costs_nothing(tmp_path, value):
    preprocess(write_chunks(tmp_path, [make_clip("a", timestamps=value, url=value)]), tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a"]


def with_row(*columns, value):
    rows = camera_rows(4)
    rows[1, list(columns)] = value
    return rows


@pytest.mark.parametrize(
    "cameras",
    [
        with_row(9, value=float("nan")),
        with_row(0, value=float("inf")),
        with_row(6, 7, 8, value=0.0),
        with_row(6, 7, 8, value=-camera_rows(4)[1, 6:9]),
        with_row(9, value=1e9),
        with_row(0, 1, 2, 3, value=300.0),
        with_row(2, value=1.5),
        with_row(0, value=1e-3),
    ],
    ids=["nan pose", "infinite focal", "flat", "mirrored", "far", "pixels", "outside", "wide"],
)
def test_a_frame_whose_camera_cannot_be_meant_keeps_its_place(tmp_path, cameras):
    out = tmp_path / "out"
    base = write_chunks(tmp_path, [make_clip("a", 4, cameras=cameras)])
    lost = preprocess_with_losses(base, out)
    assert list(lost) == ["clip a, frame 1"] and "camera" in lost["clip a, frame 1"]
    scene = scene_of(out, "a")
    assert [path and path.name for path in scene.image_paths] == ["00000.jpg", None, "00002.jpg", "00003.jpg"]
    assert names(scene.image_path(0).parent) == ["00000.jpg", "00002.jpg", "00003.jpg"]
    good = [0, 2, 3]
    np.testing.assert_array_equal(scene.w2c[good, :3].reshape(3, 12), cameras[good, 6:])
    assert np.isnan(scene.w2c[1]).all() and np.isnan(scene.fxfycxcy[1]).all()
    record = json.loads(scene.source.read_text())
    assert record["frames"][1] == {"image_path": None, "fxfycxcy": None, "w2c": None}
    assert list(preprocess_with_losses(base, out)) == list(lost)
    assert len(read_cameras(scene.source)[0]) == 3
    record["frames"][2] |= {"fxfycxcy": None, "w2c": None}
    scene.source.write_text(json.dumps(record))
    with refused("scene a, frame 2", scene.source):
        scene_of(out, "a").image_path(2)


# Damaged and odd files


def test_a_flipped_bit_costs_the_clip(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a", images=[jpeg(seed=1), jpeg(seed=2)]), make_clip("b")])
    chunk = base / "train" / CHUNKS[0]
    data = bytearray(chunk.read_bytes())
    data[data.index(jpeg(seed=2)) + 500] ^= 1
    chunk.write_bytes(data)
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a"] and "fetch it again" in lost["clip a"] and CHUNKS[0] in lost["clip a"]
    write_chunks(tmp_path, [make_clip("a", images=[jpeg(seed=1), jpeg(seed=2)]), make_clip("b")])
    preprocess(base, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a", "b"]


def test_chunks_of_the_old_form_are_read(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")])
    torch.save([make_clip("a")], base / "train" / CHUNKS[0], _use_new_zipfile_serialization=False)
    preprocess(base, tmp_path / "out")
    assert scene_of(tmp_path / "out", "a").image_path(1).read_bytes() == jpeg(seed=1)


def test_a_chunk_that_would_unpack_without_end_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "LARGEST_CONTENT", 1 << 20)
    base = write_chunks(tmp_path, [make_clip("a", url=torch.zeros(1 << 20))], [make_clip("b")])
    packed = tmp_path / "packed"
    shutil.unpack_archive(base / "train" / CHUNKS[0], packed, "zip")
    shutil.make_archive(str(tmp_path / "again"), "zip", packed)
    shutil.move(tmp_path / "again.zip", base / "train" / CHUNKS[0])
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert list(lost) == ["clip a"] and CHUNKS[0] in lost["clip a"] and str(1 << 20) in lost["clip a"]
    assert names_in(tmp_path / "out") == ["b"]


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere")],
    ids=["pipe", "folder", "device", "broken link"],
)
def test_a_chunk_that_is_no_regular_file_costs_itself(tmp_path, make):
    base = write_chunks(tmp_path, [make_clip("a")])
    make(base / "train" / CHUNKS[1])
    without_index(base)
    assert list(preprocess_with_losses(base, tmp_path / "out")) == [f"chunk {CHUNKS[1]}"]
    assert names_in(tmp_path / "out") == ["a"]


def test_hidden_files_are_no_chunks(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")])
    (base / "train" / f"._{CHUNKS[0]}").write_bytes(b"\0\5\x16\7")
    preprocess(base, tmp_path / "out")


def test_control_characters_reach_no_terminal(tmp_path, capsys):
    base = write_chunks(
        tmp_path, [make_clip("a"), make_clip("\x1b[2Jkey"), make_clip("b" * 5000)], **{"\x1b[31mghost": 0}
    )
    without_index(base)
    (base / "train" / "\x1b[31m\n\u202e.torch").write_bytes(b"\x1b[31m")
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert len(lost) == 3
    for text in [*lost, *lost.values(), *capsys.readouterr().err.splitlines()]:
        assert text.isprintable() and len(text) < 900


@pytest.mark.parametrize("content", ['\ufeff{"a": "000000.torch"}', '{"a": "000000.torch"}'])
def test_an_index_may_have_a_byte_order_mark(tmp_path, content):
    base = write_chunks(tmp_path, [make_clip("a")])
    (base / "train" / "index.json").write_text(content, encoding="utf-8")
    preprocess(base, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "000000.torch", "a": "000001.torch"}',
        '{"a": null}',
        '{"a": ["000000.torch"]}',
        '{"a": "/etc/passwd"}',
        "[" * 9999,
    ],
    ids=["twice", "null", "list", "path", "deep"],
)
def test_an_index_that_cannot_be_meant_is_refused(tmp_path, content):
    base = write_chunks(tmp_path, [make_clip("a")])
    (base / "train" / "index.json").write_text(content)
    with refused(base / "train" / "index.json"):
        preprocess(base, tmp_path / "out")

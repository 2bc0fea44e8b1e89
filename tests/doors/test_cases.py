"""Inputs that users and a breaker found mishandled, as they were kept: each is refused in one line or handled right.

Skipped unless LVSM_REFERENCE names the folder that holds `cases/`; the project does not contain them. What a case shows
is tested with inputs of this project's own, too, beside the code that reads them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import preprocess_data
import train
from data.scene import read_scene, read_scene_list
from data.transforms import read_image, read_pixels
from tests.helpers import ROOT, write_toy_scene
from tests.messages import check_names
from tests.processes import run
from utils.errors import InputError

REFERENCE = os.environ.get("LVSM_REFERENCE")
pytestmark = pytest.mark.skipif(not REFERENCE, reason="LVSM_REFERENCE names no folder with kept cases")
CASES = Path(REFERENCE or "nowhere") / "cases"
TINY = [
    "--config",
    str(ROOT / "configs" / "demo.yaml"),
    *(f"model.transformer.{size}" for size in ("d=16", "d_head=16", "n_layer=1")),
    "model.image_tokenizer.image_size=16",
    "model.target_pose_tokenizer.image_size=16",
    "training.view_selector.max_frame_dist=29",
    "training.num_workers=0",
    "training.batch_size_per_gpu=2",
    "training.warmup=1",
    "training.train_steps=6",
]


@pytest.fixture
def case(tmp_path):
    """A function that copies a case into the test's folder."""

    def copy(name):
        return Path(shutil.copytree(CASES / name, tmp_path / Path(name).name))

    return copy


@pytest.fixture
def rooms(tmp_path):
    """The list of two sound scenes, a and b, of 30 frames."""
    return write_scenes(tmp_path / "rooms", frames=30)


@pytest.fixture
def checkpoint(tmp_path, rooms):
    """A checkpoint of TINY."""
    train.main([*TINY, f"training.dataset_path={rooms}", f"training.checkpoint_dir={tmp_path / 'trained'}"])
    return tmp_path / "trained"


def write_scenes(root, frames):
    for seed, name in enumerate("ab"):
        write_toy_scene(root, name, frames, seed=seed)
    path = root / "full_list.txt"
    path.write_text("metadata/a.json\nmetadata/b.json\n")
    return path


def preprocess(base, out):
    paths = ["--base_path", str(base), "--output_dir", str(out), "--mode", "train", "--num_processes", "2"]
    preprocess_data.main(paths)


def preprocess_with_losses(base, out):
    """What was lost, by name."""
    refusal(preprocess, base, out)
    return json.loads((out / "train" / "lost.json").read_text())


def train_on(list_path, folder, *more):
    train.main([*TINY, f"training.dataset_path={list_path}", f"training.checkpoint_dir={folder}", *more])


def evaluate(list_path, index, checkpoint, out, *more):
    paths = [
        f"training.dataset_path={list_path}",
        f"inference.view_idx_file_path={index}",
        f"training.checkpoint_dir={checkpoint}",
        f"inference_out_dir={out}",
        "inference.render_video=false",
    ]
    inference.main([*TINY, *paths, *more])


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable()
    return message


def listed(out):
    return [path.stem for path in read_scene_list(out / "train" / "full_list.txt")]


def steps_of(folder):
    return [int(path.stem.split("_")[1]) for path in sorted(folder.glob("ckpt_*.pt"))]


# Chunks


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("break/01_expanded_tensor", ["good1", "good2", "good3"]),
        ("break/02_sparse_cameras", ["good1", "good2"]),
    ],
)
def test_an_odd_tensor_costs_its_clip_or_frame(case, tmp_path, name, good):
    lost = preprocess_with_losses(case(name), tmp_path / "out")
    assert any("bad" in clip for clip in lost)
    assert [scene for scene in listed(tmp_path / "out") if scene != "bad"] == good


def test_two_clips_of_one_key_are_named_and_never_mixed(case, tmp_path):
    base = case("break/03_duplicate_key")
    records = [torch.load(path)[0] for path in sorted((base / "train").glob("*.torch"))]
    firsts = [record["images"][0].numpy().tobytes() for record in records]
    for attempt in range(3):
        out = tmp_path / f"out{attempt}"
        message = refusal(preprocess, base, out)
        lost = out / "train" / "lost.json"
        check_names(message + (json.dumps(json.loads(lost.read_text())) if lost.exists() else ""), "clip same")
        for path in (out / "train" / "metadata").glob("[!.]*.json"):
            scene = read_scene(path)
            of_cameras = 0 if abs(scene.w2c[0, 0, 3]) < 50 else 1
            assert scene.image_paths[0].read_bytes() == firsts[of_cameras]


def test_no_program_is_started_for_a_frame(case, tmp_path, monkeypatch, capfd):
    base = case("break/04_postscript")
    (base / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{base}{os.pathsep}{os.environ['PATH']}")
    lost = preprocess_with_losses(base, tmp_path / "out")
    assert any("eps" in name for name in lost)
    assert "GHOSTSCRIPT" not in "".join(capfd.readouterr())


def test_mirrored_cameras_cost_their_clip(case, tmp_path):
    lost = preprocess_with_losses(case("mirrored_poses"), tmp_path / "out")
    assert list(lost) == ["clip mirror"]
    assert not list((tmp_path / "out" / "train" / "metadata").glob("*.json"))


def test_sixteen_bits_a_channel_are_read_right(case, tmp_path):
    base = case("sixteen_bit_gray")
    try:
        preprocess(base, tmp_path / "out")
    except InputError:  # refused frame by frame is right, too
        assert len(json.loads((tmp_path / "out" / "train" / "lost.json").read_text())) >= 14
        return
    (path,) = read_scene_list(tmp_path / "out" / "train" / "full_list.txt")
    for image in read_scene(path).image_paths:
        check_sixteen_bits(image)


def check_sixteen_bits(image):
    with Image.open(image) as original:
        expected = np.asarray(original).astype(float) / 257
    for pixels in (np.asarray(read_image(image, "frame")), read_pixels(image, "frame").numpy().transpose(1, 2, 0)):
        assert np.abs(pixels - expected[..., None]).max() <= 1


def test_a_field_that_nothing_reads_costs_nothing(case, tmp_path):
    preprocess(case("numpy_timestamps"), tmp_path / "out")
    assert listed(tmp_path / "out") == ["good"]


def test_a_frame_without_a_pose_keeps_its_place(case, tmp_path):
    lost = preprocess_with_losses(case("one_nan_pose"), tmp_path / "out")
    assert [name for name in lost if "frame 5" in name] == list(lost)
    scene = read_scene(tmp_path / "out" / "train" / "metadata" / "nanpose.json")
    assert [number for number, image in enumerate(scene.image_paths) if image is None] == [5]


# Scenes


@pytest.mark.parametrize("resize", ["exact", "fast"])
def test_training_reads_sixteen_bits_a_channel_or_says_not(case, tmp_path, resize):
    root = case("break/05_png16")
    try:
        train_on(root / "full_list.txt", tmp_path / "run", f"training.image_resize={resize}")
    except InputError as error:  # it is the only scene
        check_names(str(error), "png16")
        return
    check_sixteen_bits(root / "images" / "png16" / "00000.jpg")


@pytest.mark.parametrize(
    ("name", "bad"),
    [("break/06_deep_json", "deep"), ("break/07_huge_integer", "huge"), ("break/08_surrogate_path", "bad")],
)
def test_metadata_that_cannot_be_meant_costs_its_scene(case, tmp_path, name, bad):
    # Too many unusable samples would end the run, in a line as well.
    train_on(case(name) / "full_list.txt", tmp_path / "run", "training.max_unusable_share=1")
    assert bad in (tmp_path / "run" / "unusable.txt").read_text()
    assert steps_of(tmp_path / "run") == [6]


def test_a_set_with_paths_from_the_working_directory_loads(tmp_path, monkeypatch, caplog, rooms):
    subprocess.run([sys.executable, CASES / "make_published_layout.py", rooms.parent], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("WARNING"):
        train_on("preprocessed_data/rooms/full_list.txt", tmp_path / "run")
    assert steps_of(tmp_path / "run") == [6]
    assert not (tmp_path / "run" / "unusable.txt").exists()
    assert len([text for text in caplog.messages if "working directory" in text]) == 1


# Lists and indices


@pytest.mark.parametrize(
    ("list_name", "index"),
    [
        ("list_with_bom.txt", {"a": {"context": [1, 12], "target": [4]}}),
        ("list_with_comments.txt", {"a": {"context": [1, 12], "target": [4]}}),
        (None, "evaluation_index_with_bom.json"),
    ],
)
def test_text_files_of_other_editors_are_read(case, tmp_path, checkpoint, list_name, index):
    files, list_path = case("text_files"), write_scenes(tmp_path / "set", frames=14)
    if list_name:
        shutil.copy(files / list_name, list_path)
    index_path = tmp_path / "index.json"
    index_path.write_bytes((files / index).read_bytes() if isinstance(index, str) else json.dumps(index).encode())
    evaluate(list_path, index_path, checkpoint, tmp_path / "evaluated")
    assert list(json.loads((tmp_path / "evaluated" / "results.json").read_text())["scenes"]) == ["a"]


def test_an_index_beyond_a_clip_is_refused_or_costs_the_scene(case, tmp_path, checkpoint):
    index = case("text_files") / "evaluation_index_beyond_the_clip.json"
    given = (write_scenes(tmp_path / "set", frames=14), index, checkpoint, tmp_path / "evaluated")
    message = refusal(evaluate, *given)
    check_names(message, "a", 99)
    evaluate(*given, "inference.allow_missing=true")
    assert list(json.loads((tmp_path / "evaluated" / "results.json").read_text())["scenes"]) == ["b"]


def test_an_index_that_contradicts_itself_is_refused(case, tmp_path, checkpoint):
    root = case("break/12_index")
    message = refusal(evaluate, root / "full_list.txt", root / "index.json", checkpoint, tmp_path / "evaluated")
    check_names(message, "s1", "index.json")


# Checkpoints


@pytest.mark.parametrize(
    ("name", "culprits"),
    [
        ("lfs_pointer.pt", ["git lfs pull"]),
        ("login_page.pt", ["web page"]),
        ("namespace.pt", ["'argparse.Namespace'"]),
        # Sound files with tensors of no model of ours.
        ("numpy_scalar.pt", ["image_tokenizer.1.weight", "a"]),
        ("state_dict.pt", ["image_tokenizer.1.weight", "a"]),
    ],
)
def test_files_that_are_no_checkpoint_are_told_apart(case, tmp_path, rooms, name, culprits):
    path = case("checkpoints") / name
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"a": {"context": [1, 12], "target": [4]}}))
    message = refusal(evaluate, rooms, index, path, tmp_path / "evaluated")
    check_names(message, path, *culprits)
    assert "truncated" not in message


@pytest.mark.parametrize(("name", "said"), [("break/09_moments_of_wrong_shape", ""), ("break/10_step_is_text", "step")])
def test_a_broken_training_state_is_refused(case, rooms, name, said):
    folder = case(name)
    # In a process of its own: this was a segmentation fault.
    result = run("train.py", *TINY, f"training.dataset_path={rooms}", f"training.checkpoint_dir={folder}")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "ckpt_0000000000000002.pt" in result.stderr and said in result.stderr and last.isprintable()


def test_weights_of_lpips_are_not_executed(case, tmp_path, monkeypatch, checkpoint, rooms):
    canary = Path("/tmp/LVSM_CANARY")
    canary.unlink(missing_ok=True)
    monkeypatch.setenv("TORCH_HOME", str(case("break/11_lpips_pickle")))
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"a": {"context": [1, 12], "target": [4]}}))
    message = refusal(evaluate, rooms, index, checkpoint, tmp_path / "evaluated", "inference.metrics=[lpips]")
    check_names(message, "vgg16-397923af.pth")
    assert not canary.exists()


# Shared memory


def may_mount():
    if os.name != "posix" or os.geteuid() or not shutil.which("unshare"):
        return False
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    return subprocess.run(["unshare", "-m", "bash", "-c", mount], capture_output=True).returncode == 0


def test_small_shared_memory_does_not_stop_training(tmp_path, rooms):
    if not may_mount():
        pytest.skip("a private mount needs root")
    script, config = CASES / "small_shared_memory.sh", CASES / "tiny.yaml"
    result = subprocess.run(
        ["bash", script, sys.executable, ROOT, config, rooms, tmp_path / "run"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert "Traceback" not in result.stderr, result.stderr
    if result.returncode == 1:
        assert "shm" in result.stderr.strip().splitlines()[-1]
        return
    # The script ends it after 90 seconds, a busy machine's step not sooner than it can: what counts is that by then it
    # is beyond the step where it stopped for ever.
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) > 8, result.stderr

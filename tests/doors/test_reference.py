"""Agreement with tensors that the reference implementation computed, and the main job on a real capture.

Skipped unless LVSM_REFERENCE names the folder that holds `parity/` and `real/`; the project does not contain them.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

import inference
import preprocess_data
from data.dataset import DataConfig, EvaluationDataset, ViewLoader
from data.evaluation_index import INDEX_SHA256, read_evaluation_index
from data.importers.__main__ import main as import_capture
from data.importers.colmap_model import read_model
from data.scene import read_scene, read_scene_list
from data.transforms import plan_crop, read_image, to_planes
from evaluation.metrics import psnr, ssim
from geometry.camera_check import camera_faults
from geometry.cameras import Cameras, Views, plucker
from geometry.normalization import pose_normalization
from geometry.paths import interpolate_path
from geometry.relative import token_cameras
from model import ModelConfig, build_model
from model.loss import Loss, LossConfig
from model.lvsm import TokenizerConfig
from model.perceptual import PerceptualLoss
from model.prope import prope
from model.transformer import TransformerConfig
from model.weights import load_published
from tests.helpers import CONVOLUTIONS, PUBLISHED, ROOT, class_name
from tests.messages import check_told
from tests.processes import run

REFERENCE = os.environ.get("LVSM_REFERENCE")
pytestmark = pytest.mark.skipif(not REFERENCE, reason="LVSM_REFERENCE names no folder with reference tensors")
FOLDER = Path(REFERENCE or "nowhere")
COMPONENTS = FOLDER / "parity" / "components"
END_TO_END = FOLDER / "parity" / "end_to_end"
CAPTURE = FOLDER / "real" / "mydesk_re10k_format"
SCENE = "00000000de5c01f4"


def tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


@pytest.fixture(scope="module", params=PUBLISHED)
def parts(request):
    """The reference's record, its tensors, and our model with its weights."""
    record = json.loads((COMPONENTS / f"{request.param}.json").read_text())
    sizes = record["model"]
    cfg = ModelConfig(
        class_name(request.param),
        TokenizerConfig(**sizes["image_tokenizer"]),
        TokenizerConfig(**sizes["target_pose_tokenizer"]),
        TransformerConfig(**sizes["transformer"]),
    )
    model = build_model(cfg).eval()
    load_published(model, tensors(COMPONENTS / f"{request.param}.weights.safetensors"), request.param)
    return record, tensors(COMPONENTS / f"{request.param}.tensors.safetensors"), model


@pytest.mark.parametrize(
    ("variant", "camera_encoding", "name"),
    [
        ("prefix", "none", "render_prefix"),
        ("prefix", "prope", "render_prefix_prope"),
        ("decoder_only", "prope", "render_full_prope"),
    ],
)
def test_renders_of_other_functions_of_the_same_weights(variant, camera_encoding, name):
    record = json.loads((COMPONENTS / "decoder_only.json").read_text())
    sizes = record["model"]
    cfg = ModelConfig(
        variant,
        TokenizerConfig(**sizes["image_tokenizer"]),
        TokenizerConfig(**sizes["target_pose_tokenizer"]),
        TransformerConfig(**sizes["transformer"], camera_encoding=camera_encoding),
    )
    model = build_model(cfg).eval()
    load_published(model, tensors(COMPONENTS / "decoder_only.weights.safetensors"), "decoder_only")
    found = render((record, tensors(COMPONENTS / "decoder_only.tensors.safetensors"), model))
    expected = tensors(COMPONENTS / "variants.safetensors")[name]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_attention_with_cameras():
    """Queries, keys and values turned by PRoPE: self-attention, cross-attention, and targets over inputs and own."""
    folder = FOLDER / "parity" / "prope"
    t = tensors(folder / "prope.safetensors")
    sizes = json.loads((folder / "prope.json").read_text())
    turned = {name: prope_heads(t, name, sizes) for name in ("input", "target")}
    results = {
        "self_attention": ("input", attended(turned["input"], turned["input"])),
        "cross_attention": ("target", attended(turned["target"], turned["input"])),
    }
    n = t["q_targets"].shape[2] // sizes["target_views"]
    inputs, own = turned["input"], turned["target"]
    each = []
    for start in range(0, sizes["target_views"] * n, n):
        some = slice(start, start + n)
        keys = {part: torch.cat([inputs[part], own[part][:, some]], 1) for part in ("k", "v")}
        each.append(attended({"q": own["q"][:, some]}, keys))
    results["prefix_attention"] = ("target", torch.cat(each, 1))
    for name, (place, result) in results.items():
        back = turned[place]["turn"].results(result, None).transpose(1, 2)
        torch.testing.assert_close(back, t[name], atol=1e-5, rtol=0)


def prope_heads(t, name, sizes):
    """The heads [b n h c] of some views, turned by their cameras."""
    c2w = torch.linalg.inv(t[f"{name}_w2c"].double()).float()
    cameras = Cameras(c2w, t[f"{name}_fxfycxcy"], sizes["image_height"], sizes["image_width"])
    turn = prope(token_cameras([cameras], sizes["patch_size"], sizes["head_dim"]))
    q, k, v = (t[f"{part}_{name}s"].transpose(1, 2) for part in "qkv")
    return {"turn": turn, "q": turn.queries(q, None, None), "k": turn.keys(k, None), "v": turn.values(v)}


def attended(of, over):
    q, k, v = (heads.transpose(1, 2) for heads in (of["q"], over["k"], over["v"]))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def views_of(t):
    return Views(t["image"], Cameras(t["c2w"], t["fxfycxcy"], *t["image"].shape[-2:]))


def test_plucker_coordinates(parts):
    _, t, _ = parts
    torch.testing.assert_close(plucker(views_of(t).cameras), t["plucker"], atol=1e-5, rtol=0)


def render(parts):
    record, t, model = parts
    views = views_of(t)
    with torch.no_grad():
        return model(views[:, : record["num_input_views"]], views.cameras[:, -record["num_target_views"] :])


def test_renders(parts):
    torch.testing.assert_close(render(parts), parts[1]["render"], atol=1e-5, rtol=0)


def vgg19_by_formula():
    weights = {}
    for j, (index, (out, into)) in enumerate(CONVOLUTIONS.items()):
        k = torch.arange(out * into * 9, dtype=torch.float64)
        kernel = torch.sin(0.7 * k + j) * (2 / (into * 9)) ** 0.5
        weights[f"{index}.weight"] = kernel.reshape(out, into, 3, 3).float()
        weights[f"{index}.bias"] = (0.1 * torch.cos(torch.arange(out, dtype=torch.float64) + j)).float()
    return weights


def test_losses(parts):
    record, t, _ = parts
    with torch.no_grad():
        terms = Loss(LossConfig(), {"perceptual": PerceptualLoss(vgg19_by_formula())})(
            render(parts), t["image"][:, -record["num_target_views"] :]
        )
    for name, expected in record["losses"].items():
        assert terms[name].item() == pytest.approx(expected, rel=1e-4), name


def frozen_rotations(c2w, num_frames):
    """The rotations of the reference's video, which is not the path it means to be.

    Its slerp accumulates in place: all poses of a leg but the last share one rotation, the one that results from
    going t = 0, 1/(n-1), ... of the way that is left, one after the other. Ours moves evenly.
    """
    rotations = Rotation.from_matrix(c2w[:, :3, :3].double().numpy())
    steps = np.arange(num_frames - 1) / (num_frames - 1)
    shared = 1 - np.prod(1 - steps)
    legs = [Slerp([0, 1], rotations[[a, b]])([shared] * (num_frames - 1) + [1]) for a, b in ((0, 1), (1, 0))]
    return torch.from_numpy(np.concatenate([leg.as_matrix() for leg in legs])).float()


def test_video(parts):
    record, t, model = parts
    views = views_of(t)
    inputs = views[:, : record["num_input_views"]]
    for scene in range(2):
        path = interpolate_path(inputs.cameras[scene], 5, loop=True)
        reference = t["video_c2w"][scene]
        torch.testing.assert_close(path.c2w[:, :3, 3], reference[:, :, 3], atol=1e-5, rtol=0)
        rotations = frozen_rotations(inputs.cameras.c2w[scene], 5)
        torch.testing.assert_close(rotations, reference[:, :, :3], atol=1e-5, rtol=0)
        # The same cameras give the same frames.
        path.c2w[:, :3] = reference
        with torch.no_grad():
            frames = model.decode(model.encode(inputs[scene : scene + 1]), path[None], max_views=4)[0]
        torch.testing.assert_close(frames, t["video"][scene], atol=1e-5, rtol=0)


@pytest.mark.parametrize("square", [True, False])
def test_resizing_and_cropping(square):
    t, scene = tensors(COMPONENTS / "dataset.safetensors"), read_scene(COMPONENTS / "scene.json")
    kind = "square" if square else "full"
    for frame in range(len(scene)):
        image = read_image(scene.image_path(frame), "golden")
        crop = plan_crop(*image.size, 64, 8, square)
        torch.testing.assert_close(torch.from_numpy(to_planes(crop.image(image))) / 255, t[f"image_{kind}"][frame])
        fxfycxcy = crop.intrinsics(scene.fxfycxcy[frame])
        torch.testing.assert_close(torch.from_numpy(fxfycxcy).float(), t[f"fxfycxcy_{kind}"][frame])


def test_pose_normalisation():
    t, scene = tensors(COMPONENTS / "dataset.safetensors"), read_scene(COMPONENTS / "scene.json")
    c2w = np.linalg.inv(scene.w2c)
    torch.testing.assert_close(torch.from_numpy(c2w).float(), t["c2w"], atol=1e-5, rtol=0)
    normalized = torch.from_numpy(pose_normalization(c2w, 1.35)(c2w)).float()
    torch.testing.assert_close(normalized, t["c2w_normalized"], atol=1e-5, rtol=0)


def test_metrics():
    t = tensors(COMPONENTS / "metrics.safetensors")
    torch.testing.assert_close(psnr(t["prediction"], t["target"]), t["psnr"], atol=1e-5, rtol=0)
    torch.testing.assert_close(ssim(t["prediction"], t["target"]), t["ssim"], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The real capture, preprocessed."""
    out = tmp_path_factory.mktemp("scenes")
    for mode in ("train", "test"):
        preprocess_data.main(["--base_path", str(CAPTURE), "--output_dir", str(out), "--mode", mode])
    return out


def evaluation_command(variant, scenes, out):
    """The published evaluation command, apart from its paths, at the reference's size and precision."""
    record = json.loads((END_TO_END / f"{variant}.json").read_text())
    spaced = f"""
        training.dataset_path = {scenes}/test/full_list.txt
        training.batch_size_per_gpu = 4
        training.target_has_input =  false
        training.num_views = 5
        training.square_crop = true
        training.num_input_views = 2
        training.num_target_views = 3
        training.use_amp = false
        training.num_workers = 0
        training.checkpoint_dir = {END_TO_END}/{variant}.ckpt_0000000000000001.pt
        inference.if_inference = true
        inference.compute_metrics = true
        inference.render_video = false
        inference.view_idx_file_path = {END_TO_END}/{variant}.index.json
        inference_out_dir = {out}
    """.split()
    config = ROOT / "configs" / f"LVSM_scene_{variant}.yaml"
    return record, ["--config", str(config), *record["overrides"], *spaced, "inference.metrics=[psnr, ssim]"]


def check_scores(record, out):
    metrics = json.loads((out / SCENE / "metrics.json").read_text())
    np.testing.assert_allclose([view["psnr"] for view in metrics["per_view"]], record["psnr"], atol=1e-3)
    np.testing.assert_allclose([view["ssim"] for view in metrics["per_view"]], record["ssim"], atol=1e-4)
    averages = json.loads((out / "results.json").read_text())["averages"]
    assert averages["psnr"] == pytest.approx(record["mean_psnr"], abs=1e-3)
    assert averages["ssim"] == pytest.approx(record["mean_ssim"], abs=1e-4)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_evaluation_end_to_end(variant, scenes, tmp_path):
    record, command = evaluation_command(variant, scenes, tmp_path)
    inference.main(command)
    check_scores(record, tmp_path)
    expected = tensors(END_TO_END / f"{variant}.expected.safetensors")
    picture = np.asarray(Image.open(tmp_path / SCENE / "gt_vs_pred.png")).astype(float) / 255
    truth, prediction = np.split(picture, 2)
    for row, name in ((truth, "target"), (prediction, "render")):
        strip = np.concatenate(list(expected[name].permute(0, 2, 3, 1).numpy()), axis=1)
        assert np.abs(row - strip).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("variant", PUBLISHED)
def test_evaluation_end_to_end_with_two_processes(variant, scenes, tmp_path):
    record, command = evaluation_command(variant, scenes, tmp_path)
    result = run("inference.py", *command, processes=2)
    assert result.returncode == 0, result.stderr
    check_scores(record, tmp_path)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_sample_and_render_end_to_end(variant, scenes):
    """The same, below the metrics: cameras, pixels and renders."""
    expected = tensors(END_TO_END / f"{variant}.expected.safetensors")
    _, command = evaluation_command(variant, scenes, "unused")
    config, _ = inference.load_config(command)
    (selection,) = read_evaluation_index(END_TO_END / f"{variant}.index.json").values()
    items = [(read_scene_list(scenes / "test" / "full_list.txt")[0], selection)]
    sample = EvaluationDataset(ViewLoader(DataConfig(), 64, 8), items)[0].views
    torch.testing.assert_close(sample.images[:2] / 255, expected["input"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sample.images[2:] / 255, expected["target"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sample.cameras.c2w[:2], expected["input_c2w"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sample.cameras.c2w[2:], expected["target_c2w"], atol=1e-5, rtol=0)
    torch.testing.assert_close(sample.cameras.fxfycxcy[2:], expected["target_fxfycxcy"], atol=1e-4, rtol=0)
    model = build_model(config.model).eval()
    checkpoint = torch.load(END_TO_END / f"{variant}.ckpt_0000000000000001.pt", weights_only=True)
    load_published(model, checkpoint["model"], variant)
    views = sample.to_float()
    with torch.no_grad():
        renders = model(views[None, :2], views.cameras[None, 2:])[0]
    torch.testing.assert_close(renders, expected["render"], atol=1e-4, rtol=0)


def test_the_published_evaluation_index():
    import hashlib

    path = FOLDER / "re10k" / "evaluation_index_re10k.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == INDEX_SHA256
    index = read_evaluation_index(path)
    assert len(index) == 6474
    assert sum(len(selection.target) for selection in index.values()) == 19422
    assert sum(frame in s.context for s in index.values() for frame in s.target) == 583


# Every real set passes the check of cameras


def colmap_cameras(model):
    """Intrinsics, poses and sizes of a COLMAP text model with SIMPLE_RADIAL cameras; distortion is left out."""
    lines = {name: (model / f"{name}.txt").read_text().splitlines() for name in ("cameras", "images")}
    rows = {name: [line.split() for line in text if not line.startswith("#")] for name, text in lines.items()}
    lenses = {row[0]: [float(value) for value in row[2:7]] for row in rows["cameras"]}
    fxfycxcy, poses, sizes = [], [], []
    # Every second line lists the points seen in an image.
    for row in rows["images"][::2]:
        width, height, focal, cx, cy = lenses[row[8]]
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat(np.array(row[1:5], float), scalar_first=True).as_matrix()
        pose[:3, 3] = np.array(row[5:8], float)
        fxfycxcy.append([focal, focal, cx, cy])
        poses.append(pose)
        sizes.append([width, height])
    return np.array(fxfycxcy), np.array(poses), np.array(sizes)


def listed_cameras(path):
    """Intrinsics, poses and sizes of a list of OpenCV cameras in pixels."""
    cameras = json.loads(path.read_text())
    fxfycxcy = [[camera[name] for name in ("fx", "fy", "cx", "cy")] for camera in cameras]
    sizes = [[float(camera["w"]), float(camera["h"])] for camera in cameras]
    return np.array(fxfycxcy), np.array([camera["w2c"] for camera in cameras]), np.array(sizes)


def test_cameras_of_photographs_and_of_renders_pass_the_check():
    photographs = colmap_cameras(FOLDER / "photos" / "lund_door" / "sparse" / "0")
    renders = listed_cameras(FOLDER / "objects" / "gso_character" / "opencv_cameras.json")
    assert (len(photographs[0]), len(renders[0])) == (12, 64)
    for cameras in (photographs, renders):
        assert camera_faults(*cameras) == {}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_whole_capture_is_preprocessed_without_a_loss(tmp_path, split):
    arguments = ["--base_path", CAPTURE, "--output_dir", tmp_path, "--mode", split, "--num_processes", 1]
    preprocess_data.main([str(argument) for argument in arguments])
    scenes = [read_scene(path) for path in read_scene_list(tmp_path / split / "full_list.txt")]
    assert len(scenes) == {"train": 8, "test": 1}[split]
    assert not any(scene.faults for scene in scenes)


def test_a_colmap_model_of_real_photographs(tmp_path, capsys):
    """Its poses to the last digit, and its points where COLMAP saw them, but for its own error."""
    source = FOLDER / "photos" / "lund_door"
    if not source.is_dir():
        pytest.skip("no photographs")
    import_capture([str(source), "--output_dir", str(tmp_path)])
    check_told(capsys.readouterr().out.splitlines(), "lund_door", "good")
    scene = read_scene(tmp_path / "metadata" / "lund_door.json")
    model = source / "sparse" / "0"
    lines = [line for line in (model / "images.txt").read_text().splitlines() if not line.startswith("#")]
    heads = sorted((line.split() for line in lines[::2]), key=lambda fields: fields[9])
    assert len(scene) == len(heads) == 12
    for w2c, fields in zip(scene.w2c, heads, strict=True):
        w, x, y, z, *translation = map(float, fields[1:8])
        np.testing.assert_allclose(w2c[:3, :3], Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-6)
        np.testing.assert_allclose(w2c[:3, 3], translation, atol=1e-6)
    with Image.open(scene.image_path(0)) as image:
        assert image.size == (1296, 1936)
    error = [reprojection_errors(scene, n, fields[0], model) for n, fields in enumerate(heads)]
    assert np.median(np.concatenate(error)) < 1.0


def test_renders_of_a_real_object(tmp_path, capsys):
    """Their files byte for byte, their cameras to the last digit; before white they are as the file says."""
    source = FOLDER / "objects" / "gso_character"
    if not source.is_dir():
        pytest.skip("no object")
    import_capture([str(source), "--output_dir", str(tmp_path)])
    told = capsys.readouterr().out.splitlines()
    check_told(told, "64 images", "transparent")
    check_told(told, "gso_character", "good")
    scene = read_scene(tmp_path / "metadata" / "gso_character.json")
    fxfycxcy, w2c, sizes = listed_cameras(source / "opencv_cameras.json")
    np.testing.assert_array_equal(scene.w2c, w2c)
    np.testing.assert_array_equal(scene.fxfycxcy, fxfycxcy)
    names = sorted(path.name for path in (source / "renderings").iterdir())
    for number, name in enumerate(names):
        assert scene.image_path(number).read_bytes() == (source / "renderings" / name).read_bytes()
    with Image.open(scene.image_path(20)) as image:
        assert (image.mode, image.size) == ("RGBA", tuple(sizes[20]))
        rgba = np.asarray(image, dtype=float)
    seen = np.asarray(read_image(scene.image_path(20), "frame 20"), dtype=float)
    alpha = rgba[..., 3:] / 255
    assert np.abs(seen - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.51
    assert 0.1 < alpha.mean() < 0.6


def reprojection_errors(scene, frame, number, model):
    """Pixels between a model's points in a scene's frame and where COLMAP found them, its distortion undone."""
    lines = [line for line in (model / "images.txt").read_text().splitlines() if not line.startswith("#")]
    found = next(points for head, points in zip(lines[::2], lines[1::2], strict=True) if head.split()[0] == number)
    seen = np.array(found.split(), dtype=float).reshape(-1, 3)
    rows = [line.split()[:4] for line in (model / "points3D.txt").read_text().splitlines() if line[0] != "#"]
    points = {float(row[0]): np.array(row[1:], dtype=float) for row in rows}
    seen = seen[[point in points for point in seen[:, 2]]]
    world = np.array([[*points[point], 1.0] for point in seen[:, 2]])
    camera = (scene.w2c[frame] @ world.T).T
    fx, fy, cx, cy = scene.fxfycxcy[frame]
    projected = camera[:, :2] / camera[:, 2:3] * [fx, fy] + [cx, cy]
    focal, centre, k1 = 2435.38, np.array([648.0, 968.0]), -0.0336422
    distorted = (seen[:, :2] - centre) / focal
    rays = distorted
    for _ in range(10):
        rays = distorted / (1 + k1 * (rays**2).sum(1, keepdims=True))
    return np.linalg.norm(projected - (rays * [fx, fy] + [cx, cy]), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "degrees", "place"), [((4, 6, 8), 0.5, 0.02), ((5, 7), 1.5, None)], ids=["three", "two"]
)
def test_cameras_of_real_photographs_alone(tmp_path, numbers, degrees, place):
    """Relative rotations, and positions after scaling; of two photographs the baseline's direction, within 5°."""
    pytest.importorskip("pycolmap")
    source = FOLDER / "photos" / "lund_door"
    if not source.is_dir():
        pytest.skip("no photographs")
    (tmp_path / "in").mkdir()
    names = [f"DSC_{number:04d}.JPG" for number in numbers]
    for name in names:
        shutil.copy(source / "images" / name, tmp_path / "in")
    import_capture([str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--no_check"])
    found = read_scene(tmp_path / "out" / "metadata" / "in.json").w2c
    poses = {image.name: image.w2c for image in read_model(source / "sparse" / "0").images}
    true = np.stack([poses[name] for name in names])
    turns = [w2c[:, :3, :3] @ w2c[0, :3, :3].T for w2c in (found, true)]
    apart = Rotation.from_matrix(turns[0] @ turns[1].swapaxes(1, 2)).magnitude()
    assert np.degrees(apart).max() < degrees
    ours, theirs = (np.linalg.inv(w2c @ np.linalg.inv(w2c[0]))[:, :3, 3] for w2c in (found, true))
    if place is None:
        cosine = ours[1] @ theirs[1] / np.linalg.norm(ours[1]) / np.linalg.norm(theirs[1])
        assert np.degrees(np.arccos(cosine)) < 5
        return
    ours = ours * (np.sum(ours * theirs) / np.sum(ours**2))
    extent = np.linalg.norm(theirs.max(0) - theirs.min(0))
    assert np.linalg.norm(ours - theirs, axis=1).max() < place * extent

"""Bad input on the command lines: one line that names the culprit, and nothing half written."""

import csv
import functools
import hashlib
import json
import re
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

import inference
import preprocess_data
import train
from model import build_model, perceptual
from model.weights import published_state
from setup import load_config
from tests.helpers import ROOT, small_overrides, write_toy_set
from tests.messages import check_error_line, check_names, refusal
from tests.processes import run, run_fresh
from utils import download
from utils.checkpoint import checkpoint_name, write_checkpoint
from utils.lpips_network import VGG16_URL

SELECTION = {"context": [0, 9], "target": [6, 5]}
CHECKPOINT = checkpoint_name(1)
WEIGHTS = f"{{root}}/decoder_only/{CHECKPOINT}"
SAFETENSORS = "{root}/decoder_only/x.safetensors"
NORM = "transformer_blocks.1.norm2.weight"
RESET = "training.reset_training_state=true"
# Where the weights of the loss's and the metrics' networks are looked for.
VGG19_FILE = "{root}/torch/hub/checkpoints/imagenet-vgg-verydeep-19.mat"
VGG16_FILE = "{root}/torch/hub/checkpoints/vgg16-397923af.pth"
FINISHED = {"summary.csv", "results.json", "index.html", "full_list.txt"}


@pytest.fixture(autouse=True)
def a_process_without_a_network(tmp_path, monkeypatch):
    """No weights at hand and none to be had; what `main` sets for the whole process is put back."""

    def no_network(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr(download, "urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A toy set, an index of two of its scenes, and weights of either model."""
    folder = tmp_path_factory.mktemp("pristine")
    write_toy_set(folder / "set")
    write_index(folder, scene0=SELECTION, scene1=SELECTION)
    for variant in ("decoder_only", "encoder_decoder"):
        config, _ = load_config(base_arguments(variant))
        write_checkpoint(folder / variant, 1, {"model": published_state(build_model(config.model))})
    return folder


@pytest.fixture
def root(tmp_path, pristine):
    """A copy of `pristine` to damage."""
    return Path(shutil.copytree(pristine, tmp_path, dirs_exist_ok=True))


def write_index(root, **selections):
    (root / "index.json").write_text(json.dumps(selections))


def base_arguments(variant="decoder_only"):
    return ["--config", str(ROOT / "configs" / f"LVSM_scene_{variant}.yaml"), *small_overrides(variant)]


def training_arguments(root, *more):
    paths = [f"training.dataset_path={root}/set/full_list.txt", f"training.checkpoint_dir={root}/run"]
    return [*base_arguments(), *paths, *(text.format(root=root) for text in more)]


def evaluation_arguments(root, *more):
    paths = [
        f"training.dataset_path={root}/set/full_list.txt",
        f"training.checkpoint_dir={root}/decoder_only",
        f"inference.view_idx_file_path={root}/index.json",
        f"inference_out_dir={root}/out",
        "inference.metrics=[psnr]",
    ]
    return [*base_arguments(), *paths, *(text.format(root=root) for text in more)]


def check_refused(root, main, arguments, *culprits):
    """One line that names all culprits, in which {root} stands for the test's folder; returns it."""
    said = refusal(main, arguments)
    check_names(said, *(culprit.format(root=root) for culprit in culprits))
    return said


def check_nothing_half_written(*folders):
    """Neither temporary files, nor what only a finished run writes."""
    written = [path for folder in folders for path in folder.rglob("*")]
    assert not [path for path in written if path.name.startswith(".") or ".tmp" in path.name or path.name in FINISHED]
    assert not [path for path in written if path.suffix == ".pt"]


# Ways to damage what `root` holds


def images(root, scene="*"):
    found = sorted((root / "set" / "images").glob(f"{scene}/*.jpg"))
    assert found
    return found


def remove_list(root):
    (root / "set" / "full_list.txt").unlink()


def empty_list(root):
    (root / "set" / "full_list.txt").write_text("\n")


def remove_metadata(root):
    (root / "set" / "metadata" / "scene1.json").unlink()


def cut_metadata(root):
    path = root / "set" / "metadata" / "scene1.json"
    path.write_bytes(path.read_bytes()[:300])


def remove_images(root):
    for path in images(root):
        path.unlink()


def cut_images(root):
    for path in images(root):
        path.write_bytes(path.read_bytes()[:-20])


def inflate_images(root):
    """The headers claim 65000 x 65000 pixels."""
    for path in images(root):
        data = bytearray(path.read_bytes())
        size = data.find(b"\xff\xc0") + 5
        data[size : size + 4] = struct.pack(">HH", 65000, 65000)
        path.write_bytes(data)


def shorten_clips(root):
    for path in (root / "set" / "metadata").iterdir():
        record = json.loads(path.read_text())
        record["frames"] = record["frames"][:5]
        path.write_text(json.dumps(record))


def lose_a_frame(root):
    for path in (root / "set" / "metadata").iterdir():
        record = json.loads(path.read_text())
        record["frames"][6]["image_path"] = None
        path.write_text(json.dumps(record))


def rename_scene(name):
    def damage(root):
        path = root / "set" / "metadata" / "scene0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scene_name": name}))

    return damage


def weights(root):
    return root / "decoder_only" / checkpoint_name(1)


def cut_weights(root):
    weights(root).write_bytes(weights(root).read_bytes()[:-5000])


def scramble_weights(root):
    """A sound archive whose pickle refers to what it never stored, as after a flipped bit."""
    with zipfile.ZipFile(weights(root)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(weights(root), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, b"h\x05." if name.endswith("data.pkl") else content)


def spoil_weights(root):
    """Weights of a training that diverged."""
    state = {name: torch.full_like(value, torch.nan) for name, value in torch.load(weights(root))["model"].items()}
    torch.save({"model": state}, weights(root))


def remove_weights(root):
    weights(root).unlink()


def as_safetensors(
    root, function='{"variant": "decoder_only", "camera_encoding": "none", "rays": "plucker"}', **changes
):
    """Put a safetensors file in the place of the weights, with tensors changed (or left out, for None)."""
    state = torch.load(weights(root))["model"] | changes
    tensors = {name: value for name, value in state.items() if value is not None}
    weights(root).unlink()
    save_file(tensors, root / "decoder_only" / "x.safetensors", metadata={"function": function})


def cut_safetensors(root):
    as_safetensors(root)
    path = root / "decoder_only" / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def safetensors_with(**changes):
    return functools.partial(as_safetensors, **changes)


def add_training_state(optimizer):
    def damage(root):
        torch.save(torch.load(weights(root)) | {"optimizer": optimizer, "step": 1, "samples": 2}, weights(root))

    return damage


def name_missing_frame(root):
    write_index(root, scene0=SELECTION, scene1=SELECTION | {"target": [6, 14]})


def name_missing_scenes(root):
    write_index(root, scene0=SELECTION, ghost=SELECTION, spectre=SELECTION)


def name_only_missing_scenes(root):
    write_index(root, ghost=SELECTION)


def remove_index(root):
    (root / "index.json").unlink()


def cut_index(root):
    (root / "index.json").write_text('{"scene0": {"con')


def store_bad_vgg(name, content):
    def damage(root):
        path = root / "torch" / "hub" / "checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

    return damage


# Configuration and arguments, the same for both scripts


@pytest.mark.parametrize(
    ("main", "arguments"), [(train.main, training_arguments), (inference.main, evaluation_arguments)]
)
@pytest.mark.parametrize(
    ("override", "culprits"),
    [
        ("training.batch_size_per_gp=2", ["training.batch_size_per_gp", "training.batch_size_per_gpu"]),
        ("training.batch_size_per_gpu=two", ["training.batch_size_per_gpu", "'two'"]),
        ("training.num_views=8.5", ["training.num_views", "'8.5'"]),
        ("model.transformer.d=65", ["model.transformer.d", "65", "d_head", "32"]),
        ("training.lr", ["'training.lr'", "key=value"]),
    ],
)
def test_a_bad_argument_is_named(root, main, arguments, override, culprits):
    check_refused(root, main, arguments(root, override), *culprits)
    check_nothing_half_written(root / "run", root / "out")


@pytest.mark.parametrize("main", [train.main, inference.main])
@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "not found"), ("training: {lr: [1", "not YAML"), ("- 1", "not a configuration")],
    ids=["missing", "broken", "list"],
)
def test_a_bad_configuration_file_is_named(tmp_path, main, content, fault):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    check_names(refusal(main, ["--config", str(path)]), path, fault)


# Training


@pytest.mark.parametrize(
    ("damage", "culprits"),
    [
        (remove_list, ["{root}/set/full_list.txt", "training.dataset_path"]),
        (empty_list, ["{root}/set/full_list.txt", "empty"]),
        (remove_images, ["image not found", "{root}/set/"]),
        (cut_images, ["image cannot be decoded", "{root}/set/"]),
        (shorten_clips, ["{root}/set/full_list.txt", "9 usable frames", "training.num_views=8"]),
        (inflate_images, ["image cannot be decoded", "{root}/set/"]),
    ],
)
def test_training_names_bad_data(root, damage, culprits):
    damage(root)
    said = check_refused(root, train.main, training_arguments(root), *culprits)
    if "{root}/set/" in culprits:
        check_names(said, re.compile(r"scene scene\d, frame \d"))
    check_nothing_half_written(root / "run")


@pytest.mark.parametrize(("damage", "fault"), [(remove_metadata, "not found"), (cut_metadata, "cannot be read")])
def test_training_goes_round_a_scene_without_metadata_and_names_it(root, damage, fault):
    damage(root)
    train.main(training_arguments(root))
    named = (root / "run" / "unusable.txt").read_text().splitlines()
    assert named
    for line in named:
        check_names(line, fault, root / "set" / "metadata" / "scene1.json")


def test_training_goes_round_frames_that_were_lost(root):
    lose_a_frame(root)
    train.main(training_arguments(root))
    assert (root / "run" / checkpoint_name(2)).exists()


@pytest.mark.parametrize(
    ("damage", "overrides", "culprits"),
    [
        pytest.param(
            None,
            ["training.resume_ckpt={root}/encoder_decoder", RESET],
            [f"{{root}}/encoder_decoder/{CHECKPOINT}", "encoder_decoder variant"],
            id="other model",
        ),
        pytest.param(
            None,
            ["training.checkpoint_dir={root}/encoder_decoder"],
            [f"{{root}}/encoder_decoder/{CHECKPOINT}", "training.checkpoint_dir", "run folder"],
            id="run folder of another model",
        ),
        pytest.param(
            cut_weights,
            ["training.resume_ckpt={root}/decoder_only", RESET],
            [f"{{root}}/decoder_only/{CHECKPOINT}", "cannot be read"],
            id="truncated",
        ),
        pytest.param(
            None,
            ["training.resume_ckpt={root}/decoder_only"],
            [f"{{root}}/decoder_only/{CHECKPOINT}", "weights alone", RESET],
            id="weights alone",
        ),
        pytest.param(
            as_safetensors,
            ["training.resume_ckpt={root}/decoder_only"],
            [SAFETENSORS, "weights alone", RESET],
            id="safetensors",
        ),
        pytest.param(
            cut_safetensors,
            ["training.resume_ckpt={root}/decoder_only", RESET],
            [SAFETENSORS, "safetensors"],
            id="truncated safetensors",
        ),
        pytest.param(
            None, ["training.resume_ckpt={root}/nothing"], ["{root}/nothing", "training.resume_ckpt"], id="wrong path"
        ),
        pytest.param(
            remove_weights,
            ["training.resume_ckpt={root}/decoder_only"],
            ["{root}/decoder_only", "training.resume_ckpt", "*.safetensors"],
            id="empty folder",
        ),
        pytest.param(
            add_training_state({"state": {}, "param_groups": []}),
            ["training.resume_ckpt={root}/decoder_only"],
            [f"{{root}}/decoder_only/{CHECKPOINT}", "optimiser state", "training.resume_ckpt", RESET],
            id="optimizer of another model",
        ),
    ],
)
def test_training_names_a_bad_checkpoint(root, damage, overrides, culprits):
    if damage:
        damage(root)
    check_refused(root, train.main, training_arguments(root, *overrides), *culprits)
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("damage", "overrides", "culprits"),
    [
        pytest.param(
            None,
            ["training.perceptual_loss_weight=0.5"],
            [perceptual.VGG19_URL, VGG19_FILE, "training.perceptual_loss_weight=0"],
            id="no VGG-19",
        ),
        pytest.param(
            None,
            ["training.perceptual_loss_weight=0.5", "training.vgg19_path={root}/mine.mat"],
            [perceptual.VGG19_URL, "{root}/mine.mat", "training.perceptual_loss_weight=0"],
            id="no VGG-19 of one's own",
        ),
        pytest.param(
            store_bad_vgg("imagenet-vgg-verydeep-19.mat", b"half"),
            ["training.perceptual_loss_weight=0.5"],
            [VGG19_FILE, "MD5"],
            id="half of VGG-19",
        ),
        pytest.param(
            None,
            ["training.lpips_loss_weight=0.1"],
            [VGG16_URL, VGG16_FILE, "inference.metrics", "training.lpips_loss_weight=0"],
            id="no LPIPS",
        ),
    ],
)
def test_training_says_where_network_weights_go(root, damage, overrides, culprits):
    if damage:
        damage(root)
    check_refused(root, train.main, training_arguments(root, *overrides), *culprits)
    check_nothing_half_written(root / "run", root / "torch")


@pytest.mark.parametrize(
    ("override", "culprits"),
    [
        ("training.lr=nan", ["training.lr", "nan"]),
        ("training.train_steps=0", ["training.train_steps", "0", "at least 1"]),
        ("training.scheduler_type=cosin", ["training.scheduler_type", "'cosin'", "cosine"]),
        ("training.num_target_views=9", ["training.num_target_views", "9", "num_views (8)", "num_views=9"]),
        ("training.view_selector.max_frame_dist=3", ["training.view_selector", "min_frame_dist", "8", "3"]),
        ("training.beta1=2", ["training.beta1", "2.0"]),
    ],
)
def test_training_names_a_value_that_cannot_be(root, override, culprits):
    check_refused(root, train.main, training_arguments(root, override), *culprits)
    assert not (root / "run").exists()


def test_two_machines_may_fetch_vgg19_to_one_place(tmp_path, monkeypatch):
    path, fetching = tmp_path / "shared" / "vgg.mat", []

    def receive_while_another_does(url, _limit):
        fetching.append(url)
        yield b"wh"
        if len(fetching) == 1:
            perceptual.fetch_vgg19(path)
        yield b"ole"

    monkeypatch.setattr(download, "_receive", receive_while_another_does)
    monkeypatch.setattr(perceptual, "VGG19_MD5", hashlib.md5(b"whole").hexdigest())
    perceptual.fetch_vgg19(path)
    assert path.read_bytes() == b"whole" and len(fetching) == 2


# Evaluation


@pytest.mark.parametrize(
    ("damage", "culprits"),
    [
        (remove_list, ["{root}/set/full_list.txt", "training.dataset_path"]),
        (remove_metadata, ["{root}/set/metadata/scene1.json", "not found"]),
        (remove_images, ["scene scene0, frame 0", "image not found", "{root}/set/"]),
        (cut_images, ["scene scene0, frame 0", "image cannot be decoded", "{root}/set/"]),
        (shorten_clips, ["scene0: frame 9", "0 to 4", "{root}/set/metadata/scene0.json"]),
        (name_missing_frame, ["scene1: frame 14", "0 to 13", "{root}/set/metadata/scene1.json"]),
        (name_missing_scenes, ["2 of the 3 scenes", "{root}/index.json", "{root}/set/full_list.txt", "ghost"]),
        (lose_a_frame, ["scene1: frame 6", "preprocessing"]),
        (remove_index, ["inference.view_idx_file_path", "{root}/index.json", "not found"]),
        (cut_index, ["inference.view_idx_file_path", "{root}/index.json", "cannot be read"]),
        (rename_scene("other"), ["{root}/set/metadata/scene0.json", "scene_name is other"]),
        (rename_scene("../../escaped"), ["{root}/set/metadata/scene0.json", "scene_name", "'../../escaped'"]),
    ],
)
def test_evaluation_names_bad_data(root, damage, culprits):
    damage(root)
    before = sorted(root.rglob("*"))
    check_refused(root, inference.main, evaluation_arguments(root), *culprits)
    assert sorted(root.rglob("*")) == before


def test_an_evaluation_that_fails_late_leaves_no_summary(root):
    for path in images(root, "scene1"):
        path.unlink()
    arguments = evaluation_arguments(root, "training.batch_size_per_gpu=1")
    check_refused(root, inference.main, arguments, "scene scene1, frame 0", "image not found")
    assert (root / "out" / "scene0" / "metrics.json").exists()
    check_nothing_half_written(root / "out")


def test_evaluation_goes_on_without_missing_scenes_where_allowed(root):
    name_missing_scenes(root)
    inference.main(evaluation_arguments(root, "inference.allow_missing=true"))
    rows = list(csv.DictReader((root / "out" / "summary.csv").read_text().splitlines()))
    assert [row["scene_name"] for row in rows] == ["scene0"]
    assert sorted(path.name for path in (root / "out").iterdir() if path.is_dir()) == ["scene0"]


@pytest.mark.parametrize("allow", ["true", "false"])
def test_an_index_of_missing_scenes_alone_is_refused_even_so(root, allow):
    """Such an index is of another set: the key of the list is named, not the one that allows missing scenes."""
    name_only_missing_scenes(root)
    arguments = evaluation_arguments(root, f"inference.allow_missing={allow}")
    culprits = ["{root}/index.json", "{root}/set/full_list.txt", "ghost", "training.dataset_path"]
    assert "allow_missing" not in check_refused(root, inference.main, arguments, *culprits)
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("override", "count"),
    [("training.num_input_views=3", 2), ("training.num_target_views=3", 2), ("training.num_views=8", 4)],
)
def test_view_counts_that_contradict_the_index_are_refused(root, override, count):
    culprits = [override, "{root}/index.json", "scene scene0", f"has {count}"]
    check_refused(root, inference.main, evaluation_arguments(root, override), *culprits)
    assert not (root / "out").exists()


def test_view_counts_that_agree_with_the_index_are_accepted(root):
    counts = ["training.num_input_views=2", "training.num_target_views=2", "training.num_views=4"]
    inference.main(evaluation_arguments(root, *counts))
    assert (root / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("damage", "overrides", "culprits"),
    [
        pytest.param(
            None,
            ["training.checkpoint_dir={root}/encoder_decoder"],
            ["encoder_decoder variant", "model.class_name=encoder_decoder"],
            id="other model",
        ),
        pytest.param(None, ["model.transformer.n_layer=3"], [WEIGHTS, "model.transformer.n_layer"], id="other size"),
        pytest.param(cut_weights, [], [WEIGHTS, "cannot be read"], id="truncated"),
        pytest.param(
            None,
            ["training.checkpoint_dir={root}/nothing"],
            ["{root}/nothing", "training.checkpoint_dir"],
            id="wrong path",
        ),
        pytest.param(
            remove_weights, [], ["{root}/decoder_only", "training.checkpoint_dir", "*.safetensors"], id="none"
        ),
        pytest.param(scramble_weights, [], [WEIGHTS, "cannot be read"], id="scrambled"),
        pytest.param(spoil_weights, [], [WEIGHTS, "image_tokenizer.1.weight", "not finite"], id="not a number"),
        pytest.param(cut_safetensors, [], [SAFETENSORS, "safetensors"], id="truncated safetensors"),
        pytest.param(safetensors_with(function="{"), [], [SAFETENSORS, "function"], id="metadata that are not JSON"),
        pytest.param(safetensors_with(function="null"), [], [SAFETENSORS, "function"], id="metadata without a value"),
        pytest.param(
            safetensors_with(function='{"variant": "prefix", "camera_encoding": "none", "rays": "plucker"}'),
            [],
            [SAFETENSORS, "model.class_name=prefix", "decoder_only"],
            id="metadata of another variant",
        ),
        pytest.param(
            safetensors_with(function='{"variant": "nope", "camera_encoding": "none", "rays": "plucker"}'),
            [],
            [SAFETENSORS, "function.variant", "'nope'"],
            id="metadata of an unknown variant",
        ),
        pytest.param(safetensors_with(**{NORM: None}), [], [SAFETENSORS, NORM], id="a tensor is missing"),
        pytest.param(
            safetensors_with(**{NORM: torch.ones(3)}), [], [SAFETENSORS, NORM], id="a tensor of another shape"
        ),
        pytest.param(safetensors_with(other=torch.ones(3)), [], [SAFETENSORS, "other"], id="a tensor too many"),
        pytest.param(
            safetensors_with(**{NORM: torch.full((64,), torch.inf, dtype=torch.float16)}),
            [],
            [SAFETENSORS, NORM, "not finite"],
            id="an infinite half",
        ),
    ],
)
def test_evaluation_names_a_bad_checkpoint(root, damage, overrides, culprits):
    if damage:
        damage(root)
    check_refused(root, inference.main, evaluation_arguments(root, *overrides), *culprits)
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        None,
        store_bad_vgg("vgg16-397923af.pth", b"PK\x03\x04 half an archive"),
        pytest.param(
            store_bad_vgg("vgg16-397923af.pth", b""),
            id="empty",
        ),
    ],
    ids=["missing", "half", "empty"],
)
def test_evaluation_says_where_the_weights_of_lpips_go(root, damage):
    if damage:
        damage(root)
    arguments = evaluation_arguments(root, "inference.metrics=[psnr,lpips]")
    check_refused(root, inference.main, arguments, VGG16_URL, VGG16_FILE, "inference.metrics")
    assert not (root / "out").exists()


def test_lpips_says_nothing_of_its_own(root):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        refusal(inference.main, evaluation_arguments(root, "inference.metrics=[lpips]"))
    assert not [str(warning.message) for warning in caught if "torchvision" in warning.filename]


def test_an_unknown_metric_is_named(root):
    arguments = evaluation_arguments(root, "inference.metrics=[psnr,fid]")
    check_refused(root, inference.main, arguments, "inference.metrics", "'fid'", "psnr, ssim, lpips")


# Preprocessing


@pytest.mark.parametrize(
    ("index", "processes", "culprits"),
    [
        (None, 1, ["{root}/re10k/test", "*.torch", "--base_path"]),
        ("{", 1, ["{root}/re10k/test/index.json", "cannot be read"]),
        ("[]", 1, ["{root}/re10k/test/index.json", "not a chunk index"]),
        ('{"a": "../../a.torch"}', 1, ["{root}/re10k/test/index.json", "clip 'a'", "'../../a.torch'"]),
        ('{"a": 3}', 1, ["{root}/re10k/test/index.json", "clip 'a'", "3"]),
        (None, 0, ["--num_processes", "0", "at least 1"]),
    ],
)
def test_preprocessing_names_what_it_cannot_start_from(tmp_path, index, processes, culprits):
    folder = tmp_path / "re10k" / "test"
    if index is not None:
        folder.mkdir(parents=True)
        (folder / "index.json").write_text(index)
    arguments = ["--base_path", folder.parent, "--output_dir", tmp_path / "out", "--mode", "test"]
    arguments = [str(argument) for argument in [*arguments, "--num_processes", processes]]
    check_refused(tmp_path, preprocess_data.main, arguments, *culprits)
    assert not (tmp_path / "out").exists()


# As a person would run them


def test_training_from_the_other_model_ends_in_one_line(root):
    overrides = [f"training.resume_ckpt={root}/encoder_decoder", "training.reset_training_state=true"]
    done = run("train.py", *training_arguments(root, *overrides))
    assert done.stderr.count("\n") == 1
    check_error_line(done, root / "encoder_decoder" / CHECKPOINT, "encoder_decoder variant")


def test_evaluation_of_a_truncated_frame_ends_in_one_line(root):
    cut_images(root)
    done = run_fresh("inference.py", *evaluation_arguments(root, "training.num_workers=1"))
    check_error_line(done, "scene scene0, frame 0", "image cannot be decoded")
    assert len(done.stderr.splitlines()) == 2, "the device, and the error"
    check_nothing_half_written(root / "out")


def test_training_on_truncated_frames_ends_in_one_line_after_its_own_words(root):
    cut_images(root)
    done = run("train.py", *training_arguments(root, "training.num_workers=1"))
    check_error_line(done, re.compile(r"scene scene\d, frame \d"), "image cannot be decoded")
    check_nothing_half_written(root / "run")

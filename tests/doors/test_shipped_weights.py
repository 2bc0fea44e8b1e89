"""The weights in the box: small, sound, of the configuration that they go with, and good."""

import json

import torch

import data.synthetic.__main__ as synthetic
import inference
import preprocess_data
from model import build_model
from model.function import Function, load_weights, stored_function
from setup import read_config
from tests.helpers import ROOT
from utils.checkpoint import read_checkpoint
from utils.tensors import tensor_fault

WEIGHTS = ROOT / "weights" / "rooms_prefix.safetensors"
CONFIG = ROOT / "configs" / "rooms_prefix.yaml"


def test_the_file_is_small_and_holds_finite_halves():
    assert WEIGHTS.stat().st_size <= 10_000_000
    tensors = read_checkpoint(WEIGHTS)["model"]
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert not [name for name, value in tensors.items() if tensor_fault(value)]


def test_they_are_what_their_configuration_builds():
    content = read_checkpoint(WEIGHTS)
    assert stored_function(content, WEIGHTS) == Function("prefix", "prope", "plucker")
    model = build_model(read_config(CONFIG, []).model)
    load_weights(model, content, WEIGHTS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_650_368


def test_they_know_rooms_that_they_never_saw(tmp_path):
    rooms = ["--train_scenes", "0", "--test_scenes", "2", "--frames", "16", "--width", "256", "--height", "144"]
    walk = ["--speed", "0.1", "--context_distance", "12", "--seed", "77", "--num_processes", "1"]
    assert synthetic.main(["--output_dir", str(tmp_path / "chunks"), *rooms, *walk]) == 0
    preprocess_data.main(
        ["--base_path", str(tmp_path / "chunks"), "--output_dir", str(tmp_path / "scenes"), "--mode", "test"]
    )
    inference.main(
        [
            "--config",
            str(CONFIG),
            f"training.checkpoint_dir={WEIGHTS}",
            f"training.dataset_path={tmp_path}/scenes/test/full_list.txt",
            f"inference.view_idx_file_path={tmp_path}/chunks/evaluation_index.json",
            f"inference_out_dir={tmp_path}/out",
            "inference.render_video=false",
            "training.use_amp=false",
            "training.num_workers=0",
            "training.num_threads=1",
        ]
    )
    means = json.loads((tmp_path / "out" / "results.json").read_text())["averages"]
    assert means["psnr"] > means["psnr_nearest_input"] + 6
    assert means["ssim"] > 0.7

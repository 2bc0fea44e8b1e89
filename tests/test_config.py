import logging
from pathlib import Path

import pytest
import yaml

from setup import Config, build_config, load_config, parse_overrides
from tests.helpers import ROOT
from utils.errors import InputError
from utils.tracking import start_wandb

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "api_keys" not in p.name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_loads_and_opens_with_its_story(path):
    config, overridden = load_config(["--config", str(path)])
    assert isinstance(config, Config) and not overridden
    assert path.read_text().startswith("# ")


def test_defaults_are_the_published_values():
    published = yaml.safe_load((ROOT / "configs" / "LVSM_scene_decoder_only.yaml").read_text())
    names = {"checkpoint_dir", "wandb_exp_name"}
    default, loaded = build_config({}).training, build_config(published).training
    for key in published["training"].keys() - names:
        assert getattr(default, key) == getattr(loaded, key), key


def test_spaces_around_equals_signs():
    tokens = "training.batch_size_per_gpu = 16 training.lr= 1e-4 training.warmup =7 training.train_steps=9".split()
    training = build_config({}, parse_overrides(tokens)).training
    assert (training.batch_size_per_gpu, training.lr, training.warmup, training.train_steps) == (16, 1e-4, 7, 9)


def test_values_with_spaces_and_lists_survive():
    tokens = ["training.wandb_exp_name=a long name", "inference.metrics", "=", "[psnr,", "ssim]", "training.seed=0012"]
    config = build_config({}, parse_overrides(tokens))
    assert config.training.wandb_exp_name == "a long name"
    assert config.inference.metrics == ["psnr", "ssim"]
    assert config.training.seed == 12


def test_text_stays_text():
    config = build_config({}, parse_overrides(["training.wandb_exp_name=007", "training.resume_ckpt=a=b/c.pt"]))
    assert config.training.wandb_exp_name == "007"
    assert config.training.resume_ckpt == "a=b/c.pt"


def test_an_empty_value_is_empty():
    overrides = parse_overrides(
        ["training.resume_ckpt=", "training.lr=1", "training.wandb_project =", "inference_out_dir=x"]
    )
    assert overrides["training.resume_ckpt"] == "" and overrides["training.wandb_project"] == ""
    assert overrides["training.lr"] == "1" and overrides["inference_out_dir"] == "x"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "training.batch_size_per_gp",
            1,
            "unknown key training.batch_size_per_gp; did you mean training.batch_size_per_gpu?",
        ),
        ("batch_size_per_gpu", 1, "unknown key batch_size_per_gpu; did you mean training.batch_size_per_gpu?"),
        ("training.learning_rate", 1, "unknown key training.learning_rate; did you mean training.lr?"),
        ("training.batch_size", 1, "unknown key training.batch_size; did you mean training.batch_size_per_gpu?"),
        ("training.patch_size", 1, "unknown key training.patch_size; did you mean model.image_tokenizer.patch_size?"),
        ("training.save_every", 1, "unknown key training.save_every; did you mean training.checkpoint_every?"),
        ("model.n_layers", 1, "unknown key model.n_layers; did you mean model.transformer.n_layer?"),
        ("training.zzz", 1, "unknown key training.zzz; the sections are model, training, inference, inference_out_dir"),
        ("model.transfomer.d", 1, "unknown key model.transfomer; did you mean model.transformer"),
        ("training.lr", "fast", "training.lr: Value 'fast'"),
        ("training.batch_size_per_gpu", 2.5, "training.batch_size_per_gpu: Value '2.5'"),
        ("training.square_crop", "perhaps", "training.square_crop: Value 'perhaps'"),
        ("training", 3, "training is a section"),
        ("inference.metrics", "psnr", "inference.metrics: "),
        ("training.batch_size_per_gpu", 0, "training.batch_size_per_gpu is 0; it must be at least 1"),
        ("training.amp_dtype", "int8", "training.amp_dtype is 'int8'; known: bf16"),
        ("training.lr", "${training.nothing}", "training.lr"),
        ("inference.render_video_config.num_frames", 1, "inference.render_video_config.num_frames is 1; it must be at"),
        ("inference.render_video_config.fps", 0, "inference.render_video_config.fps is 0; it must be at least 1"),
        (
            "inference.render_video_config.traj_type",
            "spiralt",
            "inference.render_video_config.traj_type is 'spiralt'; known: interpolate, spiral, wobble, through",
        ),
        ("inference.render_video_config.traj_type", "through", "`through` needs a list of cameras"),
        (
            "inference.render_video_config.cameras_path",
            "a.json",
            "cameras_path is 'a.json' and traj_type 'interpolate'",
        ),
    ],
)
def test_bad_keys_and_values_are_named(key, value, message):
    with pytest.raises(InputError) as caught:
        build_config({}, {key: value})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tokens", [["training.lr"], ["1e-4"], ["training.lr=1", "2"]])
def test_stray_arguments_are_named(tokens):
    with pytest.raises(InputError, match="is not of the form key=value"):
        parse_overrides(tokens)


def test_keys_without_effect_warn_once(caplog):
    with caplog.at_level(logging.WARNING, "lvsm"):
        build_config({"training": {"use_rel_pose": False, "center_crop": True}})
    assert sorted(record.getMessage() for record in caplog.records) == [
        "training.center_crop has no effect and is ignored",
        "training.use_rel_pose has no effect and is ignored",
    ]


def test_sizes_of_the_other_variant_warn(caplog):
    section = {"class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene"}
    with caplog.at_level(logging.WARNING, "lvsm"):
        build_config({"model": section}, {"model.transformer.n_layer": 6, "model.transformer.encoder_n_layer": 6})
    assert [record.getMessage() for record in caplog.records] == [
        "model.transformer.n_layer has no effect on this variant"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "is not YAML"), ("- 1", "holds no keys"), (None, "configuration not found")],
)
def test_bad_files_are_named(tmp_path: Path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_config(["--config", str(path)])
    assert str(path) in str(caught.value)


def test_an_empty_section_means_defaults():
    assert build_config({"inference": None}) == build_config({})


def test_a_section_that_is_a_value_is_refused_whatever_is_overridden():
    with pytest.raises(InputError, match="model is a section"):
        build_config({"model": 3}, {"model.transformer.d": "64"})


def test_the_command_line_is_remembered(tmp_path):
    _, overridden = load_config(["training.lr=1", "--config", str(CONFIGS[0]), "training.num_views", "=", "5"])
    assert overridden == {"training.lr", "training.num_views"}


def test_configurations_are_frozen():
    config = build_config({})
    with pytest.raises(AttributeError):
        config.training.lr = 1.0


def test_wandb_that_was_turned_off_asks_for_no_key(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lvsm"):
        assert start_wandb(project="p", name="n", folder=tmp_path, config={}, key_file=tmp_path / "none.yaml") is None
    assert [record.getMessage() for record in caplog.records] == ["wandb is off: WANDB_MODE=disabled"]

import copy
import dataclasses
import functools
import logging
import math
import os
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml

from setup import (
    _SECTIONS,
    Config,
    _nested,
    build_config,
    check_training,
    choose_threads,
    config_text,
    load_config,
    with_training,
)
from tests.helpers import ROOT
from tests.messages import check_names, check_told, refused
from training.wandb_run import start_wandb
from utils import config_file
from utils.config_values import read_values
from utils.errors import InputError
from utils.fields import is_path, range_of
from utils.sections import Composed, check_values, distribute, flatten, keys_of, leaves
from utils.text import shown

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "api_keys" not in p.name)


def parse_overrides(tokens):
    return config_file.parse_overrides(tokens, keys_of(Config))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_loads_and_opens_with_its_story(path):
    config, overridden = load_config(["--config", str(path)])
    assert isinstance(config, Config) and not overridden
    assert path.read_text().startswith("# ")


def test_defaults_are_the_published_values():
    published = yaml.safe_load((ROOT / "configs" / "LVSM_scene_decoder_only.yaml").read_text())
    names = {"checkpoint_dir", "wandb_exp_name"}
    default = flatten(build_config({}).training)
    loaded = flatten(build_config(published).training)
    for key in published["training"].keys() - names:
        assert default[key] == loaded[key], key


@pytest.mark.parametrize("key", ["training.lr", "inference.metrics", "inference_out_dir"])
def test_three_question_marks_are_no_value(key):
    for content, overrides in ((_nested(key, "???"), {}), ({}, {key: "???"})):
        with refused(key):
            build_config(content, overrides)


def test_spaces_around_equals_signs():
    tokens = "training.batch_size_per_gpu = 16 training.lr= 1e-4 training.warmup =7 training.train_steps=9".split()
    training = build_config({}, parse_overrides(tokens)).training
    assert training.loader.batch_size_per_gpu == 16
    assert (training.optim.lr, training.optim.warmup, training.optim.train_steps) == (1e-4, 7, 9)


def test_values_with_spaces_and_lists_survive():
    tokens = ["training.wandb_exp_name=a long name", "inference.metrics", "=", "[psnr,", "ssim]", "training.seed=0012"]
    config = build_config({}, parse_overrides(tokens))
    assert config.training.metrics_log.wandb_exp_name == "a long name"
    assert config.inference.evaluation.metrics == ["psnr", "ssim"]
    assert config.training.trainer.seed == 12


def test_text_stays_text():
    config = build_config({}, parse_overrides(["training.wandb_exp_name=007", "training.resume_ckpt=a=b/c.pt"]))
    assert config.training.metrics_log.wandb_exp_name == "007"
    assert config.training.restoring.resume_ckpt == "a=b/c.pt"


def test_an_empty_value_is_empty():
    overrides = parse_overrides(
        ["training.resume_ckpt=", "training.lr=1", "training.wandb_project =", "inference_out_dir=x"]
    )
    assert overrides["training.resume_ckpt"] == "" and overrides["training.wandb_project"] == ""
    assert overrides["training.lr"] == "1" and overrides["inference_out_dir"] == "x"


@pytest.mark.parametrize(
    ("key", "value", "culprits"),
    [
        ("training.batch_size_per_gp", 1, ["training.batch_size_per_gp", "training.batch_size_per_gpu"]),
        ("batch_size_per_gpu", 1, ["batch_size_per_gpu", "training.batch_size_per_gpu"]),
        ("training.learning_rate", 1, ["training.learning_rate", "training.lr"]),
        ("training.batch_size", 1, ["training.batch_size", "training.batch_size_per_gpu"]),
        ("training.patch_size", 1, ["training.patch_size", "model.image_tokenizer.patch_size"]),
        ("training.save_every", 1, ["training.save_every", "training.checkpoint_every"]),
        ("model.n_layers", 1, ["model.n_layers", "model.transformer.n_layer"]),
        ("training.zzz", 1, ["training.zzz", "model, training, inference, viewer, inference_out_dir"]),
        ("model.transfomer.d", 1, ["model.transfomer", "model.transformer"]),
        ("training.lr", "fast", ["training.lr", "'fast'"]),
        ("training.batch_size_per_gpu", 2.5, ["training.batch_size_per_gpu", "'2.5'"]),
        ("training.square_crop", "perhaps", ["training.square_crop", "'perhaps'"]),
        ("training", 3, ["training", "section"]),
        ("training.batch_size_per_gpu", 0, ["training.batch_size_per_gpu", 0, "at least 1"]),
        ("training.amp_dtype", "int8", ["training.amp_dtype", "'int8'", "bf16"]),
        ("training.background", [0, 0, 0], ["training.background", "list"]),
        ("training.background", {"red": 0}, ["training.background", "section"]),
        ("training.num_input_views", [[2, 4]], ["training.num_input_views", "list inside a list"]),
        ("training.num_input_views", [[]], ["training.num_input_views", "list inside a list"]),
        ("inference.metrics", [{"psnr": 1}], ["inference.metrics", "section inside a list"]),
        ("training.lr", "${training.nothing}", ["training.lr"]),
        ("inference.render_video_config.num_frames", 1, ["inference.render_video_config.num_frames", 1, "at least 2"]),
        ("inference.render_video_config.fps", 0, ["inference.render_video_config.fps", 0, "at least 1"]),
        (
            "inference.render_video_config.traj_type",
            "spiralt",
            ["inference.render_video_config.traj_type", "'spiralt'", "interpolate, spiral, wobble, orbit, through"],
        ),
        (
            "inference.render_video_config.traj_type",
            "through",
            ["inference.render_video_config.cameras_path", "traj_type 'through'"],
        ),
        (
            "inference.render_video_config.cameras_path",
            "a.json",
            ["inference.render_video_config.cameras_path", "'a.json'", "traj_type 'interpolate'"],
        ),
    ],
)
def test_bad_keys_and_values_are_named(key, value, culprits):
    with refused(*culprits):
        build_config({}, {key: value})


@pytest.mark.parametrize("tokens", [["training.lr"], ["1e-4"], ["training.lr=1", "2"]])
def test_stray_arguments_are_named(tokens):
    with refused(f"'{tokens[-1]}'", "key=value"):
        parse_overrides(tokens)


def test_keys_without_effect_warn_once(caplog):
    with caplog.at_level(logging.WARNING, "lvsm"):
        build_config({"training": {"use_rel_pose": False, "center_crop": True}})
    assert sorted(text.split()[0] for text in caplog.messages) == ["training.center_crop", "training.use_rel_pose"]


def test_sizes_of_the_other_variant_warn(caplog):
    section = {"class_name": "model.LVSM_scene_encoder_decoder.Images2LatentScene"}
    with caplog.at_level(logging.WARNING, "lvsm"):
        build_config({"model": section}, {"model.transformer.n_layer": 6, "model.transformer.encoder_n_layer": 6})
    assert [text.split()[0] for text in caplog.messages] == ["model.transformer.n_layer"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "no keys"),
        ("", "no keys"),
        ("# training: {}\n", "no keys"),
        (None, "not found"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content, fault):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with refused(path, fault):
        load_config(["--config", str(path)])


def test_an_empty_section_means_defaults():
    assert build_config({"inference": None}) == build_config({})


def test_a_section_that_is_a_value_is_refused_whatever_is_overridden():
    with refused("model", "section"):
        build_config({"model": 3}, {"model.transformer.d": "64"})


def test_the_command_line_is_remembered(tmp_path):
    _, overridden = load_config(["training.lr=1", "--config", str(CONFIGS[0]), "training.num_views", "=", "5"])
    assert overridden == {"training.lr", "training.num_views"}


def test_configurations_are_frozen():
    config = build_config({})
    with pytest.raises(AttributeError):
        config.training.optim.lr = 1.0


def test_wandb_that_was_turned_off_asks_for_no_key(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lvsm"):
        assert start_wandb(project="p", name="n", folder=tmp_path, config={}, key_file=tmp_path / "none.yaml") is None
    assert [record.getMessage() for record in caplog.records] == ["wandb is off: WANDB_MODE=disabled"]


KEYS = dict(leaves(Config))
SECTIONS = sorted({key.rsplit(".", 1)[0] for key in KEYS if key.count(".") > 1})
LISTS = [key for key in KEYS if "list" in str(KEYS[key].kind)]
NUMBERS = {path: key.declared for path, key in KEYS.items() if key.kind in (int, float, int | list[int])}
TEXTS = {path: key.declared for path, key in KEYS.items() if key.kind is str}
# Keys of text that name no file.
NAMES = {
    "model.class_name",
    "training.view_sampler",
    "training.wandb_exp_name",
    "training.wandb_project",
    "viewer.host",
}


def test_every_number_has_a_range_and_every_text_is_a_path_or_a_name():
    assert [key for key, declared in NUMBERS.items() if range_of(declared) is None] == []
    assert {key for key, declared in TEXTS.items() if not is_path(declared)} == NAMES


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_out_of_range_are_refused(key):
    allowed = range_of(NUMBERS[key])
    beyond = [allowed.most + 1, allowed.least - 1, 10**30, -(10**30), 10**400, math.nan, math.inf, -math.inf]
    beyond += [allowed.least] * allowed.open_below + [allowed.most] * allowed.open_above
    *sections, name = key.split(".")
    for value in beyond:
        values = copy.deepcopy(flatten(Config()))
        functools.reduce(dict.__getitem__, sections, values)[name] = value
        with pytest.raises(InputError) as caught:
            check_values(Config, values)
        check_names(str(caught.value), key)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("[2, 8]", [2, 8]), ("[2]", None), ("[8, 2]", None), ("[0, 2]", None), ("[2, 1001]", None)]
    + [
        (text, None)
        for text in ("2.5", "two", "[2, [8]]", "[]", "", "true", "[2, 8.0]", "9" * 5000, "${inference_out_dir}")
    ]
    + [("${training.num_target_views}", 6)],
)
def test_inputs_are_a_number_or_a_range(text, value):
    overrides = parse_overrides([f"training.num_input_views={text}"])
    if value is None:
        with refused("training.num_input_views"):
            build_config({}, overrides)
        return
    config = build_config({}, overrides)
    assert config.training.data.num_input_views == value
    assert build_config(yaml.safe_load(config_text(config))) == config
    assert build_config({"training": {"num_input_views": value}}) == config


def test_the_command_line_replaces_a_range():
    given = {"training": {"num_input_views": [2, 8]}}
    assert build_config(given, {"training.num_input_views": "4"}).training.data.num_input_views == 4


CHOICES = {path: get_args(key.kind) for path, key in KEYS.items() if get_origin(key.kind) is Literal}


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_choices_are_refused_with_the_known_ones(key):
    with refused(key, *CHOICES[key]):
        build_config({}, {key: "nonsense"})


@dataclasses.dataclass(frozen=True)
class One:
    lr: float = 1.0


@dataclasses.dataclass(frozen=True)
class Other:
    lr: float = 2.0


def test_two_owners_of_one_name_are_refused():
    with refused("Both", "One", "Other", "field lr", error=TypeError):

        class Both(Composed):
            one: One
            other: Other


def test_every_value_lies_with_its_owner_and_under_its_written_name():
    config = build_config({}, {"training.lr": "0.5", "training.num_views": "9"})
    assert config.training.optim.lr == 0.5 and config.training.data.num_views == 9
    written = flatten(config)
    assert written["training"]["lr"] == 0.5 and written["training"]["view_selector"] == {
        "min_frame_dist": 25,
        "max_frame_dist": 192,
    }
    assert distribute(Config, written) == config
    assert build_config(yaml.safe_load(config_text(config))) == config


def test_a_section_with_other_values_leaves_the_first_alone():
    config = build_config({})
    assert with_training(config, lr=0.5).training.optim.lr == 0.5
    assert with_training(with_training(config, lr=0.5), lr=4e-4) == config == build_config({})


@pytest.mark.parametrize("key", [key for key in TEXTS if key not in NAMES])
def test_every_path_is_expanded(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/some where")
    monkeypatch.delenv("NOT_SET", raising=False)

    def read(text):
        return functools.reduce(dict.__getitem__, key.split("."), read_values(_nested(key, text), Config))

    expanded = {"~/a": "/home/me/a", "$PLACE/a": "/some where/a", "${PLACE}/a": "/some where/a"}
    unchanged = ["./a/", "hf://a/b/c.pt", "hf://a/$PLACE/~"]
    assert {text: read(text) for text in expanded} == expanded
    assert [read(text) for text in unchanged] == unchanged
    for text in ("$NOT_SET/a", "${NOT_SET}", "~nobody_of_this_name/a", "a\0b"):
        with refused(key, shown(text)):
            read(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.lr", "inf"),
        ("training.lr", "1e999"),
        ("training.seed", 2**64),
        ("training.seed", "1e3"),
        ("training.seed", "null"),
        ("training.num_workers", ""),
        ("training.batch_size_per_gpu", 10**12),
        ("training.num_workers", 10**6),
        ("model.image_tokenizer.image_size", 10**6),
        ("training.lr.x", 1),
        ("inference.render_video_config.fps", -1),
    ],
)
def test_such_numbers_end_in_one_line(key, value):
    with refused(key.removesuffix(".x")):
        build_config({}, {key: value})


def test_paths_in_a_file_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "/some where")
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    content = "training: {checkpoint_dir: '${PLACE}/run', wandb_exp_name: '$PLACE'}\n"
    (tmp_path / "c.yaml").write_text(content)
    config, _ = load_config(["--config", "$CONFIGS/c.yaml"])
    assert config.training.checkpoint.checkpoint_dir == "/some where/run"
    assert config.training.metrics_log.wandb_exp_name == "$PLACE"


@pytest.mark.parametrize(
    "key",
    [
        "training.checkpoint_dir",
        "training.dataset_path",
        "inference.view_idx_file_path",
        "inference_out_dir",
        "viewer.host",
        "viewer.out_dir",
    ],
)
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_path_is_refused(key, text):
    with refused(key, "empty"):
        build_config({}, {key: text})


@pytest.mark.parametrize("key", [key for key in TEXTS if key not in NAMES])
@pytest.mark.parametrize("value", [-1, 0, 0.5, True, None, [1], 10**400, "null", "None", "'a b'", '""'], ids=str)
def test_a_path_is_text_that_names_a_file(key, value):
    with refused(f"{key} is"):
        build_config(_nested(key, value))


@pytest.mark.parametrize("key", [*KEYS, *SECTIONS])
def test_a_key_without_a_value_is_named(key):
    if key in ("training.use_rel_pose", "training.center_crop"):
        assert build_config(_nested(key, None)) == build_config({})
        return
    for content, overrides in ((_nested(key, None), {}), ({}, {key: None})):
        with refused(key, "empty"):
            build_config(content, overrides)


@pytest.mark.parametrize("key", [key for key in KEYS if KEYS[key].kind in (int, float, bool)])
@pytest.mark.parametrize("text", ["", "null"])
def test_a_number_or_boolean_is_no_empty_text(key, text):
    with refused(key, "empty"):
        build_config({}, {key: text})


@pytest.mark.parametrize("key", LISTS)
def test_an_empty_item_of_a_list_is_named(key):
    with refused(key, "empty item"):
        build_config(_nested(key, [None]))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("inner", ["0", "x.y"])
def test_a_part_of_a_value_is_no_key(key, inner):
    with refused(key, "list" if get_origin(KEYS[key].kind) is list else "value", "section"):
        build_config({}, parse_overrides([f"{key}.{inner}=1"]))


@pytest.mark.parametrize("key", _SECTIONS)
@pytest.mark.parametrize("value", [0, "", False, []], ids=str)
def test_a_section_is_no_empty_value(key, value):
    with refused(key, "section"):
        build_config({key: value})


@pytest.mark.parametrize("text", ["./null", "nullable", "-1", "a'b'", "2001-01-01", "psnr,ssim", ".."])
def test_other_texts_are_paths_as_they_are_written(text):
    assert build_config({}, {"training.checkpoint_dir": text}).training.checkpoint.checkpoint_dir == text


BOOLEANS = [path for path, key in KEYS.items() if "bool" in str(key.kind)]


@pytest.mark.parametrize("key", BOOLEANS)
@pytest.mark.parametrize("value", [2, -1, "2", "+7", "-1", "00", "9" * 5000], ids=lambda value: str(value)[:9])
def test_a_boolean_is_no_other_number(key, value):
    with pytest.raises(InputError) as caught:
        build_config({}, {key: value})
    check_names(str(caught.value), key)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [True, 1, "1", "true", "Yes", "on"])
def test_a_boolean_has_these_words(value):
    assert build_config({}, {"training.reset_training_state": value}).training.restoring.reset_training_state


@pytest.mark.parametrize("key", ["training.compile", "training.wandb_exp_name"])
def test_a_name_that_yaml_takes_for_a_boolean_is_refused(tmp_path, key):
    (tmp_path / "c.yaml").write_text(f"training: {{{key.removeprefix('training.')}: off}}")
    with refused(key, False, "quotes"):
        load_config(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("text", ["1:30", "-1:30", "1:30:00", "1:30.5", "010", "-0012", "007", "0_7"])
def test_numbers_that_yaml_reads_otherwise_than_they_look_are_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    for key in ("lr", "train_steps", "wandb_exp_name", "checkpoint_dir"):
        path.write_text(f"training:\n  warmup: 1\n  {key}: {text}\n")
        with refused(path, f"'{text}'"):
            load_config(["--config", str(path)])


def test_numbers_that_yaml_reads_as_they_look_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "training: {lr: 1e-4, warmup: 0, train_steps: 1_000, seed: 0x10, wandb_exp_name: '007', wandb_project: 0:00}"
    )
    training = load_config(["--config", str(path)])[0].training
    optim = training.optim
    assert [optim.lr, optim.warmup, optim.train_steps, training.trainer.seed] == [1e-4, 0, 1000, 16]
    assert [training.metrics_log.wandb_exp_name, training.metrics_log.wandb_project] == ["007", "0:00"]


@pytest.mark.parametrize(
    "tokens",
    [
        ["inference.metrics=psnr,ssim"],
        ["inference.metrics=psnr,", "ssim"],
        ["inference.metrics", "=", "psnr , ssim"],
        ["inference.metrics=[psnr,ssim]"],
    ],
)
def test_a_list_needs_no_brackets(tokens):
    assert build_config({}, parse_overrides(tokens)).inference.evaluation.metrics == ["psnr", "ssim"]
    assert build_config({"inference": {"metrics": "psnr"}}).inference.evaluation.metrics == ["psnr"]


SIZE = "model.image_tokenizer.image_size"
POSE_SIZE = "model.target_pose_tokenizer.image_size"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128", 128),
        ("[128,224]", [128, 224]),
        ("[128, 224]", [128, 224]),
        ("128,224", [128, 224]),
        ("[128,128]", [128, 128]),
    ],
)
def test_a_size_is_a_number_or_height_and_width(text, size):
    tokens = parse_overrides([f"{SIZE}={text}", f"{POSE_SIZE}={text}"])
    in_a_file = _nested(SIZE, size)
    in_a_file["model"]["target_pose_tokenizer"] = {"image_size": f"${{{SIZE}}}", "in_channels": 6}
    for config in (build_config({}, tokens), build_config(in_a_file)):
        assert config.model.image_tokenizer.image_size == config.model.target_pose_tokenizer.image_size == size
        assert build_config(yaml.safe_load(config_text(config))) == config


@pytest.mark.parametrize(
    ("size", "culprits"),
    [
        (100, [SIZE, 100, "patch_size (8)", 96]),
        ([128, 220], [SIZE, "[128, 220]", 220, 216]),
        ([4, 128], [SIZE, "[4, 128]", 8]),
        ([128, 128, 128], [SIZE, 3]),
        ([], [SIZE, 0]),
        ([0, 128], [SIZE, 0, "at least 1"]),
        ([128, 10**6], [SIZE, 10**6, "at most 4096"]),
        ([128, 10**30], [SIZE, "at most 4096"]),
        ([128, "wide"], [SIZE, "'wide'"]),
        ([128, 224.0], [SIZE, "224.0"]),
        ([[128, 224]], [SIZE, "list"]),
        ("wide", [SIZE, "'wide'"]),
        ("9" * 5000, [SIZE]),
        (True, [SIZE, True]),
        (None, [SIZE]),
        (2.5, [SIZE, 2.5]),
    ],
)
def test_sizes_that_cannot_be_are_named(size, culprits):
    with refused(*culprits):
        build_config(_nested(SIZE, size))
    with refused(*culprits):
        build_config({}, {SIZE: size})


def test_two_sizes_of_one_model_are_refused():
    with refused(SIZE.removeprefix("model."), POSE_SIZE, "[128, 224]", 128):
        build_config({}, {SIZE: [128, 224], POSE_SIZE: 128})
    assert build_config({}, {SIZE: [128, 128], POSE_SIZE: 128})


def test_images_cannot_be_whole_and_of_a_given_shape():
    whole = {"training.square_crop": "false"}
    with refused(SIZE, "training.square_crop"):
        build_config({}, {SIZE: [128, 224], POSE_SIZE: [128, 224]} | whole)
    with refused("training.image_sizes[1]", "training.square_crop"):
        check_training(build_config({}, {"training.image_sizes": [256, [256, 448]]} | whole))
    check_training(build_config({}, {"training.image_sizes": [256, 512]} | whole))


@pytest.mark.parametrize("text", ["[256, [256, 448]]", "[256,[256,448]]"])
def test_sizes_of_training_are_a_list(text):
    config = build_config({}, parse_overrides([f"training.image_sizes={text}"]))
    check_training(config)
    assert config.training.data.image_sizes == [256, [256, 448]]
    assert build_config(yaml.safe_load(config_text(config))) == config
    assert build_config({}, {"training.image_sizes": "256,512"}).training.data.image_sizes == [256, 512]


@pytest.mark.parametrize(
    ("sizes", "culprits"),
    [
        ([256, [256, 450]], ["training.image_sizes[1]", "[256, 450]", 450, "patch_size (8)"]),
        ([[256, 448, 3]], ["training.image_sizes[0]", 3]),
        ([256, [[256, 448]]], ["training.image_sizes", "list"]),
        ([256, 10**6], ["training.image_sizes", 10**6]),
        ([256, [0, 8]], ["training.image_sizes", 0, "at least 1"]),
        ([256, "wide"], ["training.image_sizes", "'wide'"]),
        ([True], ["training.image_sizes", True]),
        ([None], ["training.image_sizes"]),
        (256, ["training.image_sizes", 256]),
        ({"a": 1}, ["training.image_sizes", "list"]),
    ],
)
def test_sizes_of_training_that_cannot_be_are_named(sizes, culprits):
    with refused(*culprits):
        check_training(build_config({}, {"training.image_sizes": sizes}))


def test_scores_at_a_size_that_is_not_trained_are_said(caplog):
    check_training(build_config({}, {"training.image_sizes": [[256, 256], 512]}))
    assert caplog.messages == []
    check_training(build_config({}, {"training.image_sizes": [512]}))
    check_told(caplog.messages, SIZE, 256, "training.image_sizes")


@pytest.mark.parametrize("value", ["", "[]", ","])
def test_no_metrics_are_asked_for_by_another_key(value):
    with refused("inference.metrics", "inference.compute_metrics=false"):
        build_config({}, parse_overrides([f"inference.metrics={value}"]))


def test_the_last_of_several_values_counts():
    assert build_config({}, parse_overrides(["training.lr=1", "training.lr=2"])).training.optim.lr == 2


@pytest.mark.parametrize("text", ["[!!bool maybe]", "[!!int _]", "[2026-99-99]", "[[", "[a: b: c]"])
def test_what_is_no_list_is_named(text):
    with refused("training.image_sizes", "list", shown(text)):
        parse_overrides([f"training.image_sizes={text}"])


def test_two_files_are_refused(tmp_path):
    with refused("--config", "2 times"):
        load_config(["--config", str(tmp_path / "a"), "--config", str(tmp_path / "b")])


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    "content",
    [
        "training: {lr: 1, lr: 2}",
        "training: {lr: 1}\ntraining: {lr: 2}",
        "training:\n\tlr: 1",
        "training: &a {view_selector: *a}",
        BOMB,
        "x: " + "[" * 1000 + "]" * 1000,
        "training: {seed: 1" + "0" * 5000 + "}",
        "training: {lr: !!python/object/apply:os.system ['touch canary']}",
        "training: {lr: !!python/name:os.system}",
        "training: {lr: '${training.lr}'}",
        "training: {lr: '${training.warmup}', warmup: '${training.lr}'}",
        "training: {lr: '${'}",
        "training: {lr: '${oc.env:NOT_SET}'}",
        "training: '${model}'",
        "training: {lr: ???}",
        "training: {lr: null}",
        "training: {lr: 2026-11-25}",
        "training: {lr: 2026-99-99}",
        "training: {use_amp: !!bool maybe}",
        "training: {seed: !!int _}",
        "training: {lr: !!timestamp soon}",
        "training: {lr: [1]}",
        "training: {lr: {a: 1}}",
        "training: {lr: 1" + ":30" * 20_000 + "}",
        "training: {seed: 18446744073709551616}",
        "training: {seed: -1}",
        "? [a, b]\n: 1",
        "1: 2",
        "null: 2",
        "inference: {metrics: {a: 1}}",
        "inference: {metrics: [[psnr]]}",
        'model: {class_name: "\\e[31mred\\u202e"}',
        '"\\e[31m": 1',
        'training: {"\\e[31m": 1}',
        "training: {dataset_path: $NOT_SET}",
        "a: 1\n---\nb: 2",
        "text",
        "\0",
        "x" * 2_000_000,
        b"\xff\xfe\x00",
        b"\x89PNG\r\n\x1a\n\0\0",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_files_that_cannot_be_meant_are_refused_in_one_line(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        load_config(["--config", str(path)])
    assert str(refused.value).isprintable() and len(str(refused.value)) < 2000
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "c.yaml" if kind != "device" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with refused(path):
        load_config(["--config", str(path)])


def test_aliases_and_the_environment_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("RATE", "1e-4")
    path = tmp_path / "c.yaml"
    path.write_text(
        "\ufeffmodel: {image_tokenizer: &size {image_size: 64}, target_pose_tokenizer: {<<: *size, in_channels: 6}}\n"
        "training: {lr: '${oc.env:RATE}', warmup: '${training.train_steps}', use_amp: off}\n"
    )
    config, _ = load_config(["--config", str(path)])
    assert config.model.target_pose_tokenizer.image_size == 64 and not config.training.precision.use_amp
    optim = config.training.optim
    assert optim.lr == 1e-4 and optim.warmup == optim.train_steps


@pytest.mark.parametrize(
    ("cores", "asked", "spared", "threads"), [(2, 5, 0, 2), (2, 5, 1, 1), (1, 5, 1, 1), (8, 3, 1, 3)]
)
def test_threads_leave_cores_to_other_work(monkeypatch, cores, asked, spared, threads):
    monkeypatch.setattr("setup.cores_of_process", lambda: cores)
    assert choose_threads(asked, spared) == threads

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import train
from model import convert
from model.function import Function, with_function
from setup import build_config, check_training, load_config, read_config, with_pose_normalization
from tests.helpers import ROOT, VARIANTS, write_toy_set
from tests.lanes import ONE_FAST_VARIANT
from tests.messages import check_names, check_told, refusal, refused
from tests.processes import run
from tests.runs import build, largest_difference, weights
from tests.runs import training_command as command
from utils.checkpoint import checkpoint_name, numbered_checkpoints, read_checkpoint, write_checkpoint

CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "api_keys" not in p.name)


@pytest.mark.fast
@pytest.mark.parametrize("variant", ONE_FAST_VARIANT)
def test_training_writes_its_run_folder(variant, scenes, tmp_path):
    folder = tmp_path / "run"
    given = command(scenes, folder, "training.vis_every=2", "training.checkpoint_every=1", variant=variant)
    train.main(given)
    assert [p.name for p in numbered_checkpoints(folder)] == [checkpoint_name(1), checkpoint_name(2)]
    state = read_checkpoint(folder / checkpoint_name(2))
    assert state["step"] == 2 and state["samples"] == 4
    assert not any("vgg" in name or "loss" in name for name in state["model"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 and line["skipped"] == 0 for line in lines)
    (begun,) = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert begun["step"] == 0 and begun["processes"] == 1 and begun["time"].startswith("20") and begun["packages"]
    (picture,) = (folder / "visuals").iterdir()
    assert picture.name == "00000002.png"
    # Two scenes of six targets: a title, the views' names, targets, renders.
    assert Image.open(picture).size == (6 * 16, 2 * (14 + 14 + 16 + 16))
    recorded, _ = load_config(["--config", str(folder / "config.yaml")])
    given, _ = load_config(
        command(scenes, folder, "training.vis_every=2", "training.checkpoint_every=1", variant=variant)
    )
    # What was left open, how cameras come in and what normalises their poses, is written down.
    given = with_pose_normalization(given)
    assert recorded.training.data.pose_normalization == "all_views"
    assert recorded == replace(given, model=with_function(given.model, Function(variant)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_undisturbed_one(variant, scenes, tmp_path):
    folder = tmp_path / "run"
    options = ["training.train_steps=6", "training.warmup=2", "training.scheduler_type=linear"]
    options.append("training.checkpoint_every=3")
    train.main(command(scenes, folder, *options, variant=variant))
    undisturbed = weights(folder, 6)
    (folder / checkpoint_name(6)).unlink()
    train.main(command(scenes, folder, *options, "training.num_workers=1", variant=variant))
    starts = [json.loads(line)["step"] for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert starts == [0, 3]
    assert largest_difference(undisturbed, weights(folder, 6)) == 0


# Of updates 0, 1 and 2 the samples have 4, 3 and 1 inputs.
INPUTS = "training.num_input_views=[1,4]"
SIZES = "training.image_sizes=[[16,32],16]"
DRAWN = [INPUTS, SIZES, "training.view_sampler=spread", "training.num_target_views=4"]
# Renders with alpha, views in any order, cameras as they are.
OBJECTS = ["view_sampler=any", "pose_normalization=none", "pose_scale=0.5", "background=random"]
OBJECTS = [f"training.{option}" for option in [*OBJECTS, "num_views=12", "num_input_views=4", "num_target_views=8"]]


def test_a_resumed_run_has_the_random_backgrounds_of_an_undisturbed_one(tmp_path):
    scenes = write_toy_set(tmp_path / "scenes", alpha=True)
    for folder, stops in (("whole", [3]), ("resumed", [1, 3])):
        for steps in stops:
            train.main(
                command(scenes, tmp_path / folder, *OBJECTS, f"training.train_steps={steps}", "training.lr=1e-2")
            )
    whole, resumed = (weights(tmp_path / folder, 3) for folder in ("whole", "resumed"))
    assert largest_difference(whole, resumed) == 0
    fixed = ["training.background=white", "training.train_steps=3", "training.lr=1e-2"]
    train.main(command(scenes, tmp_path / "white", *OBJECTS, *fixed))
    assert largest_difference(whole, weights(tmp_path / "white", 3)) > 0


def test_two_processes_resume_with_cameras_in_attention_random_backgrounds_inputs_and_sizes_drawn(tmp_path):
    scenes = write_toy_set(tmp_path / "scenes", alpha=True)
    options = ["model.transformer.camera_encoding=prope", "model.rays=camera", *OBJECTS, INPUTS, SIZES]
    for folder, stops in (("whole", [3]), ("resumed", [1, 3])):
        for steps in stops:
            given = command(scenes, tmp_path / folder, *options, f"training.train_steps={steps}", variant="prefix")
            result = run("train.py", *given, processes=2)
            assert result.returncode == 0, result.stderr
    whole, resumed = (weights(tmp_path / folder, 3) for folder in ("whole", "resumed"))
    assert largest_difference(whole, resumed) == 0


@pytest.mark.slow
def test_a_run_with_inputs_and_sizes_drawn_resumes_with_any_number_of_workers(scenes, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*DRAWN, "training.train_steps=3", "training.scheduler_type=constant", "training.grad_accum_steps=2"]
    options += ["training.pose_normalization=median"]
    train.main(command(scenes, whole, *options))
    train.main(command(scenes, parts, *options, "training.train_steps=1"))
    train.main(command(scenes, parts, *options, "training.num_workers=2"))
    assert largest_difference(weights(whole, 3), weights(parts, 3)) == 0
    trainer = build(scenes, tmp_path, *options)
    batches = trainer.loader.take(6)
    assert [batch.num_inputs for batch in batches] == [4, 4, 3, 3, 1, 1]
    widths = [batch.views.cameras.width for batch in batches]
    assert widths[:2] + widths[2:4] in ([16, 16, 32, 32], [32, 32, 16, 16]) and widths[4] == widths[5]


def test_a_finished_run_stays_as_it_is(scenes, tmp_path, caplog):
    caplog.set_level("INFO", "lvsm")
    train.main(command(scenes, tmp_path / "run"))
    assert "nothing to do" not in caplog.text
    before = (tmp_path / "run" / checkpoint_name(2)).read_bytes()
    for steps in (2, 1):
        caplog.clear()
        train.main(command(scenes, tmp_path / "run", f"training.train_steps={steps}"))
        (told,) = [text for text in caplog.messages if "nothing to do" in text]
        check_names(told, "step 2", f"training.train_steps={steps}")
    assert [path.name for path in numbered_checkpoints(tmp_path / "run")] == [checkpoint_name(2)]
    assert (tmp_path / "run" / checkpoint_name(2)).read_bytes() == before


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "large", "training.batch_size_per_gpu=4"))
    train.main(command(scenes, tmp_path / "small", "training.batch_size_per_gpu=1", "training.grad_accum_steps=4"))
    assert largest_difference(weights(tmp_path / "large", 2), weights(tmp_path / "small", 2)) < 2e-5


def test_two_processes_equal_one_with_twice_the_batch(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "one", "training.batch_size_per_gpu=4"))
    result = run("train.py", *command(scenes, tmp_path / "two", "training.grad_accum_steps=1"), processes=2)
    assert result.returncode == 0, result.stderr
    one, two = (read_checkpoint(tmp_path / name / checkpoint_name(2)) for name in ("one", "two"))
    assert one["samples"] == two["samples"] == 8
    # Both start from rank 0's weights: the seed of a lone process.
    assert largest_difference(one["model"], two["model"]) < 2e-5


@pytest.mark.slow
def test_accumulation_follows_from_the_total_batch(scenes, tmp_path, caplog):
    with caplog.at_level("INFO", "lvsm"):
        train.main(command(scenes, tmp_path / "run", "training.total_batch_size=8"))
    check_told(caplog.messages, "3 scenes", "8 an update", "batch 2", "processes 1", "accumulated 4")
    assert read_checkpoint(tmp_path / "run" / checkpoint_name(2))["samples"] == 16
    # What the run folder records can be run again.
    recorded = ["--config", str(tmp_path / "run" / "config.yaml")]
    train.main([*recorded, f"training.checkpoint_dir={tmp_path}/again"])
    assert largest_difference(weights(tmp_path / "run", 2), weights(tmp_path / "again", 2)) == 0


@pytest.mark.parametrize(
    ("override", "culprits"),
    [
        ("training.batch_size_per_gpu=3", ["training.total_batch_size=8", "batch_size_per_gpu", "3 x 1", "of 3"]),
        ("training.grad_accum_steps=2", ["training.grad_accum_steps", "training.total_batch_size"]),
    ],
)
def test_a_total_batch_that_cannot_be(scenes, tmp_path, override, culprits):
    with refused(*culprits):
        train.main(command(scenes, tmp_path / "run", "training.total_batch_size=8", override))


def test_an_update_follows_the_formula(scenes, tmp_path):
    """One update against a gradient step by hand: loss, clipping, AdamW's first step."""
    trainer = build(scenes, tmp_path, "training.lr=0.01", "training.weight_decay=0")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    numbers = trainer.update().numbers
    for name, parameter in trainer.model.named_parameters():
        step = (parameter.detach() - before[name]).abs()
        # Adam's first step has the learning rate's size wherever there is a gradient.
        assert step.max() <= 0.01 * 1.001, name
        assert step.max() > 0.005, name
    assert numbers["psnr"].item() == pytest.approx(-10 * np.log10(numbers["l2_loss"].item()), abs=1e-4)


def test_a_nan_in_the_batch_is_skipped_and_counted(scenes, tmp_path, monkeypatch):
    trainer = build(scenes, tmp_path)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    monkeypatch.setattr(F, "mse_loss", lambda renders, images: (renders * float("nan")).mean())
    assert trainer.update().numbers["skipped"].item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("normalization", ["all_views", "input_views"])
def test_the_number_of_inputs_varies_by_update_alone(scenes, tmp_path, normalization):
    frame = f"training.pose_normalization={normalization}"
    trainer = build(scenes, tmp_path, "training.dynamic_input_view_num=true", "training.grad_accum_steps=2", frame)
    seen = [next(trainer.loader) for _ in range(20)]
    # As drawn before the loader knew of updates.
    drawn = [int(np.random.default_rng([777, 2, update]).integers(2, 5)) for update in range(10)]
    assert [batch.num_inputs for batch in seen] == [count for count in drawn for _ in range(2)]
    assert set(drawn) == {2, 3, 4} and {batch.views.images.shape[1] for batch in seen} == {8}
    trainer.update()


def test_dynamic_inputs_need_room():
    def check(**values):
        values = {"dynamic_input_view_num": "true"} | values
        check_training(build_config({}, {f"training.{key}": value for key, value in values.items()}))

    check(num_views="8")
    check(target_has_input="false", num_target_views="4")
    with refused("training.num_input_views", "dynamic_input_view_num", 4, 3):
        check(num_views="3", num_target_views="3")
    with refused("training.num_target_views", 6, "num_views (8) leaves 4", "num_views=10"):
        check(target_has_input="false")


@pytest.mark.fast
@pytest.mark.parametrize("normalization", ["auto", "all_views", "input_views", "median"])
def test_a_scale_of_poses_that_nothing_reads_is_refused(normalization):
    values = {"training.pose_scale": "0.5", "training.pose_normalization": normalization}
    with refused("training.pose_scale", "0.5", "training.pose_normalization=none"):
        check_training(build_config({}, values))
    check_training(build_config({}, values | {"training.pose_normalization": "none"}))


def test_fine_tuning_takes_weights_alone(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "first"))
    source = tmp_path / "first" / checkpoint_name(2)
    fresh = ["training.reset_training_state=true", f"training.resume_ckpt={source}", "training.lr=1e-30"]
    train.main(command(scenes, tmp_path / "second", *fresh))
    state = read_checkpoint(tmp_path / "second" / checkpoint_name(2))
    assert state["step"] == 2 and state["samples"] == 4
    assert largest_difference(state["model"], weights(tmp_path / "first", 2)) < 1e-6


def test_training_starts_anew_from_half_precision_weights(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "first"))
    source = tmp_path / "x.safetensors"
    convert.main([str(tmp_path / "first"), str(source)])
    fresh = ["training.reset_training_state=true", f"training.resume_ckpt={source}", "training.lr=1e-30"]
    train.main(command(scenes, tmp_path / "second", *fresh))
    state = read_checkpoint(tmp_path / "second" / checkpoint_name(2))
    assert state["step"] == 2 and {value.dtype for value in state["model"].values()} == {torch.float32}
    halves = {name: value.half().float() for name, value in weights(tmp_path / "first", 2).items()}
    assert largest_difference(state["model"], halves) < 1e-6


def test_a_changed_weight_decay_holds_after_resuming(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "run", "training.checkpoint_every=1"))
    (tmp_path / "run" / checkpoint_name(2)).unlink()
    trainer = build(scenes, tmp_path, "training.weight_decay=0.5", "training.beta1=0.1")
    assert trainer.step == 1
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert trainer.optimizer.param_groups[0]["betas"] == (0.1, 0.95)
    assert len(trainer.optimizer.state) == len(list(trainer.model.parameters()))


def test_gradient_norms_by_part(scenes, tmp_path):
    numbers = build(scenes, tmp_path, "training.log_grad_norm_details=true").update().numbers
    parts = {name: value.item() for name, value in numbers.items() if name.startswith("grad_norm/")}
    assert "grad_norm/transformer" in parts
    total = np.sqrt(sum(value**2 for value in parts.values()))
    assert total == pytest.approx(numbers["grad_norm"].item(), rel=1e-5)


def test_resuming_another_runs_checkpoint_goes_on_from_its_step(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "first"))
    more = [f"training.resume_ckpt={tmp_path}/first", "training.train_steps=3"]
    train.main(command(scenes, tmp_path / "second", *more))
    assert [p.name for p in numbered_checkpoints(tmp_path / "second")] == [checkpoint_name(3)]


def test_weights_alone_cannot_be_resumed(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "first"))
    published = write_checkpoint(tmp_path / "published", 1, {"model": weights(tmp_path / "first", 2)})
    with refused(published, "weights alone", "training.reset_training_state=true"):
        train.main(command(scenes, tmp_path / "second", f"training.resume_ckpt={published}"))


@pytest.mark.parametrize(
    ("override", "culprit"),
    [
        ("training.amp_dtype=fp16", "training.amp_dtype=fp16"),
        ("training.target_has_input=false", "training.num_target_views"),
    ],
)
def test_settings_that_cannot_train_are_refused(scenes, tmp_path, override, culprit):
    overrides = [override, "training.use_amp=true"]
    if "target_has_input" in override:
        overrides.append("training.num_target_views=7")
    with refused(culprit):
        train.main(command(scenes, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


# On two processes, some of all kinds.
@pytest.mark.parametrize(("processes", "configs"), [(1, CONFIGS), (2, CONFIGS[::4])])
def test_every_configuration_trains_two_steps(processes, configs, scenes, tmp_path):
    result = run("-m", "tests.programs.run_configs", tmp_path, *configs, processes=processes)
    assert result.returncode == 0, result.stderr
    for config in configs:
        state = read_checkpoint(tmp_path / config.stem / checkpoint_name(2))
        accumulated = load_config(["--config", str(config)])[0].training.trainer.grad_accum_steps
        assert state["samples"] == 2 * 2 * processes * accumulated
        trained = read_config(tmp_path / config.stem / "config.yaml", []).model.image_tokenizer.image_size
        assert trained == ([16, 32] if "16x9" in config.stem else 16)
        lines = [json.loads(line) for line in (tmp_path / config.stem / "metrics.jsonl").read_text().splitlines()]
        assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.long
def test_compiled_training_on_two_processes_equals_plain(scenes, tmp_path):
    options = ["training.grad_accum_steps=2", "training.keep_activations=0.5", "training.train_steps=3"]
    options += ["model.transformer.n_layer=1"]
    for mode in ("off", "on"):
        arguments = command(scenes, tmp_path / mode, *options, f"training.compile={mode}")
        result = run("-m", "tests.programs.run_front", *arguments, processes=2)
        assert result.returncode == 0, result.stderr
    assert largest_difference(weights(tmp_path / "off", 3), weights(tmp_path / "on", 3)) < 1e-5


def test_going_on_with_another_frame_of_poses_is_said(scenes, tmp_path, caplog):
    train.main(command(scenes, tmp_path / "run"))
    assert "was trained with" not in caplog.text
    train.main(command(scenes, tmp_path / "run", "training.train_steps=3", "training.scene_scale_factor=2"))
    check_told(caplog.messages, "training.scene_scale_factor", 2.0, 1.35, tmp_path / "run" / checkpoint_name(2))


def test_fine_tuning_to_sizes_that_weights_have_not_seen_is_said(scenes, tmp_path, caplog):
    run_folder = tmp_path / "run"
    train.main(command(scenes, run_folder))
    fresh = ["training.reset_training_state=true", f"training.resume_ckpt={run_folder}", "training.train_steps=1"]
    train.main(command(scenes, tmp_path / "mixed", *fresh, SIZES))
    (told,) = [text for text in caplog.messages if "was trained with" in text]
    check_names(told, "training.image_sizes[0]", "[16, 32]", 16, run_folder / checkpoint_name(2))
    # Weights of both sizes have seen each of them.
    caplog.clear()
    fresh[1] = f"training.resume_ckpt={tmp_path}/mixed"
    train.main(command(scenes, tmp_path / "square", *fresh))
    wide = [f"model.{tokenizer}.image_size=[16,24]" for tokenizer in ("image_tokenizer", "target_pose_tokenizer")]
    assert "was trained with" not in caplog.text
    train.main(command(scenes, tmp_path / "wide", *fresh, *wide))
    check_told(caplog.messages, "model.image_tokenizer.image_size", "[16, 24]", "[16, 32], 16")


def test_going_on_with_another_seed_is_said(scenes, tmp_path, caplog):
    train.main(command(scenes, tmp_path / "run"))
    train.main(command(scenes, tmp_path / "run", "training.train_steps=3", "training.seed=5"))
    check_told(caplog.messages, "training.seed", 5, 777, tmp_path / "run" / checkpoint_name(2))


def test_what_validation_lacks_is_named_by_its_own_keys(scenes, tmp_path):
    index = tmp_path / "index.json"
    held_out = [f"training.validation_path={tmp_path}/none.txt", f"training.validation_index={index}"]
    arguments = command(scenes, tmp_path / "run", *held_out, "training.validate_every=1")
    with refused("training.validation_index", index):
        train.main(arguments)
    index.write_text('{"ghost": {"context": [0, 2], "target": [1]}}')
    with refused(tmp_path / "none.txt", "training.validation_path"):
        train.main(arguments)
    said = refusal(train.main, [*arguments, f"training.validation_path={scenes}"])
    check_names(said, index, "ghost", "training.validation_path")
    assert "inference." not in said

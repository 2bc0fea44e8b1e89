"""The average of weights: its formula, what leaves it alone, how it goes on, and who takes it."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

import inference
import train
from model import LVSM
from model.function import function_of
from model.weights import published_state
from tests.helpers import INDEX, small_model
from tests.messages import check_told, refused
from tests.processes import run
from tests.runs import build, evaluation_command, largest_difference, save_model, weights
from tests.runs import training_command as command
from training.averaging import AveragedWeights
from utils.checkpoint import checkpoint_name, read_checkpoint, write_checkpoint

DONE = torch.tensor(False)
SKIPPED = torch.tensor(True)
DECAY = "training.ema_decay=0.75"


def averaged(decay: float) -> tuple[LVSM, AveragedWeights]:
    model = small_model("decoder_only")
    average = AveragedWeights(model, decay)
    average.start()
    return model, average


def copies(state):
    return {name: value.detach().clone() for name, value in state.items()}


def change(model, seed):
    """Give the model other weights; returns them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return copies(published_state(model))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_first_weights_count_for_decay_to_the_k(decay):
    model, average = averaged(decay)
    first = copies(published_state(model))
    then = change(model, 1)
    for _ in range(20):
        average.update(DONE)
    share = decay**20
    expected = {name: share * first[name].double() + (1 - share) * then[name].double() for name in first}
    assert {value.dtype for value in average.state().values()} == {torch.float32}
    assert largest_difference(average.state(), expected) < 2e-6


def test_every_weight_counts_by_its_age():
    model, average = averaged(0.8)
    history = [copies(published_state(model))]
    for step in range(1, 8):
        history.append(change(model, step))
        average.update(DONE)
    shares = [0.8**7, *(0.2 * 0.8 ** (7 - step) for step in range(1, 8))]
    assert sum(shares) == pytest.approx(1)
    expected = {
        name: sum(share * state[name].double() for share, state in zip(shares, history, strict=True))
        for name in history[0]
    }
    assert largest_difference(average.state(), expected) < 2e-6


def test_it_is_the_average_of_torch():
    model, average = averaged(0.9)
    theirs = [value.clone() for value in average.state().values()]
    follow = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    for step in range(5):
        change(model, step)
        average.update(DONE)
        follow(theirs, list(published_state(model).values()), 0)
    assert largest_difference(average.state(), dict(zip(average.state(), theirs, strict=True))) < 1e-6


def test_a_skipped_update_leaves_every_bit():
    model, average = averaged(0.5)
    before = copies(average.state())
    change(model, 1)
    average.update(SKIPPED)
    assert largest_difference(average.state(), before) == 0
    average.update(DONE)
    assert largest_difference(average.state(), before) > 0.1


def test_no_number_is_read_on_the_way():
    """Numbers on the meta device cannot be read, so nothing here has a host wait for a GPU."""
    model = small_model("decoder_only").to("meta")
    average = AveragedWeights(model, 0.5)
    average.start()
    average.update(SKIPPED.to("meta"))
    with average.applied():
        assert all(value.is_meta for value in average.state().values())


def test_training_follows_the_formula_and_skips(scenes, tmp_path, monkeypatch):
    trainer = build(scenes, tmp_path, DECAY, "training.lr=0.01")
    before = copies(published_state(trainer.model))
    assert largest_difference(trainer.average.state(), before) == 0
    trainer.update()
    after = published_state(trainer.model)
    expected = {name: 0.75 * before[name] + 0.25 * after[name] for name in before}
    assert largest_difference(trainer.average.state(), expected) < 1e-6
    assert largest_difference(before, after) > 0.005
    then = copies(trainer.average.state())
    monkeypatch.setattr(F, "mse_loss", lambda renders, images: (renders * float("nan")).mean())
    assert trainer.update().numbers["skipped"].item() == 1
    assert largest_difference(trainer.average.state(), then) == 0


def test_applied_it_gives_the_weights_back():
    model, average = averaged(0.5)
    own = change(model, 1)
    average.update(DONE)
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert largest_difference(published_state(model), average.state()) == 0
        raise KeyboardInterrupt
    assert largest_difference(published_state(model), own) == 0


def check_resumed(last, undisturbed):
    """A run that went on left what one left that was not disturbed, and its average is not its weights."""
    resumed = read_checkpoint(last)
    for name in ("model", "ema"):
        assert largest_difference(resumed[name], undisturbed[name]) == 0
    assert largest_difference(resumed["model"], resumed["ema"]) > 0.005


def test_a_resumed_run_has_the_average_of_an_undisturbed_one(scenes, tmp_path):
    options = ["training.train_steps=3", "training.lr=0.01", "training.checkpoint_every=2"]
    plain, averaging = command(scenes, tmp_path / "off", *options), command(scenes, tmp_path / "on", *options, DECAY)
    last = tmp_path / "on" / checkpoint_name(3)
    train.main(plain)
    train.main(averaging)
    undisturbed = read_checkpoint(last)
    last.unlink()
    train.main(averaging)
    check_resumed(last, undisturbed)
    # Nothing else of a run knows of the average.
    off = read_checkpoint(tmp_path / "off" / checkpoint_name(3))
    assert largest_difference(off["model"], undisturbed["model"]) == 0
    assert undisturbed.keys() - off.keys() == {"ema"} and off.keys() < undisturbed.keys()


def test_two_processes_have_and_validate_the_same_average(scenes, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    held_out = [f"training.validation_path={scenes}", f"training.validation_index={tmp_path}/index.json"]
    options = [DECAY, "training.lr=0.01", "training.train_steps=3", *held_out, "training.validate_every=3"]
    # What normalises poses stands in the checkpoint, where the evaluation finds it.
    options += ["training.pose_normalization=median"]
    saving = ["training.checkpoint_every=2", "training.vis_every=100"]
    last = tmp_path / "run" / checkpoint_name(3)
    states = []
    for _ in range(2):
        last.unlink(missing_ok=True)
        result = run("train.py", *command(scenes, tmp_path / "run", *options, *saving), processes=2)
        assert result.returncode == 0, result.stderr
        states.append(read_checkpoint(last))
    check_resumed(last, states[0])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    whole, resumed = [line["validation/psnr"] for line in lines if "validation/psnr" in line]
    assert whole == resumed
    paths = [f"inference.view_idx_file_path={tmp_path}/index.json", f"inference_out_dir={tmp_path}/out"]
    psnr = {}
    for choice in ("auto", "trained"):
        asked = [*paths, "inference.metrics=[psnr]", f"training.weights={choice}"]
        inference.main(command(scenes, tmp_path / "run", *asked))
        psnr[choice] = json.loads((tmp_path / "out" / "results.json").read_text())["averages"]["psnr"]
    assert psnr["auto"] == pytest.approx(whole, abs=1e-4)
    assert abs(psnr["trained"] - whole) > 1e-3


@pytest.fixture
def place(tmp_path, scenes):
    """An evaluation of a checkpoint that holds an average beside its weights, and one (step 1) that does not."""
    model = save_model(tmp_path)
    average = {name: 0.5 * value for name, value in published_state(model).items()}
    content = {"model": published_state(model), "function": asdict(function_of(model)), "ema": average}
    write_checkpoint(tmp_path / "checkpoints", 2, content)
    (tmp_path / "index.json").write_text(json.dumps(INDEX))
    return tmp_path


def evaluate(place, scenes, *overrides):
    inference.main(evaluation_command(place, f"training.dataset_path={scenes}", *overrides))
    return json.loads((place / "out" / "results.json").read_text())


def test_an_evaluation_chooses_and_says_which_weights_it_took(place, scenes, caplog):
    caplog.set_level("INFO", "lvsm")
    found = {}
    for choice in ("trained", "auto", "ema"):
        caplog.clear()
        found[choice] = evaluate(place, scenes, f"training.weights={choice}")
        check_told(caplog.messages, place / "checkpoints" / checkpoint_name(2), f"training.weights={choice}")
    taken = {choice: result["provenance"]["config"]["training"]["weights"] for choice, result in found.items()}
    assert taken == {"trained": "trained", "auto": "ema", "ema": "ema"}
    psnr = {choice: result["averages"]["psnr"] for choice, result in found.items()}
    assert psnr["auto"] == psnr["ema"] != psnr["trained"]


def test_an_average_that_is_not_there_is_named(place, scenes, caplog):
    plain = place / "checkpoints" / checkpoint_name(1)
    with refused(plain, "training.weights=ema", "training.ema_decay"):
        evaluate(place, scenes, f"training.checkpoint_dir={plain}", "training.weights=ema")
    result = evaluate(place, scenes, f"training.checkpoint_dir={plain}")
    assert result["provenance"]["config"]["training"]["weights"] == "trained"
    assert not [line for line in caplog.messages if "average" in line]


@pytest.mark.parametrize("broken", ["nothing", {"image_tokenizer.1.weight": torch.ones(2)}])
def test_a_broken_average_is_named(place, scenes, broken):
    content = read_checkpoint(place / "checkpoints" / checkpoint_name(2)) | {"ema": broken}
    path = write_checkpoint(place / "checkpoints", 3, content)
    with refused(path):
        evaluate(place, scenes)
    with refused(path):
        build(scenes, place, f"training.resume_ckpt={path}", "training.reset_training_state=true")
    assert evaluate(place, scenes, "training.weights=trained")["averages"]["psnr"] > 0


def test_a_run_without_an_average_gets_one_from_its_weights(scenes, tmp_path, caplog):
    train.main(command(scenes, tmp_path / "run"))
    trainer = build(scenes, tmp_path, DECAY)
    check_told(caplog.messages, tmp_path / "run" / checkpoint_name(2), "average")
    assert trainer.step == 2
    assert largest_difference(trainer.average.state(), weights(tmp_path / "run", 2)) == 0
    caplog.clear()
    train.main(command(scenes, tmp_path / "run", DECAY, "training.train_steps=3"))
    train.main(command(scenes, tmp_path / "run", "training.train_steps=4"))
    check_told(caplog.messages, tmp_path / "run" / checkpoint_name(3), "training.ema_decay")
    assert "ema" not in read_checkpoint(tmp_path / "run" / checkpoint_name(4))


def test_a_broken_average_is_no_state_to_go_on_from(scenes, tmp_path):
    train.main(command(scenes, tmp_path / "run", DECAY))
    path = tmp_path / "run" / checkpoint_name(2)
    content = read_checkpoint(path)
    name = next(iter(content["ema"]))
    content["ema"][name][0] = float("nan")
    write_checkpoint(tmp_path / "run", 2, content)
    with refused(path, name):
        build(scenes, tmp_path, DECAY)


@pytest.mark.parametrize("choice", ["auto", "trained"])
def test_fine_tuning_starts_from_the_weights_that_are_chosen(place, scenes, choice):
    source = place / "checkpoints" / checkpoint_name(2)
    fresh = ["training.reset_training_state=true", f"training.resume_ckpt={source}", f"training.weights={choice}"]
    trainer = build(scenes, place, *fresh, DECAY)
    expected = read_checkpoint(source)["ema" if choice == "auto" else "model"]
    assert largest_difference(published_state(trainer.model), expected) == 0
    assert largest_difference(trainer.average.state(), expected) == 0


def test_an_average_to_validate_must_be_asked_for(scenes, tmp_path):
    held_out = [f"training.validation_path={scenes}", f"training.validation_index={tmp_path}/index.json"]
    arguments = [*held_out, "training.validate_every=1", "training.weights=ema"]
    with refused("training.weights=ema", "training.ema_decay"):
        train.main(command(scenes, tmp_path / "run", *arguments))

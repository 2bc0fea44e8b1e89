"""Selections, and the samplers that draw them."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import views
from data.dataset import DataConfig, TrainingDataset, ViewLoader
from data.scene import read_scene
from data.views import (
    SAMPLERS,
    LostFramesError,
    Selection,
    ViewConfig,
    ViewSampler,
    ViewSelectorConfig,
    check_view_config,
    choose_spread,
    choose_targets,
    choose_window,
    draw_usable,
    sample_any,
    sample_spread,
    sample_window,
    select_own,
    spread_inputs,
    spread_over,
    views_of_update,
)
from tests.helpers import write_toy_scene, write_toy_set
from tests.messages import refused

CONFIG = ViewConfig(num_views=6, num_target_views=4, view_selector=ViewSelectorConfig(8, 13))


@given(st.integers(0, 2**32 - 1), st.integers(9, 60), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_a_window_has_its_ends_first_and_the_rest_between(seed, num_frames, num_views):
    cfg = ViewSelectorConfig(8, 20)
    frames = choose_window(num_frames, num_views, cfg, np.random.default_rng(seed))
    first, last, between = frames[0], frames[1], frames[2:]
    assert first >= 0 and last < num_frames
    assert 8 <= last - first <= min(20, num_frames - 1)
    assert len(set(between)) == num_views - 2
    assert all(first < frame < last for frame in between)


def test_every_distance_and_start_occurs():
    rng = np.random.default_rng(0)
    windows = [choose_window(12, 2, ViewSelectorConfig(8, 20), rng) for _ in range(3000)]
    distances = [int(b - a) for a, b in windows]
    counts = np.bincount(distances)[8:]
    assert len(counts) == 4 and counts.min() > 650
    assert {int(a) for a, b in windows if b - a == 8} == {0, 1, 2, 3}


def check_alike(drawn, outcomes, bound):
    """All of the outcomes were drawn, and alike by chi-squared, of which 0.05 % lie above the bound."""
    counts = Counter(drawn)
    assert counts.keys() == set(outcomes)
    mean = sum(counts.values()) / len(counts)
    assert sum((count - mean) ** 2 / mean for count in counts.values()) < bound


def test_what_lies_between_the_ends_of_a_window_is_drawn_alike():
    rng = np.random.default_rng(0)
    windows = [choose_window(6, 4, ViewSelectorConfig(5, 5), rng) for _ in range(1200)]
    check_alike((tuple(frames) for frames in windows), ((0, 5, *pair) for pair in permutations([1, 2, 3, 4], 2)), 33)


def test_a_short_clip_has_no_window():
    assert choose_window(8, 2, ViewSelectorConfig(8, 20), np.random.default_rng(0)) is None
    assert choose_window(5, 6, ViewSelectorConfig(1, 20), np.random.default_rng(0)) is None


def test_targets_among_all_views_or_the_last_ones():
    rng = np.random.default_rng(0)
    drawn = [choose_targets(8, 6, True, rng) for _ in range(200)]
    assert all(len(set(t)) == 6 for t in drawn)
    assert {int(i) for t in drawn for i in t} == set(range(8))
    np.testing.assert_array_equal(choose_targets(5, 3, False, rng), [2, 3, 4])


def toy_scene(tmp_path, frames=14, lost=()):
    path = write_toy_scene(tmp_path, "a", frames)
    record = json.loads(path.read_text())
    for frame in lost:
        record["frames"][frame]["image_path"] = None
    path.write_text(json.dumps(record))
    return read_scene(path)


def test_a_selection_reads_its_inputs_then_its_targets():
    selection = Selection([0, 9], [4, 9, 2])
    assert selection.frames == [0, 9, 4, 9, 2]
    assert selection.target_positions().tolist() == [2, 3, 4]


def test_a_drawn_selection_keeps_its_order_and_finds_targets_among_its_inputs():
    selection = Selection([3, 12], [7, 3], [3, 12, 5, 7])
    assert selection.frames == [3, 12, 5, 7]
    assert selection.target_positions().tolist() == [3, 0]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("target_has_input", [True, False])
def test_a_sampler_is_a_function_of_scene_config_and_random_numbers(tmp_path, name, target_has_input):
    scene = toy_scene(tmp_path, lost=[5])
    cfg = ViewConfig(6, 2, 4, target_has_input, name, ViewSelectorConfig(8, 13))
    one, two = (SAMPLERS[name].draw(scene, cfg, np.random.default_rng(3)) for _ in range(2))
    assert one == two
    for seed in range(50):
        selection = SAMPLERS[name].draw(scene, cfg, np.random.default_rng(seed))
        assert selection.context == selection.frames[:2]
        assert len(set(selection.frames)) == 6 and len(set(selection.target)) == 4
        assert set(selection.target) <= set(selection.frames) <= set(range(14)) - {5}
        assert target_has_input or not set(selection.target) & set(selection.context)


def test_the_window_sampler_draws_a_window_then_targets(tmp_path):
    selection = sample_window(toy_scene(tmp_path), CONFIG, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    frames = choose_window(14, 6, CONFIG.view_selector, rng)
    targets = choose_targets(6, 4, True, rng)
    assert selection == Selection(frames[:2], [frames[n] for n in targets], frames)


@given(st.integers(0, 60), st.integers(1, 80), st.integers(1, 40))
def test_spread_numbers_lie_within_half_of_even_ones(first, distance, count):
    count = min(count, distance + 1)
    numbers = spread_over(first, first + distance, count)
    even = [first + number * distance / max(1, count - 1) for number in range(count)]
    assert len(set(numbers)) == count and numbers[0] == first and (count == 1 or numbers[-1] == first + distance)
    np.testing.assert_allclose(numbers, even, rtol=0, atol=0.5 + 1e-9)


def test_inputs_are_spread_over_windows_and_the_rest_is_drawn_from_between(tmp_path):
    """The probability of every window, and of all that may be drawn in one, against their plain formulas."""
    cfg = replace(CONFIG, num_views=5, num_input_views=3, target_has_input=False, num_target_views=2)
    rng = np.random.default_rng(0)
    draws = [choose_spread(10, cfg, rng) for _ in range(1600)]
    # Distances 8 and 9 alike, then the starts that each leaves.
    windows = Counter((draw[0], draw[2]) for draw in draws)
    assert windows.keys() == {(0, 8), (1, 9), (0, 9)}
    assert windows[0, 9] == pytest.approx(800, abs=80) and windows[0, 8] == pytest.approx(400, abs=70)
    whole = [draw for draw in draws if (draw[0], draw[2]) == (0, 9)]
    assert {tuple(draw[:3]) for draw in whole} == {(0, 4, 9)}
    pairs = Counter(tuple(sorted(draw[3:])) for draw in whole)
    check_alike(pairs.elements(), combinations([1, 2, 3, 5, 6, 7, 8], 2), 47)
    frames = choose_spread(14, cfg, np.random.default_rng(7))
    selection = sample_spread(toy_scene(tmp_path), cfg, np.random.default_rng(7))
    assert selection == Selection(frames[:3], frames[3:], frames)


def test_a_range_of_inputs_is_drawn_evenly_for_an_update():
    cfg = ViewConfig(14, [2, 8], 6, view_sampler="spread")
    drawn = [views_of_update(cfg, 3, update) for update in range(700)]
    counts = Counter(views.num_input_views for views in drawn)
    assert counts.keys() == set(range(2, 9)) == set(cfg.input_counts) and cfg.most_inputs == 8
    assert all(abs(count - 100) < 45 for count in counts.values())
    assert {views.num_views - views.num_input_views for views in drawn} == {6}
    assert drawn[7] == views_of_update(cfg, 3, 7) and drawn[:9] != [views_of_update(cfg, 4, n) for n in range(9)]
    assert views_of_update(CONFIG, 3, 7) is CONFIG
    assert views_of_update(replace(cfg, num_input_views=[4, 4]), 3, 7).num_input_views == 4


@pytest.mark.parametrize("target_has_input", [True, False])
def test_any_frames_are_drawn_alike_in_any_order_and_targets_among_them(tmp_path, target_has_input):
    """Of four usable frames three, two of them inputs; the target is one of the three, or the one that is no input."""
    scene = toy_scene(tmp_path, frames=5, lost=[1])
    cfg = ViewConfig(3, 2, 1, target_has_input, "any")
    rng = np.random.default_rng(0)
    drawn = [sample_any(scene, cfg, rng) for _ in range(2400)]
    assert all(selection.context == selection.drawn[:2] for selection in drawn)
    orders = list(permutations([0, 2, 3, 4], 3))
    outcomes = [(order, target) for order in orders for target in (order if target_has_input else order[2:])]
    check_alike(((tuple(one.drawn), *one.target) for one in drawn), outcomes, 117 if target_has_input else 52)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scene_of_too_few_frames_has_no_sample(tmp_path, name):
    assert SAMPLERS[name].draw(toy_scene(tmp_path, frames=5), CONFIG, np.random.default_rng(0)) is None
    with refused(re.compile("scene a|preprocessing"), error=LostFramesError):
        SAMPLERS[name].draw(toy_scene(tmp_path, lost=range(1, 13)), CONFIG, np.random.default_rng(0))


def test_frames_are_drawn_until_all_can_be_used():
    draws = iter([[1, 2], [3, 4], [5, 6]])
    assert draw_usable(lambda: next(draws), lambda frame: "odd" if frame < 4 else None) == [5, 6]
    assert draw_usable(lambda: None, lambda frame: None) is None
    with refused("frame 7", error=LostFramesError):
        draw_usable(lambda: [7], lambda frame: f"frame {frame} is gone")


def training_set(path, **changes):
    cfg = {"num_views": 6, "num_target_views": 4, "dataset_path": str(path), "view_selector": CONFIG.view_selector}
    return TrainingDataset(ViewLoader(DataConfig(**cfg | changes), image_size=16, patch_size=4), seed=0)


def first_frames(scene, cfg, rng):
    """A sampler of a researcher's own: the first frames, of which the last are targets."""
    frames = list(range(cfg.num_views))
    return Selection(frames[: cfg.num_input_views], frames[-cfg.num_target_views :], frames)


def test_a_new_sampler_is_one_row_of_the_table(tmp_path, monkeypatch):
    path = write_toy_set(tmp_path)
    with refused("view_sampler", "'first'", "window, spread, any"):
        training_set(path, view_sampler="first")
    monkeypatch.setitem(views.SAMPLERS, "first", ViewSampler(first_frames))
    sample = training_set(path, view_sampler="first")[0]
    assert sample.frames.tolist() == [0, 1, 2, 3, 4, 5] and sample.targets.tolist() == [2, 3, 4, 5]
    assert sample.num_inputs == 2


def test_training_draws_from_the_whole_clip(tmp_path):
    dataset = training_set(write_toy_set(tmp_path, frames=7), view_sampler="any")
    samples = [dataset[n] for n in range(12)]
    assert any(sample.frames[0] > sample.frames[1] for sample in samples)
    assert torch.equal(samples[3].views.images, dataset[3].views.images)


def test_the_window_is_not_checked_where_it_is_not_read():
    none = ViewSelectorConfig(9, 8)
    check_view_config(ViewConfig(view_sampler="any", view_selector=none))
    with refused("view_selector", "min_frame_dist", 9, "max_frame_dist", 8):
        check_view_config(ViewConfig(view_selector=none))


def test_clips_too_short_for_any_frames_are_an_error(tmp_path):
    path = write_toy_set(tmp_path, frames=5)
    with refused(path, "6 usable frames", "training.num_views=6"):
        training_set(path, view_sampler="any")[0]


def test_inputs_are_spread_over_the_cameras(tmp_path):
    # The toy camera slides evenly: both ends come first, then the middle.
    scene = read_scene(write_toy_scene(tmp_path, "scene", 9))
    assert spread_inputs(scene, 2) == [0, 8]
    assert spread_inputs(scene, 3) == [0, 4, 8]
    assert len(set(spread_inputs(scene, 9))) == 9
    with refused("scene", 9, 10):
        spread_inputs(scene, 10)


def test_inputs_are_spread_over_directions_where_the_camera_only_turns(tmp_path):
    path = write_toy_scene(tmp_path, "scene", 8)
    record = json.loads(path.read_text())
    for number, frame in enumerate(record["frames"]):
        angle = 0.3 * number
        frame["w2c"] = np.eye(4).tolist()
        frame["w2c"][0][:3] = [np.cos(angle), 0, np.sin(angle)]
        frame["w2c"][2][:3] = [-np.sin(angle), 0, np.cos(angle)]
    path.write_text(json.dumps(record))
    assert spread_inputs(read_scene(path), 2) == [0, 7]


def test_own_views_are_the_inputs_and_all_other_usable_frames(tmp_path):
    path = write_toy_scene(tmp_path, "scene", 6)
    record = json.loads(path.read_text())
    record["frames"][3]["image_path"] = None
    path.write_text(json.dumps(record))
    scene = read_scene(path)
    assert select_own(scene, 2) == Selection([0, 5], [1, 2, 4])
    assert select_own(scene, 2, [4, 1, 2]) == Selection([4, 1, 2], [0, 5])
    for wrong in ([0, 3], [6], [-1]):
        with refused("scene", wrong[-1]):
            select_own(scene, 2, wrong)
    with refused("scene", 1):
        select_own(scene, 2, [1, 2, 1])

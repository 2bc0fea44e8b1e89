"""What is recorded, what is played, and what happens where recording fails."""

import gc
import weakref
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch

from evaluation.recording import Places, Recordings, record_kernels
from evaluation.renderer import Renderer, finished_renderer
from model.lvsm import Prefix
from model.transformer import Attention
from tests.helpers import random_cameras, random_views, small_model
from utils.nests import tensors_of
from utils.precision import PrecisionConfig


class Recorder:
    """Stands in for CUDA graphs: runs the function on the arguments of every call, and counts."""

    def __init__(self, fails=False):
        self.fails = fails
        self.recorded = 0
        self.played = 0

    def __call__(self, function, *args):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1

        def play(*given):
            self.played += 1
            return function(*given)

        return play


def calls(recordings, sizes):
    """The results of a function called with tensors of so many numbers each."""
    return [recordings.call(torch.neg, torch.full((size,), float(n))) for n, size in enumerate(sizes)]


def test_what_is_called_again_and_again_is_recorded():
    recorder = Recorder()
    results = calls(Recordings(recorder), [2] * 6)
    assert [r.tolist() for r in results] == [[-n] * 2 for n in range(6)]
    assert (recorder.recorded, recorder.played) == (1, 3)


def test_every_shape_and_function_has_a_record_of_its_own():
    recorder = Recorder()
    recordings = Recordings(recorder)
    calls(recordings, [2, 3] * 4)
    assert (recorder.recorded, recorder.played) == (2, 2)
    assert recordings.call(torch.abs, torch.full((2,), -1.0)).tolist() == [1, 1]
    assert recorder.played == 2


def test_records_that_were_played_longest_ago_make_room(monkeypatch):
    monkeypatch.setattr("evaluation.recording._KEPT", 2)
    recorder = Recorder()
    recordings = Recordings(recorder)
    calls(recordings, [2] * 4 + [3] * 4 + [2] + [4] * 4 + [2])
    assert recorder.recorded == 3
    calls(recordings, [3])
    assert recorder.recorded == 4


def test_large_arguments_are_not_copied(monkeypatch):
    monkeypatch.setattr("evaluation.recording._LARGEST", 15)
    recorder = Recorder()
    calls(Recordings(recorder), [4] * 6)
    assert recorder.recorded == 0


def test_where_recording_fails_rendering_goes_on(caplog):
    recordings = Recordings(Recorder(fails=True))
    assert [r.tolist() for r in calls(recordings, [2] * 6)] == [[-n] * 2 for n in range(6)]
    assert len(caplog.records) == 1 and "not permitted" in caplog.text


@pytest.mark.parametrize("variant", ["decoder_only", "encoder_decoder", "prefix+prope", "cross"])
def test_a_renderer_records_what_it_encodes_and_renders(variant):
    recorder = Recorder()
    model = small_model(variant)
    plain = Renderer(model, PrecisionConfig(use_amp=False), torch.device("cpu"))
    recording = replace(plain, recordings=Recordings(recorder))
    for seed in range(5):
        inputs, targets = random_views(1, 2, seed=seed), random_cameras(1, 3, seed=10 + seed)
        renders = [each.render(each.encode(inputs), targets) for each in (plain, recording)]
        assert torch.equal(*renders)
    assert (recorder.recorded, recorder.played) == (2, 4)
    # Cameras of another size are tensors of the same shapes.
    half = replace(targets, height=8, width=12)
    assert recording.render(recording.encode(inputs), half).shape[-2:] == (8, 12)


@torch.no_grad()
@pytest.mark.parametrize("memory", [True, False])
def test_frames_for_viewers_are_prepared_where_there_is_memory(monkeypatch, joins, memory):
    monkeypatch.setattr("evaluation.renderer.record_kernels", lambda function, targets: function)
    if not memory:
        monkeypatch.setattr(Prefix, "prepare_frames", MagicMock(side_effect=torch.OutOfMemoryError))
    renderer = Renderer(small_model("prefix"), PrecisionConfig(use_amp=False), torch.device("cuda"))
    encoded, targets = renderer.encode(random_views(1, 2)), random_cameras(1, 1, seed=1)
    expected = renderer.render(encoded, targets)
    joins.clear()
    found = renderer.record(encoded, targets)(targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (len(joins) == 0) == memory


def test_where_nothing_is_recorded_any_thread_may_ask_for_frames():
    renderer = Renderer(small_model("prefix"), PrecisionConfig(use_amp=False), torch.device("cpu"))
    encoded = renderer.encode(random_views(1, 2))
    frame = renderer.record(encoded, random_cameras(1, 1))
    # Of another size, too.
    assert frame(random_cameras(1, 1, height=8)).shape[-2:] == (8, 24)
    assert frame.args == (encoded,)


@pytest.mark.parametrize("variant", ["decoder_only", "prefix"])
def test_norms_of_a_finished_model_are_prepared(variant):
    model = finished_renderer(small_model(variant), PrecisionConfig(), torch.device("cpu")).model
    assert all(module._shares is not None for module in model.modules() if isinstance(module, Attention))


def test_a_scene_that_was_not_copied_whole_is_copied_again():
    model = small_model("prefix")
    first, second = (model.encode(random_views(1, 2, seed=seed)) for seed in range(2))
    with torch.no_grad():
        places = Places((first,))
        with pytest.raises(ValueError, match="shorter"):
            places.fill((replace(second, layers=second.layers[:1]),))
        places.fill((first,))
    for kept, tensor in zip(tensors_of(places.nests), tensors_of(first), strict=True):
        assert torch.equal(kept, tensor)


def test_a_record_plays_with_what_it_is_given(no_graphs):
    recorded = []
    play = record_kernels(lambda x: recorded.append(x) or x, torch.zeros(2))
    play(torch.ones(2))
    assert recorded[-1].tolist() == [1, 1]


def test_no_garbage_is_collected_while_kernels_are_recorded(no_graphs):
    """An older record among it would be freed, which a driver forbids then: the new record would be lost."""
    collects = []
    record_kernels(lambda x: collects.append(gc.isenabled()) or x, torch.zeros(2))
    *warm, recorded = collects
    assert all(warm) and not recorded and gc.isenabled()


def test_encoded_scenes_are_copied_once_and_all_else_each_time():
    model, cameras = small_model("prefix"), random_cameras(1, 3, seed=1)
    first, second = (model.encode(random_views(1, 2, seed=seed)) for seed in range(2))
    with torch.no_grad():
        places = Places((first, cameras))
    read = (tensors_of(places.nests[0]), tensors_of(places.nests[1]))
    kept, seen = (next(tensors) for tensors in read)

    def copied(scenes):
        kept.zero_()
        seen.zero_()
        with torch.no_grad():
            places.fill((scenes, cameras))
        assert torch.equal(seen, next(tensors_of(cameras)))
        return torch.equal(kept, next(tensors_of(scenes)))

    assert [copied(scenes) for scenes in (first, second, second, first)] == [False, True, False, True]
    # A scene that lies where another lay is another one; and places keep none alive.
    gone = weakref.ref(first)
    del first
    assert gone() is None and copied(model.encode(random_views(1, 2)))

import gc
import weakref

import pytest

import train
from tests.runs import training_command
from utils import garbage
from utils.garbage import collection_spares, no_collection


class Knot:
    def __init__(self):
        self.itself = self


@pytest.fixture
def thawed():
    """The garbage collector as a program finds it; what the tests froze is frozen again."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def knot():
    """What only garbage collection can free."""
    return weakref.ref(Knot())


def test_what_lives_is_passed_over_until_the_end(thawed):
    with collection_spares() as spare:
        garbage_before = knot()
        kept = Knot()
        spared = weakref.ref(kept)
        spare()
        assert garbage_before() is None
        del kept
        later = knot()
        spare()
        gc.collect()
        assert later() is None and spared() is not None and gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert spared() is None


def test_what_python_itself_begins_with_frozen_is_nobodys(thawed, monkeypatch):
    frozen = gc.get_freeze_count
    # More than the 375 of Python 3.12.
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 1000)
    with collection_spares() as spare:
        spare()
        assert frozen() > 1000
    assert frozen() == 0


def test_nothing_is_spared_unasked_nor_where_others_did_so():
    before = gc.get_freeze_count()
    with collection_spares() as spare:
        assert gc.get_freeze_count() == before
        spare()
        assert gc.get_freeze_count() == before >= garbage._FROZEN_BY_OTHERS
    assert gc.get_freeze_count() == before


def test_an_error_ends_it_too(thawed):
    with pytest.raises(KeyError), collection_spares() as spare:
        spare()
        raise KeyError
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_waits_and_then_is_collected_as_before(monkeypatch, collects):
    state = [collects]
    monkeypatch.setattr(gc, "isenabled", lambda: state[-1])
    monkeypatch.setattr(gc, "enable", lambda: state.append(True))
    monkeypatch.setattr(gc, "disable", lambda: state.append(False))
    with pytest.raises(KeyError), no_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled() == collects


def test_training_spares_what_the_first_update_made(thawed, scenes, tmp_path, monkeypatch):
    frozen = []
    advance = train.Trainer._advance

    def watched(trainer, bar):
        frozen.append(gc.get_freeze_count() > 0)
        return advance(trainer, bar)

    monkeypatch.setattr(train.Trainer, "_advance", watched)
    train.main(training_command(scenes, tmp_path / "run"))
    assert frozen == [False, True] and gc.get_freeze_count() == 0

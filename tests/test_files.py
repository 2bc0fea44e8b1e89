import errno
import os

import pytest
import torch

from utils.checkpoint import checkpoint_name, find_checkpoint, numbered_checkpoints, read_checkpoint, write_checkpoint
from utils.errors import InputError
from utils.files import atomic_path, check_plain_name, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path, "file") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "0f3.b", "A_b-c", "00000000de5c01f4"])
def test_plain_names(name):
    assert check_plain_name(name, "here") == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a\\b", "a b", "a\n", "<b>", "a" * 201, None, 3])
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match="here: .* is not a plain name"):
        check_plain_name(name, "here")


def test_the_newest_checkpoint_is_meant(tmp_path):
    for step in (20, 1000, 3):
        write_checkpoint(tmp_path, step, {"model": {"a": torch.tensor([float(step)])}})
    assert checkpoint_name(1000) == "ckpt_0000000000001000.pt"
    assert [p.name for p in numbered_checkpoints(tmp_path)] == [checkpoint_name(s) for s in (3, 20, 1000)]
    assert find_checkpoint(tmp_path, "training.checkpoint_dir").name == checkpoint_name(1000)
    assert find_checkpoint(tmp_path / checkpoint_name(3), "training.checkpoint_dir").name == checkpoint_name(3)
    assert read_checkpoint(find_checkpoint(tmp_path, "training.checkpoint_dir"))["model"]["a"].item() == 1000


def test_a_folder_may_hold_one_published_file(tmp_path):
    torch.save({"model": {}}, tmp_path / "scene_decoder_only_256.pt")
    assert find_checkpoint(tmp_path, "training.checkpoint_dir").name == "scene_decoder_only_256.pt"
    torch.save({"model": {}}, tmp_path / "scene_encoder_decoder_256.pt")
    with pytest.raises(InputError, match="several checkpoints"):
        find_checkpoint(tmp_path, "training.checkpoint_dir")


@pytest.mark.parametrize("what", ["missing", "empty folder"])
def test_no_checkpoint_is_an_error(tmp_path, what):
    with pytest.raises(InputError, match="no checkpoint"):
        find_checkpoint(tmp_path if what == "empty folder" else tmp_path / "nothing", "training.checkpoint_dir")


def test_bad_checkpoints_are_named(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"model": {"a": torch.zeros(1000)}})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be read \(truncated\?\): .*ckpt_0+1.pt"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a checkpoint"):
        read_checkpoint(path)


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path):
    torch.save({"model": {}}, tmp_path / ".ckpt_0000000000000009.ab.tmp.pt")
    with pytest.raises(InputError, match="no checkpoint"):
        find_checkpoint(tmp_path, "training.checkpoint_dir")


def test_files_of_old_releases_load(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt")["model"]["a"].tolist() == [1, 1]


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": {}, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_keeps_the_folder_as_it_was(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, {"model": {}})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, {"model": {}})
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint_name(1)]

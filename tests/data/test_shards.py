"""Preprocessing split into shards, and their lists joined."""

import json
import shutil
import subprocess
import sys

import pytest

import preprocess_data
from data.scene import read_scene_list
from data.shards import Shard
from tests.chunks import contents, jpeg, make_clip, names_in, preprocess, preprocess_with_losses, write_chunks
from tests.helpers import ROOT
from tests.messages import check_names, refusal, refused

KEYS = "abcdefgh"


def chunks(tmp_path, *more):
    clips = [make_clip(key, 2) for key in KEYS]
    return write_chunks(tmp_path, clips[:4], [*clips[4:], *more])


def shard(number, count=3):
    return ["--num_shards", str(count), "--shard", str(number)]


def merge(out):
    preprocess_data.main(["--merge", "--output_dir", str(out), "--mode", "train"])


def refused_merge(out):
    return refusal(preprocess_data.main, ["--merge", "--output_dir", str(out), "--mode", "train"])


def write_shards(tmp_path, *numbers, count=3):
    base, out = chunks(tmp_path), tmp_path / "out"
    for number in numbers:
        preprocess(base, out, *shard(number, count))
    return base, out


def test_every_clip_is_in_one_shard_whatever_else_there_is():
    keys = [f"{number:016x}" for number in range(1000)]
    for count in (1, 2, 7):
        shares = [[key for key in keys if Shard(number, count).holds(key)] for number in range(count)]
        assert sorted(key for share in shares for key in share) == keys
        assert min(map(len, shares)) > 800 / count
    # Machines that run other releases split alike.
    assert [key for key in KEYS if Shard(0, 3).holds(key)] == ["a", "c", "d", "e", "h"]


@pytest.mark.parametrize("pack", [(), ("--pack",)])
def test_shards_together_are_the_whole_set(tmp_path, pack):
    base, out = chunks(tmp_path), tmp_path / "out"
    preprocess(base, tmp_path / "whole", *pack)
    for number in (2, 0, 1):
        preprocess(base, out, *shard(number), *pack)
    merge(out)
    assert names_in(out) == list(KEYS)
    assert all(path.is_file() for path in read_scene_list(out / "train" / "full_list.txt"))
    files = {}
    for number in range(3):
        files |= contents(out / "train" / f"shard_{number}_of_3")
    del files["full_list.txt"]
    whole = contents(tmp_path / "whole" / "train")
    assert whole == files | {"full_list.txt": whole["full_list.txt"]}


def test_a_shard_goes_on_where_it_stopped_and_merging_again_changes_nothing(tmp_path, capsys):
    base, out = write_shards(tmp_path, 0, 1, 2)
    merge(out)
    before = contents(out)
    capsys.readouterr()
    preprocess(base, out, *shard(1))
    assert "0 clips written" in capsys.readouterr().out
    merge(out)
    assert contents(out) == before


def test_a_shard_without_clips_is_one(tmp_path):
    base = write_chunks(tmp_path, [make_clip("a")])
    for number in range(3):
        preprocess(base, tmp_path / "out", *shard(number))
    merge(tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a"]


def test_losses_of_all_shards_are_told_once(tmp_path):
    damaged = make_clip("x", images=[jpeg(), b"nothing"])
    base, out = chunks(tmp_path, damaged, make_clip(7)), tmp_path / "out"
    whole = preprocess_with_losses(base, tmp_path / "whole")
    for number in range(3):
        with refused(out / "train" / f"shard_{number}_of_3" / "lost.json"):
            preprocess(base, out, *shard(number))
    check_names(refused_merge(out), len(whole), out / "train" / "lost.json")
    assert json.loads((out / "train" / "lost.json").read_text()) == whole
    assert names_in(out) == [*KEYS, "x"]


def test_missing_and_unfinished_shards_are_named(tmp_path):
    _, out = write_shards(tmp_path, 1)
    (out / "train" / "shard_2_of_3").mkdir()
    check_names(refused_merge(out), "shard_0_of_3", "shard_2_of_3", out / "train")
    assert not (out / "train" / "full_list.txt").exists()


def test_nothing_to_merge_is_said(tmp_path):
    check_names(refused_merge(tmp_path), tmp_path / "train", "--num_shards")


def test_a_scene_of_another_shard_is_named(tmp_path):
    _, out = write_shards(tmp_path, 0, 1, 2)
    root = out / "train"
    shutil.copytree(root / "shard_1_of_3", root / "shard_0_of_3", dirs_exist_ok=True)
    check_names(refused_merge(out), "shard_0_of_3")
    assert not (root / "full_list.txt").exists()


def test_shards_of_different_numbers_are_named(tmp_path):
    base, out = write_shards(tmp_path, 0, 1, 2)
    with refused("shard_0_of_3", "--num_shards"):
        preprocess(base, out, *shard(0, 2))
    (out / "train" / "shard_1_of_2").mkdir()
    check_names(refused_merge(out), "shard_1_of_2")


def test_a_set_is_whole_or_in_shards(tmp_path):
    base, out = write_shards(tmp_path, 0)
    with refused("shard_0_of_3"):
        preprocess(base, out)
    preprocess(base, tmp_path / "whole")
    with refused(tmp_path / "whole" / "train"):
        preprocess(base, tmp_path / "whole", *shard(0))


@pytest.mark.slow
def test_a_shard_that_is_being_written_is_not_merged(tmp_path):
    _, out = write_shards(tmp_path, 0, 1, 2)
    held = out / "train" / "shard_1_of_3"
    command = [sys.executable, "-m", "tests.programs.run_lock", str(held)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        check_names(refused_merge(out), held, holder.pid)
        holder.stdin.close()
    merge(out)


def test_a_list_that_leads_elsewhere_is_named(tmp_path):
    _, out = write_shards(tmp_path, 0, 1, 2)
    path = out / "train" / "shard_1_of_3" / "full_list.txt"
    path.write_text("../shard_0_of_3/metadata/b.json\n")
    check_names(refused_merge(out), path)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--num_shards", "3"], "--shard"),
        (["--shard", "0"], "--num_shards"),
        (["--num_shards", "0", "--shard", "0"], "--num_shards"),
        (["--num_shards", "3", "--shard", "3"], "--shard"),
        (["--num_shards", "3", "--shard", "-1"], "--shard"),
    ],
)
def test_shards_that_there_are_not_are_refused(tmp_path, arguments, culprit):
    with refused(culprit):
        preprocess(chunks(tmp_path), tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()

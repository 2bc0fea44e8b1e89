"""Evaluations side by side: what is matched, refused and written. test_comparison_browser.py drives the page."""

import json
import math
import os
import re
from pathlib import Path

import pytest

import inference
from evaluation.compare import average, compare_runs, differing_keys, find_caveats, find_omissions, group_by_views
from evaluation.pages.comparison import comparison_data, relative_address, write_comparison
from evaluation.pages.report import SceneRecord
from evaluation.runs import make_labels, read_run, read_scene
from evaluation.scene_files import PICTURE_FILES, write_metrics
from tests.helpers import write_run
from tests.messages import check_error_line, check_names, check_told, refusal, refused
from tests.processes import run
from utils.errors import InputError
from utils.files import write_text
from utils.text import shown

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two runs with scenes b and c in common; the second is better by 1 dB in b and by 3 dB in c."""
    first = write_run(
        tmp_path / "first", {"a": 10.0, "b": 20.0, "c": 30.0}, checkpoint="x.pt", config={"lr": 1, "d": 2}
    )
    second = write_run(tmp_path / "second", {"c": 33.0, "b": 21.0, "d": 5.0, "e": 5.0}, config={"lr": 2, "d": 2})
    return [first, second]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def test_scenes_in_common_are_compared(folders):
    comparison = compare_runs(folders)
    assert [run.label for run in comparison.runs] == ["first", "second"]
    assert comparison.scenes == ["b", "c"] and comparison.metrics == ["psnr", "ssim", "lpips"]
    assert comparison.values("psnr") == [[20.0, 30.0], [21.0, 33.0]]
    assert find_caveats(comparison, []) == []
    omissions = find_omissions(comparison)
    assert omissions == ["first has 1 scene beyond those in common.", "second has 2 scenes beyond those in common."]


def test_averages_are_over_the_scenes_in_common(folders):
    first, second = average(compare_runs(folders), "psnr")
    assert (first.mean, first.difference, first.error) == (25.0, None, None)
    assert (second.mean, second.difference) == (27.0, 2.0)
    assert second.error == pytest.approx(math.sqrt(2) / math.sqrt(2))  # deviation of 1 and 3 over the root of 2


def test_a_scene_without_a_number_counts_for_no_run(folders):
    edit(folders[1] / "results.json", lambda results: results["scenes"]["c"].update(psnr=math.nan))
    edit(folders[1] / "c" / "metrics.json", lambda content: content["summary"].update(psnr=None))
    comparison = compare_runs(folders)
    assert comparison.values("psnr") == [[20.0], [21.0]]
    assert [one.mean for one in average(comparison, "psnr")] == [20.0, 21.0]
    assert average(comparison, "psnr")[1].error is None
    assert average(comparison, "ssim")[1].mean == pytest.approx((21 + 33) / 100)
    data = comparison_data(comparison, folders[0].parent / "out")
    assert [scene["values"][1][0] for scene in data["scenes"]] == [21.0, None]


def test_a_metric_that_a_run_lacks_is_left_out_and_named(folders):
    third = write_run(folders[0].parent / "third", {"b": 1.0, "c": 2.0}, leave_out=["lpips", "ssim"])
    comparison = compare_runs([*folders, third])
    assert comparison.metrics == ["psnr"]
    assert find_omissions(comparison)[-2:] == [
        "ssim is left out: third lacks it.",
        "lpips is left out: third lacks it.",
    ]


def test_a_metric_that_no_model_has_a_part_in_is_left_out(folders):
    for folder in folders:
        for name in "bc":
            edit(folder / "results.json", lambda results: results["scenes"][name].update(psnr_nearest_input=9.0))  # noqa: B023
            edit(folder / name / "metrics.json", lambda content: content["summary"].update(psnr_nearest_input=9.0))
    comparison = compare_runs(folders)
    assert comparison.metrics == ["psnr", "ssim", "lpips"]
    assert find_omissions(comparison)[-1] == "psnr_nearest_input is left out: it is the same in every run."


def test_without_any_metric_there_are_pictures(folders):
    for folder in folders:
        edit(folder / "results.json", lambda results: {"scenes": {name: {} for name in results["scenes"]}})
        for path in folder.glob("*/metrics.json"):
            path.unlink()
    data = comparison_data(compare_runs(folders), folders[0].parent)
    assert data["metrics"] == data["averages"] == []
    assert data["scenes"][0] == {
        "name": "b",
        "values": [[], []],
        "viewValues": [[], []],
        "groups": [[[0, 1], [], []]],
        "videos": [False, False],
    }


def test_only_what_differs_is_listed(folders):
    differing = differing_keys(compare_runs(folders).runs)
    assert list(differing.items()) == [("config.lr", ["1", "2"]), ("checkpoint", ["x.pt", None])]


def test_other_indices_and_other_pictures_are_said(tmp_path):
    sizes = ({"config": {"training": {"square_crop": crop}}, "index_sha256": str(crop)} for crop in (True, False))
    runs = [write_run(tmp_path / str(i), {"a": 1.0}, **origin) for i, origin in enumerate(sizes)]
    assert find_caveats(compare_runs(runs), []) == [
        "The runs used different evaluation indices.",
        "The ground truth was prepared differently (config.training.square_crop).",
    ]


@pytest.mark.parametrize(("copies", "said"), [((17.0, 17.0), False), ((17.0, 17.1), True), ((17.0, None), True)])
def test_other_settings_that_gave_the_same_pictures_are_not_said(tmp_path, copies, said):
    runs = []
    for patch, copy in zip((8, 16), copies, strict=True):
        origin = {"config": {"model": {"image_tokenizer": {"patch_size": patch}}}}
        folder = write_run(tmp_path / str(patch), {"a": 20.0, "b": 21.0}, **origin)
        results = json.loads((folder / "results.json").read_text())
        for scene in results["scenes"].values():
            scene |= {} if copy is None else {"psnr_nearest_input": copy}
        (folder / "results.json").write_text(json.dumps(results))
        runs.append(folder)
    caveats = find_caveats(compare_runs(runs), [])
    assert any("config.model.image_tokenizer.patch_size" in caveat for caveat in caveats) == said


def test_other_views_are_said(folders):
    write_run(folders[1], {"b": 21.0, "c": 33.0}, views=(12, 31))
    data = comparison_data(compare_runs(folders), folders[0].parent)
    assert data["scenes"][0]["groups"] == [[[0], [12, 30], [3, 40]], [[1], [12, 31], [3, 40]]]
    assert "Views differ between runs in 2 scenes (b, c), marked below." in data["caveats"]


def a_record(views: list[int], context: list[int]) -> SceneRecord:
    return SceneRecord("a", "a", {}, [{"view": view} for view in views], context, False)


def test_runs_of_a_scene_are_grouped_by_what_is_known_of_their_views():
    records = [a_record([1, 2], []), a_record([], []), a_record([1, 2], [0, 9]), a_record([1, 2], [0, 8])]
    groups = group_by_views(records)
    assert [(group.runs, group.views, group.context) for group in groups] == [
        ([0, 1, 2], [1, 2], [0, 9]),
        ([3], [1, 2], [0, 8]),
    ]
    assert len(group_by_views([a_record([1, 2], []), a_record([2, 1], [])])) == 2


def test_labels_are_as_short_as_tells_runs_apart():
    assert make_labels([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert make_labels([Path("/x/a/test"), Path("/x/b/test"), Path("/x/b/other")]) == ["a/test", "b/test", "b/other"]
    assert make_labels([Path("/a"), Path("/a/a")]) == ["//a", "a/a"]


@pytest.mark.parametrize(
    ("folder", "address"),
    [
        ("/w/run", "../run"),
        ("/w/out/run", "run"),
        ("/w", ".."),
        ("/w/javascript:alert(1)", "../javascript%3Aalert%281%29"),
        (f"/w/{HOSTILE}/a b", "../%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/a%20b"),
        ("/w/%2e%2e/?#", "../%252e%252e/%3F%23"),
        ("/w/\udcff", "../%FF"),
    ],
)
def test_addresses_of_runs_are_relative_and_encoded(folder, address):
    assert relative_address(Path(folder), Path("/w/out")) == address


def test_data_of_the_page(folders):
    (folders[1] / "b" / "rendered_video.mp4").touch()
    (folders[1] / "index.html").touch()
    data = comparison_data(compare_runs(folders), folders[0].parent / "out")
    assert data["runs"] == [
        {"label": "first", "address": "../first", "page": False},
        {"label": "second", "address": "../second", "page": True},
    ]
    assert data["averages"][0] == [[25.0, None, None], [27.0, 2.0, 1.0]]
    assert data["differing"] == [["config.lr", ["1", "2"]], ["checkpoint", ["x.pt", None]]]
    assert data["scenes"][0] == {
        "name": "b",
        "values": [[20.0, 0.4, 0.6], [21.0, 0.42, 0.58]],
        "viewValues": [[[20.0, 0.4, 0.6]] * 2, [[21.0, 0.42, 0.58]] * 2],
        "groups": [[[0, 1], [12, 30], [3, 40]]],
        "videos": [False, True],
    }


def test_texts_cannot_break_out_of_the_page(tmp_path):
    hostile = f"</script>{HOSTILE}\u2028"
    places = [tmp_path / HOSTILE, tmp_path / "plain"]
    for i, place in enumerate(places):
        write_run(place, {"a": 1.0 + i}, **{hostile: f"{hostile}{i}"})
    page = write_comparison(tmp_path / "out", hostile, compare_runs(places)).read_text(encoding="utf-8")
    assert HOSTILE not in page and "\u2028" not in page.split("<title>")[1].split("</title>")[1].split("<h1>")[0]
    [text] = re.findall(r'<script id="report-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    assert data["runs"][0]["label"] == HOSTILE
    assert data["differing"] == [[hostile, [f"{hostile}0", f"{hostile}1"]]]


@pytest.mark.parametrize("name", [HOSTILE, "../../etc", "/etc", "..", "", "a/b", "a\\b"])
def test_a_scene_that_is_no_plain_name_is_refused(folders, name):
    edit(folders[1] / "results.json", lambda results: results["scenes"].update({name: {"psnr": 1.0}}))
    with refused(folders[1] / "results.json", shown(name)):
        compare_runs(folders)


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("{", []),
        ("[]", []),
        ("{}", []),
        ('{"scenes": []}', []),
        ('{"scenes": {}, "provenance": 3}', []),
        ('{"scenes": {"b": 3}}', ["scene b"]),
        ('{"scenes": {"b": {"psnr": "<b>"}}}', ["scene b", "psnr is '<b>'"]),
        ('{"scenes": {"b": {"psnr": true}}}', ["scene b", "psnr is True"]),
    ],
)
def test_broken_results_are_named(folders, content, culprits):
    (folders[1] / "results.json").write_text(content)
    with refused(folders[1] / "results.json", *culprits):
        compare_runs(folders)


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ("{", []),
        ("3", []),
        ('{"summary": {}}', []),
        ('{"summary": {}, "per_view": [3]}', ["frame number"]),
        ('{"summary": {}, "per_view": [{"view": "<b>"}]}', ["frame number"]),
        ('{"summary": {}, "per_view": [], "context": ["<b>"]}', ["frame number"]),
        ('{"summary": {}, "per_view": [{"view": 3, "psnr": "<b>"}]}', ["frame 3", "psnr is '<b>'"]),
        ('{"summary": {"psnr": 3.0}, "per_view": []}', ["psnr 3.0", "results.json gives 21.0"]),
    ],
)
def test_broken_metrics_of_a_scene_are_named(folders, content, culprits):
    path = folders[1] / "b" / "metrics.json"
    path.write_text(content)
    with refused(path, *culprits):
        read_scene(read_run(folders[1], "second"), "b")


def test_metrics_of_a_scene_that_are_no_file_are_named(folders):
    path = folders[1] / "b" / "metrics.json"
    run = read_run(folders[1], "second")
    path.unlink()
    assert not read_scene(run, "b").per_view
    path.symlink_to("nowhere")
    with refused(path):
        read_scene(run, "b")
    path.unlink()
    path.mkdir()
    with refused(path):
        read_scene(run, "b")


def test_what_cannot_be_compared_is_refused(folders, monkeypatch):
    place = folders[0].parent
    monkeypatch.chdir(place)
    (place / "link").symlink_to(folders[0])
    write_run(place / "other", {"z": 1.0})
    for arguments, culprits in (
        ([folders[0]], ["--compare", "two"]),
        ([folders[0], "first"], ["first", "twice"]),
        ([folders[0], "link"], ["link", "twice"]),
        (["first", "none"], ["none/results.json", "inference_out_dir"]),
        (["first", "other"], ["first has 3 scenes", "other has 1 scene"]),
        (["first", "second", "--output", "first"], ["first is an evaluation", "--output"]),
    ):
        check_names(refusal(inference.main, ["--compare", *map(str, arguments)]), *culprits)
    assert not list(place.glob("**/index.html")) and not (place / "comparison").exists()


def test_a_refused_page_leaves_the_old_one(folders):
    out = folders[0].parent / "out"
    before = write_comparison(out, "Two", compare_runs(folders)).read_text()
    (folders[1] / "c" / "metrics.json").write_text("{")
    with pytest.raises(InputError):
        write_comparison(out, "Two", compare_runs(folders))
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text() == before


def test_the_command(folders):
    place = folders[0].parent
    done = run("inference.py", "--compare", *folders, "--output", place / "page")
    assert done.returncode == 0 and f"page: {place}/page/index.html" in done.stderr
    failed = run("inference.py", "--compare", folders[0], place / "none")
    assert failed.stderr.count("\n") == 1
    check_error_line(failed, f"{place}/none/results.json")


def test_the_page_refers_to_nothing_outside(folders):
    page = write_comparison(folders[0].parent / "out", "Two", compare_runs(folders)).read_text()
    assert not re.findall(r"https?://", page)
    assert "innerHTML" not in page and "default-src 'none'" in page
    assert os.fspath(folders[0].parent) not in page


def test_evaluations_note_their_input_frames(tmp_path):
    record = SceneRecord("a", "a", {"psnr": 1.0}, [{"view": 4, "psnr": 1.0}], [0, 9], False)
    for name in PICTURE_FILES:
        write_text(tmp_path / "a" / name, "a picture")
    write_metrics(tmp_path, record, "id")
    write_run(tmp_path, {}, leave_out=[])
    edit(tmp_path / "results.json", lambda results: results["scenes"].update(a={"psnr": 1.0}))
    assert read_scene(read_run(tmp_path, "run"), "a") == record


def test_pictures_that_are_not_there_are_counted_and_the_first_is_named(folders, caplog):
    arguments = ["--compare", *map(str, folders), "--output", str(folders[0].parent / "page")]
    inference.main(arguments)
    everywhere = len(folders) * len(compare_runs(folders).scenes)
    check_told(caplog.messages, f"{2 * everywhere} pictures")
    caplog.clear()
    for run_folder in folders:
        for scene in compare_runs(folders).scenes:
            for name in PICTURE_FILES:
                write_text(run_folder / scene / name, "a picture")
    (folders[1] / "c" / "input.png").unlink()
    inference.main(arguments)
    check_told(caplog.messages, "1 picture", f"{folders[1]}/c/input.png")

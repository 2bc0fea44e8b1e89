"""The evaluation page as text: what is written, refused and escaped. test_report_browser.py drives it."""

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest

from evaluation.pages import page, report
from evaluation.pages.report import SceneRecord, write_report
from tests.messages import refused
from utils.errors import InputError

HOSTILE_NAMES = [
    "<img src=x onerror=alert(1)>",
    "../../etc",
    "</script><script>alert(1)</script>",
    "a\u2028b&<!--",
]


def a_scene(name: str = "room", folder: str = "room", **changes: object) -> SceneRecord:
    fields: dict = {
        "metrics": {"psnr": 27.125, "ssim": 0.9, "lpips": 0.1},
        "per_view": [{"view": 12, "psnr": 27.0, "ssim": 0.9}, {"view": 30, "psnr": 27.25, "ssim": 0.9}],
        "context": [3, 40],
        "has_video": False,
    }
    return SceneRecord(scene_name=name, folder=folder, **(fields | changes))


def page_of(tmp_path: Path, scenes: list[SceneRecord], **changes: object) -> str:
    fields: dict = {"title": "A run", "averages": {"psnr": 27.125}, "provenance": {"step": 100}}
    return write_report(tmp_path, scenes=scenes, **(fields | changes)).read_text(encoding="utf-8")


def data_in(page: str) -> dict:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    [text] = re.findall(r'<script id="report-data" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(text, parse_constant=refuse)


def test_the_page_is_index_html_and_holds_every_record(tmp_path: Path) -> None:
    page = page_of(tmp_path / "new", [a_scene()])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index.html"]  # no temporary file is left
    data = data_in(page)
    assert data["averages"] == [["psnr", 27.125]]
    assert data["provenance"] == [["step", "100"]]
    assert data["metrics"] == ["psnr", "ssim", "lpips"]
    assert data["viewMetrics"] == ["psnr", "ssim"]
    assert data["scenes"] == [
        {
            "name": "room",
            "folder": "room",
            "values": [27.125, 0.9, 0.1],
            "views": [12, 30],
            "viewValues": [[27.0, 0.9], [27.25, 0.9]],
            "context": [3, 40],
            "video": False,
        }
    ]


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    plain = page_of(tmp_path, [a_scene()])
    scenes = [a_scene(name, f"s{index}") for index, name in enumerate(HOSTILE_NAMES)]
    provenance = {name: name for name in HOSTILE_NAMES}
    page = page_of(tmp_path, scenes, title=HOSTILE_NAMES[2], provenance=provenance)
    assert "<img src=x" not in page and "\u2028" not in page
    assert page.count("<script") == plain.count("<script")
    assert [scene["name"] for scene in data_in(page)["scenes"]] == HOSTILE_NAMES
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;</title>" in page


def test_a_placeholder_in_the_data_stays_as_it_is(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_scene("$data $title ${style}")], title="$data")
    assert "<title>$data</title>" in page
    assert data_in(page)["scenes"][0]["name"] == "$data $title ${style}"


def test_names_that_are_not_unicode_are_made_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_scene("bad\udcff")], provenance={"path": Path("x\udcff")})
    assert data_in(page)["scenes"][0]["name"] == "bad?"


def test_numbers_json_cannot_hold_become_null(tmp_path: Path) -> None:
    metrics = {"psnr": math.inf, "ssim": math.nan, "lpips": np.float64(0.25)}
    per_view = [{"view": 3, "psnr": -math.inf, "note": "outdoors"}]
    scene = a_scene(metrics=metrics, per_view=per_view)
    data = data_in(page_of(tmp_path, [scene], averages={"psnr": math.nan}, provenance={"x": [math.nan]}))
    assert data["averages"] == [["psnr", None]]
    assert data["scenes"][0]["values"] == [None, None, 0.25]
    assert data["scenes"][0]["views"] == [3]
    assert data["scenes"][0]["viewValues"] == [[None, "outdoors"]]


def test_absent_and_additional_metrics(tmp_path: Path) -> None:
    scenes = [a_scene(metrics={"psnr_nearest_input": 12.0, "psnr": 20.0}), a_scene(metrics={"lpips": 0.5})]
    data = data_in(page_of(tmp_path, scenes))
    assert data["metrics"] == ["psnr", "lpips", "psnr_nearest_input"]
    assert [scene["values"] for scene in data["scenes"]] == [[20.0, None, 12.0], [None, 0.5, None]]


@pytest.mark.parametrize("per_view", [[], [{"view": 3}, {"view": 9}]])
def test_without_metrics(tmp_path: Path, per_view: list) -> None:
    page = page_of(tmp_path, [a_scene(metrics={}, per_view=per_view)], averages={}, provenance={})
    data = data_in(page)
    assert data["metrics"] == data["averages"] == data["viewMetrics"] == []
    assert data["scenes"][0]["viewValues"] == [[] for _ in per_view]


def test_without_scenes(tmp_path: Path) -> None:
    assert data_in(page_of(tmp_path, [], averages={}))["scenes"] == []


@pytest.mark.parametrize("folder", ["", ".", "..", "/etc", "a/b", "../x", "a\\b", "C:\\x", "\\\\host\\x"])
def test_a_folder_elsewhere_is_refused(tmp_path: Path, folder: str) -> None:
    with refused("scene folder", repr(folder)):
        page_of(tmp_path, [a_scene(folder=folder)])
    assert list(tmp_path.iterdir()) == []


def test_a_refused_page_leaves_the_old_one(tmp_path: Path) -> None:
    before = page_of(tmp_path, [a_scene()])
    with pytest.raises(InputError):
        page_of(tmp_path, [a_scene(folder="..")])
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == before


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    page = page_of(tmp_path, [a_scene()])
    assert not re.findall(r"https?://", page)
    assert not re.findall(r"@import|<link[^>]+stylesheet|<script[^>]+src|url\((?!#)", page)
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page
    assert "default-src 'none'" in page


def test_the_templates_are_beside_the_code() -> None:
    for suffix in ("html", "css", "js"):
        assert (page.TEMPLATES / f"report.{suffix}").is_file() and (page.TEMPLATES / f"page.{suffix}").is_file()
    for module in (page, report):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert "<div" not in source and "function" not in source


@pytest.mark.slow
def test_a_whole_test_set_is_written_quickly(tmp_path: Path) -> None:
    view = {"view": 12, "psnr": 27.123456789012345, "ssim": 0.9123456789012345, "lpips": 0.1123456789012345}
    metrics = {name: view[name] for name in ("psnr", "ssim", "lpips")}
    scenes = [a_scene(f"{i:016x}", f"{i:016x}", metrics=metrics, per_view=[view] * 3) for i in range(6474)]
    started = time.process_time()
    page = page_of(tmp_path, scenes)
    assert time.process_time() - started < 20
    assert len(page.encode()) < 8e6

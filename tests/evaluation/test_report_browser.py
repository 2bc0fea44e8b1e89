"""The evaluation page in a real browser: Debian's chromium, driven by selenium through chromedriver."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from evaluation.pages.report import SceneRecord, write_report
from tests.browser import (
    NEEDS_BROWSER,
    ActionChains,
    By,
    Driver,
    Keys,
    Select,
    emulate,
    find,
    focused_name,
    loaded,
    names,
    run,
    serving,
    wait,
    write_scene_files,
    write_video,
)

pytestmark = [*NEEDS_BROWSER, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)>"
PARENT = "../../etc"
PAGE_SIZE = 12
SCENES = 30


def a_record(index: int, name: str) -> SceneRecord:
    metrics = {"psnr": 20.0 + index * 7 % SCENES, "ssim": 0.5 + index / 100, "lpips": 0.4 - index / 100}
    per_view: list[dict[str, float | int | str]] = [{"view": view, **metrics} for view in (12, 30)]
    return SceneRecord(name, f"scene {index}#%", metrics, per_view, [3, 40], has_video=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 30 scenes: scene 00 has no value but psnr's NaN, and two names are hostile."""
    out = tmp_path_factory.mktemp("report")
    names = [f"scene {index:02d}" for index in range(SCENES)]
    names[5], names[6] = HOSTILE, PARENT
    records = [a_record(index, name) for index, name in enumerate(names)]
    records[0] = SceneRecord(names[0], records[0].folder, {"psnr": float("nan")}, [{"view": 4}], [3], False)
    for record in records:
        write_scene_files(out / record.folder)
        if record.has_video:
            write_video(out / record.folder / "rendered_video.mp4")
    averages = {"psnr": 34.5, "ssim": 0.65, "lpips": 0.25, "custom": 12.0}
    return write_report(out, title="A run", averages=averages, provenance={"step": 100}, scenes=records)


@pytest.fixture(scope="module")
def served(report: Path) -> Iterator[str]:
    with serving(report.parent) as address:
        yield f"{address}/index.html"


@pytest.mark.parametrize("place", ["disk", "server"])
def test_pictures_and_figures_show_from_disk_and_from_a_server(browser, report, served, place) -> None:
    browser.get(report.as_uri() if place == "disk" else served)
    assert browser.title == "A run"
    assert [node.text for node in browser.find_elements(By.CSS_SELECTOR, ".averages .figure")] == [
        "34.50",
        "0.650",
        "0.250",
        "12",
    ]
    assert "custom" in find(browser, "#averages").text
    assert len(browser.find_elements(By.CSS_SELECTOR, ".histogram svg[role=img][aria-label]")) == 3
    assert len(names(browser)) == PAGE_SIZE
    browser.execute_script("document.querySelector('.scene').scrollIntoView()")
    wait(browser, loaded(".scene:first-child img"))
    assert run(browser, "document.querySelectorAll('img:not([alt])').length") == 0


def test_sorting_by_each_metric_and_by_name_in_both_directions(browser, report) -> None:
    browser.get(report.as_uri())
    assert names(browser)[:3] == [PARENT, HOSTILE, "scene 00"]
    find(browser, "#sort-direction").click()
    assert names(browser)[0] == "scene 29"
    key = Select(find(browser, "#sort-key"))
    assert [option.text for option in key.options] == ["Name", "PSNR", "SSIM", "LPIPS"]
    for metric, best, worst in [("psnr", 49.0, 21.0), ("ssim", 0.79, 0.51), ("lpips", 0.11, 0.39)]:
        key.select_by_value(metric)
        assert first_value(browser, metric) == best
        find(browser, "#sort-direction").click()
        assert first_value(browser, metric) == worst


def first_value(driver: Driver, metric: str) -> float:
    column = ["psnr", "ssim", "lpips"].index(metric)
    return float(driver.find_elements(By.CSS_SELECTOR, ".scene-metrics dd")[column].text.split("\u202f")[0])


def test_scenes_without_a_value_come_last(browser, report) -> None:
    browser.get(report.as_uri())
    Select(find(browser, "#sort-key")).select_by_value("psnr")
    for _direction in range(2):
        browser.execute_script("showPage(99)")
        assert names(browser)[-1] == "scene 00"
        assert browser.find_elements(By.CSS_SELECTOR, ".scene:last-child dd")[0].text == "\u2013"
        find(browser, "#sort-direction").click()


def test_filtering_by_name_and_by_range(browser, report) -> None:
    browser.get(report.as_uri())
    find(browser, "#name-filter").send_keys("SCENE 1")
    assert names(browser) == [f"scene 1{digit}" for digit in range(10)]
    assert find(browser, "#count").text == "10 of 30 scenes"
    find(browser, "#ranges-toggle").click()
    find(browser, "fieldset[data-metric=ssim] .low").send_keys("0.65")
    find(browser, "fieldset[data-metric=ssim] .high").send_keys("0.67")
    assert names(browser) == ["scene 15", "scene 16", "scene 17"]
    find(browser, "#name-filter").send_keys("x")
    assert names(browser) == [] and find(browser, "#empty").is_displayed()
    find(browser, "#clear-filters").click()
    assert len(names(browser)) == PAGE_SIZE and find(browser, "#count").text == "30 scenes"


def test_a_bar_of_a_histogram_lists_its_scenes(browser, report) -> None:
    browser.get(report.as_uri())
    browser.execute_script("document.querySelector('.bar').dispatchEvent(new Event('click'))")
    assert find(browser, "fieldset[data-metric=psnr] .low").get_attribute("value") == "21"
    assert find(browser, "#count").text == "2 of 30 scenes"  # 21 and 22: both ends of a range belong to it


def test_paging(browser, report) -> None:
    browser.get(report.as_uri())
    first = names(browser)
    assert find(browser, "#page-total").text == "of 3"
    assert not find(browser, ".pager .previous").is_enabled()
    find(browser, ".pager .next").click()
    assert not set(names(browser)) & set(first)
    find(browser, "#page-number").send_keys(Keys.BACKSPACE, "3", Keys.ENTER)
    assert len(names(browser)) == SCENES - 2 * PAGE_SIZE
    assert not find(browser, ".pager .next").is_enabled()
    browser.execute_script("arguments[0].scrollIntoView()", find(browser, "#bottom-pager"))
    find(browser, "#bottom-pager .previous").click()
    assert find(browser, "#page-number").get_attribute("value") == "2"


def test_arrow_keys_go_to_scenes_and_pages(browser, report) -> None:
    browser.get(report.as_uri())
    body = find(browser, "body")
    body.send_keys(Keys.ARROW_RIGHT)
    assert focused_name(browser) == PARENT
    for _ in range(PAGE_SIZE):
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert focused_name(browser) == "scene 12"  # the first scene of the second page
    assert run(browser, "location.hash") == "#scene=scene%2012"
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    assert focused_name(browser) == "scene 11"
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    assert names(browser)[0] == "scene 12"


def test_the_slider_wipes_between_prediction_and_truth(browser, report) -> None:
    browser.get(report.as_uri() + "#scene=scene%2001")
    slider = find(browser, f"{by_name('scene 01')} .wipe")
    strip = find(browser, f"{by_name('scene 01')} .compare")
    wait(browser, loaded(f"{by_name('scene 01')} img"))
    second_target = (0.75, 0.5)
    assert colour_at(strip, *second_target) == pytest.approx([164] * 3, abs=2)
    slider.send_keys(Keys.END)
    assert slider.get_attribute("aria-valuetext") == "100 percent ground truth"
    assert colour_at(strip, *second_target) == pytest.approx([100] * 3, abs=2)
    slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 30)
    assert slider.get_attribute("value") == "30"
    assert focused_name(browser) is None  # the arrow keys stay with the slider
    assert colour_at(strip, 0.5 + 0.15 * 0.5, 0.5) == pytest.approx([100] * 3, abs=2)  # left of the edge
    assert colour_at(strip, 0.5 + 0.8 * 0.5, 0.5) == pytest.approx([164] * 3, abs=2)
    ActionChains(browser).move_to_element(strip).click_and_hold().move_by_offset(10, 0).release().perform()
    assert slider.get_attribute("value") != "30"


def test_the_error_map_is_black_at_no_error_and_brightest_at_a_quarter(browser, report) -> None:
    browser.get(report.as_uri() + "#scene=scene%2001")
    wait(browser, loaded(f"{by_name('scene 01')} img"))
    strip = find(browser, f"{by_name('scene 01')} .error")
    assert colour_at(strip, 0.25, 0.5) == pytest.approx([0, 0, 0], abs=2)
    assert colour_at(strip, 0.75, 0.5) == pytest.approx([252, 255, 164], abs=4)


def by_name(name: str) -> str:
    return f'.scene[aria-label="Scene {name}"]'


def colour_at(element, x: float, y: float) -> list[int]:
    picture = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    return list(picture.getpixel((int(x * picture.width), int(y * picture.height))))


@pytest.mark.parametrize("name", ["scene 25", HOSTILE, PARENT])
def test_a_permanent_link_opens_its_scene(browser, report, name) -> None:
    browser.get(report.as_uri())
    link = run(browser, "sceneLink({ name: arguments[0] })", name)
    browser.get("about:blank")
    browser.get(report.as_uri() + link)
    assert focused_name(browser) == name
    wait(browser, "Math.abs(document.activeElement.getBoundingClientRect().top - 64) < 40")
    find(browser, "#name-filter").send_keys("scene 03")
    browser.execute_script("location.hash = arguments[0]", "")
    browser.execute_script("location.hash = arguments[0]", link)
    wait(browser, "document.activeElement.querySelector('bdi')?.textContent === arguments[0]", name)


@pytest.mark.parametrize("address", ["#scene=nowhere", "#scene=%E0%A4%A", "#scene=", "#other"])
def test_an_address_of_no_scene_is_ignored(browser, report, address) -> None:
    browser.get(report.as_uri() + address)
    assert len(names(browser)) == PAGE_SIZE


def test_hostile_names_are_only_text(browser, report) -> None:
    browser.get(report.as_uri())
    assert names(browser)[:2] == [PARENT, HOSTILE]
    assert run(browser, "document.querySelectorAll('[onerror], img[src=x]').length") == 0
    nodes = "[...document.querySelectorAll('.scene [src], .scene a')]"
    addresses = run(browser, f"{nodes}.map((node) => node.src || node.href)")
    allowed = (f"{report.parent.as_uri()}/scene%20", f"{report.as_uri()}#scene=")
    assert addresses and all(address.startswith(allowed) for address in addresses)


def test_best_and_worst_link_to_their_scenes(browser, report) -> None:
    browser.get(report.as_uri())
    texts = [node.text for node in browser.find_elements(By.CSS_SELECTOR, ".extremes .figure")]
    values = [float(text.removesuffix("\u202fdB")) for text in texts]
    assert values == [49, 48, 47, 46, 45, 21, 22, 23, 24, 25]
    for _again in range(2):  # the second time the address is the same
        find(browser, "#worst a").click()
        wait(browser, "document.activeElement.matches('.scene')")
        browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")


def test_pictures_and_videos_load_only_when_seen(browser, served) -> None:
    browser.get(served)
    wait(browser, "performance.getEntriesByName('first-view').length")
    asked = run(browser, "performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [address for address in asked if address.endswith(".mp4")]
    assert len([address for address in asked if address.endswith("input.png")]) < PAGE_SIZE
    assert run(browser, "document.querySelectorAll('video[src]').length") == 0


def test_a_video_plays_when_it_is_seen_and_rests_when_not(browser, report) -> None:
    browser.get(report.as_uri())
    video = find(browser, f"{by_name('scene 01')} video")
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", video)
    wait(browser, "arguments[0].readyState >= 2 && arguments[0].currentTime > 0", video)
    assert run(browser, "[arguments[0].muted, arguments[0].loop, arguments[0].controls]", video) == [True] * 3
    browser.execute_script("scrollTo(0, 0)")
    wait(browser, "arguments[0].paused", video)


def test_a_video_waits_for_the_reader_who_asked_for_less_motion(browser, report) -> None:
    emulate(browser, 1280, 900, prefers_reduced_motion="reduce")
    browser.get(report.as_uri())
    video = find(browser, f"{by_name('scene 01')} video")
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", video)
    wait(browser, "arguments[0].readyState >= 2", video)
    assert run(browser, "arguments[0].paused && arguments[0].currentTime === 0", video)


def test_missing_files_leave_a_note_and_a_working_page(browser, tmp_path) -> None:
    scenes = [a_record(0, "gone")]
    page = write_report(tmp_path, title="Gone", averages={}, provenance={}, scenes=scenes)
    browser.get(page.as_uri() + "#scene=gone")
    wait(browser, "document.activeElement.querySelectorAll('.strip.missing').length === 4")
    browser.get_log("browser")  # the browser itself notes the files it did not find


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(browser, report, width, scheme) -> None:
    emulate(browser, width, 844, prefers_color_scheme=scheme)
    browser.get(report.as_uri())
    find(browser, "#ranges-toggle").click()
    find(browser, ".provenance summary").click()
    root = "document.documentElement"
    assert run(browser, f"{root}.scrollWidth <= {root}.clientWidth")
    background = run(browser, "getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(19, 20, 22)")


def test_controls_are_reached_by_tab_and_show_their_focus(browser, report) -> None:
    browser.get(report.as_uri())
    reached = []
    for _ in range(26):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(run(browser, "document.activeElement.id || document.activeElement.classList[0]"))
        is_video = run(browser, "document.activeElement.matches('video')")  # its controls draw their own
        outline = run(browser, "getComputedStyle(document.activeElement).outlineStyle")
        assert is_video or outline != "none", reached[-1]
    wanted = "skip name-filter sort-key sort-direction ranges-toggle page-number scene-link wipe".split()
    assert [item for item in reached if item in wanted] == wanted


def test_without_metrics_no_figure_is_shown(browser, tmp_path) -> None:
    write_scene_files(tmp_path / "a")
    scene = SceneRecord("a", "a", {}, [{"view": 3}, {"view": 9}], [0], False)
    page = write_report(tmp_path, title="Pictures only", averages={}, provenance={}, scenes=[scene])
    browser.get(page.as_uri())
    for part in (
        "averages",
        "without-inputs",
        "provenance",
        "distributions",
        "extremes",
        "ranges-toggle",
        "bottom-pager",
    ):
        assert not find(browser, f"#{part}").is_displayed(), part
    assert find(browser, ".views").text == "Frame 3 Frame 9"
    assert find(browser, ".files").text.split() == ["Files:", "input.png", "gt_vs_pred.png"]


def test_a_page_of_no_scenes_opens(browser, tmp_path) -> None:
    browser.get(write_report(tmp_path, title="Nothing", averages={}, provenance={}, scenes=[]).as_uri())
    assert find(browser, "#empty").is_displayed()


def test_a_whole_test_set_opens_quickly(browser, tmp_path) -> None:
    records = [a_record(index, f"{index:016x}") for index in range(6474)]
    write_scene_files(tmp_path / records[0].folder)
    page = write_report(tmp_path, title="All", averages={"psnr": 30.0}, provenance={}, scenes=records)
    browser.get(page.as_uri())
    first_view = "performance.getEntriesByName('first-view')[0]?.startTime"  # counted from the navigation
    wait(browser, first_view)
    assert len(names(browser)) == PAGE_SIZE
    assert run(browser, first_view) < 20_000
    started = run(browser, "performance.now()")
    Select(find(browser, "#sort-key")).select_by_value("psnr")
    find(browser, "#name-filter").send_keys("ff")
    assert run(browser, "performance.now()") - started < 20_000
    browser.get_log("browser")  # only the first scene has files


def test_one_scene_has_no_distribution_and_no_ranking(browser, tmp_path) -> None:
    write_scene_files(tmp_path / "a")
    scene = SceneRecord("a", "a", {"psnr": 20.0}, [{"view": 3, "psnr": 20.0}], [0], False)
    others = {"ssim": 0.75, "psnr": 19.5}
    page = write_report(
        tmp_path, title="One", averages={"psnr": 20.0}, provenance={}, scenes=[scene], averages_without_inputs=others
    )
    browser.get(page.as_uri())
    assert find(browser, "#synopsis").text == "1 scene, 1 input view and 1 target view"
    assert find(browser, "#averages").is_displayed()
    expected = "Without targets that are input frames: PSNR 19.50\u202fdB, SSIM 0.750"
    assert find(browser, "#without-inputs").text == expected
    assert not find(browser, "#distributions").is_displayed()
    assert not find(browser, "#extremes").is_displayed()


def test_a_scene_without_targets_shows_its_inputs_and_its_film(browser, tmp_path) -> None:
    out = tmp_path / "report"
    write_scene_files(out / "photos")
    (out / "photos" / "gt_vs_pred.png").unlink()
    write_video(out / "photos" / "rendered_video.mp4")
    scene = SceneRecord("photos", "photos", {}, [], [0, 1], has_video=True)
    browser.get(write_report(out, title="A film", averages={}, provenance={}, scenes=[scene]).as_uri())
    wait(browser, loaded(".scene:first-child img"))
    assert len(browser.find_elements(By.CSS_SELECTOR, ".scene img")) == 1
    assert len(browser.find_elements(By.CSS_SELECTOR, ".scene video")) == 1
    assert not browser.find_elements(By.CSS_SELECTOR, ".missing")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("count", [4, 16])
def test_each_of_many_inputs_is_large_enough_to_be_seen(browser, tmp_path, count, width) -> None:
    write_scene_files(tmp_path / "a")
    Image.new("RGB", (32 * count, 24)).save(tmp_path / "a" / "input.png")
    scene = SceneRecord("a", "a", {"psnr": 20.0}, [{"view": 60, "psnr": 20.0}], list(range(count)), False)
    emulate(browser, width, 844)
    browser.get(write_report(tmp_path, title="Many", averages={}, provenance={}, scenes=[scene]).as_uri())
    wait(browser, loaded(".inputs img"))
    strip = find(browser, ".inputs .strip")
    size = "(({ width, height }) => [width, height])(arguments[0].getBoundingClientRect())"
    across, high = run(browser, size, strip)
    assert across / count >= 60 and across / high == pytest.approx(count * 32 / 24, rel=0.02)
    root = "document.documentElement"
    assert run(browser, f"{root}.scrollWidth <= {root}.clientWidth")

"""The page of evaluations side by side in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.compare import compare_runs
from evaluation.pages.comparison import comparison_data, write_comparison
from evaluation.pages.page import write_page
from tests.browser import (
    NEEDS_BROWSER,
    ActionChains,
    By,
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
from tests.helpers import write_run

pytestmark = [*NEEDS_BROWSER, pytest.mark.slow]

HOSTILE = "<img src=x onerror=alert(1)>"
PAGE_SIZE = 12
SCENES = [f"scene{index:02d}" for index in range(30)]


def gain(run: int, index: int) -> float:
    """The difference in PSNR of a run to the first in a scene: -7 to 7.5 in steps of 0.5, in another order each."""
    return 0.0 if run == 0 else (index * (7 if run == 1 else 11)) % 30 / 2 - 7


def write_pictured_run(folder: Path, number: int) -> Path:
    write_run(
        folder, {name: 25 + gain(number, i) for i, name in enumerate(SCENES)}, config={"training": {"lr": number}}
    )
    for name in SCENES:
        write_scene_files(folder / name, error=16 * number)
    write_video(folder / SCENES[0] / "rendered_video.mp4")
    (folder / "index.html").write_text("<!doctype html><title>one run</title>")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs; the second has a hostile name."""
    place = tmp_path_factory.mktemp("runs")
    return [write_pictured_run(place / name, number) for number, name in enumerate(("base", HOSTILE, "third 50%"))]


@pytest.fixture(scope="module")
def pair(folders: list[Path]) -> Path:
    return write_comparison(folders[0].parent / "pair", "Two runs", compare_runs(folders[:2]))


@pytest.fixture(scope="module")
def triple(folders: list[Path]) -> Path:
    return write_comparison(folders[0].parent / "triple", "Three runs", compare_runs(folders))


@pytest.fixture(scope="module")
def served(pair: Path) -> Iterator[str]:
    with serving(pair.parent.parent) as address:
        yield f"{address}/pair/index.html"


def ranked(number: int, ascending: bool) -> list[str]:
    order = sorted(range(30), key=lambda i: gain(number, i) if ascending else -gain(number, i))
    return [SCENES[i] for i in order[:PAGE_SIZE]]


def texts(driver, selector: str) -> list[str]:
    return [node.text for node in driver.find_elements(By.CSS_SELECTOR, selector)]


@pytest.mark.parametrize("place", ["disk", "server"])
def test_two_runs_show_from_disk_and_from_a_server(browser, pair, served, place) -> None:
    browser.get(pair.as_uri() if place == "disk" else served)
    assert find(browser, "#synopsis").text == "2 runs, 30 scenes in common"
    assert texts(browser, "#runs tbody th") == ["base", HOSTILE]
    assert texts(browser, "#runs strong.figure") == ["25.25", "0.505", "0.495"]
    assert texts(browser, "#runs .difference")[0] == "+0.250 ± 0.804"
    assert texts(browser, "#runs td .note") == ["better in 15 of 30"] * 3
    assert texts(browser, "#differing tbody td") == ["0", "1"] and not find(browser, "#run-choice").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".histogram svg[role=img][aria-label]")) == 3
    assert run(browser, "document.querySelectorAll('.scene:first-child .compare').length") == 2
    browser.execute_script("document.querySelector('.scene').scrollIntoView()")
    wait(browser, loaded(".scene:first-child img"))
    assert run(browser, "document.querySelectorAll('img:not([alt])').length") == 0


def test_three_runs_and_their_numbers(browser, triple) -> None:
    browser.get(f"{triple.as_uri()}#scene={SCENES[0]}")
    assert texts(browser, "#runs tbody th") == ["base", HOSTILE, "third 50%"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".histogram")) == 6
    scene = '.scene[aria-label="Scene scene00"]'
    wait(browser, loaded(f"{scene} img"))
    assert texts(browser, f"{scene} .row:not(.error-row) .run-name") == ["base", HOSTILE, "third 50%"]
    assert texts(browser, f"{scene} .numbers dd")[0::3] == ["25.00", "18.00 −7.000", "18.00 −7.000"]
    assert texts(browser, f"{scene} .views tbody tr:first-child") == [
        "PSNR base 25.00 25.00",
        "SSIM base 0.500 0.500",
        "LPIPS base 0.500 0.500",
    ]
    assert texts(browser, f"{scene} .views strong") == ["25.00"] * 2 + ["0.500"] * 4
    assert texts(browser, f"{scene} .files a")[-3:] == ["gt_vs_pred.png", "metrics.json", "page"]


def test_scenes_are_ranked_by_metric_and_run(browser, triple) -> None:
    browser.get(triple.as_uri())
    assert names(browser) == ranked(1, ascending=False)
    assert find(browser, "#sort-direction").text == "Largest gain first"
    find(browser, "#sort-direction").click()
    assert names(browser) == ranked(1, ascending=True) and find(browser, "#sort-direction").text == "Largest loss first"
    Select(find(browser, "#run-key")).select_by_visible_text("third 50%")
    assert names(browser) == ranked(2, ascending=True)
    Select(find(browser, "#sort-key")).select_by_value("lpips")
    assert (
        names(browser) == ranked(2, ascending=False) and find(browser, "#sort-direction").text == "Largest gain first"
    )
    assert texts(browser, ".scene:first-child .scene-metrics dd") == ["+7.500\u202fdB", "+0.1500", "−0.1500"]
    Select(find(browser, "#sort-key")).select_by_value("name")
    assert names(browser) == SCENES[:PAGE_SIZE] and find(browser, "#sort-direction").text == "A to Z"


def test_filter_ranges_and_paging(browser, pair) -> None:
    browser.get(pair.as_uri())
    assert find(browser, "#page-total").text == "of 3"
    find(browser, ".pager .next").click()
    assert not set(names(browser)) & set(ranked(1, ascending=False))
    find(browser, "#name-filter").send_keys("SCENE1")
    assert len(names(browser)) == 10 and find(browser, "#count").text == "10 of 30 scenes"
    find(browser, "#clear-filters").click()
    find(browser, "#ranges-toggle").click()
    assert texts(browser, "#ranges legend") == ["PSNR difference (dB)", "SSIM difference", "LPIPS difference"]
    find(browser, "fieldset[data-metric=psnr] .high").send_keys("-6")
    assert find(browser, "#count").text == "3 of 30 scenes"


def test_a_bar_lists_its_scenes_of_its_run(browser, triple) -> None:
    browser.get(triple.as_uri())
    browser.execute_script(
        "document.querySelectorAll('.histogram')[3].querySelector('.bar').dispatchEvent(new Event('click'))"
    )
    assert Select(find(browser, "#run-key")).first_selected_option.text == "third 50%"
    assert find(browser, "#count").text == "2 of 30 scenes"  # -7 and -6.5: both ends of a range belong to it


def test_the_slider_wipes_every_run(browser, triple) -> None:
    browser.get(triple.as_uri())
    find(browser, ".wipe").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 30)
    wipes = (
        "[...document.querySelectorAll('.scene:first-child .compare')].map((n) => n.style.getPropertyValue('--wipe'))"
    )
    assert run(browser, wipes) == ["0.3"] * 3 and focused_name(browser) is None


def test_errors_are_shown_on_demand(browser, pair) -> None:
    browser.get(pair.as_uri())
    shown = "[...document.querySelectorAll('.scene:first-child .strip.error')].map((node) => node.offsetHeight > 0)"
    assert run(browser, shown) == [False] * 2
    find(browser, "#errors-toggle").click()
    assert run(browser, shown) == [True] * 2
    assert find(browser, "#errors-toggle").get_attribute("aria-pressed") == "true"
    wait(browser, loaded(".scene:first-child img"))


def test_arrow_keys_and_links_go_to_scenes(browser, pair) -> None:
    browser.get(pair.as_uri())
    order = ranked(1, ascending=False)
    find(browser, "body").send_keys(Keys.ARROW_RIGHT)
    assert focused_name(browser) == order[0]
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert focused_name(browser) == order[1] and run(browser, "location.hash") == f"#scene={order[1]}"
    browser.get("about:blank")
    browser.get(f"{pair.as_uri()}#scene={SCENES[0]}")
    assert focused_name(browser) == SCENES[0]  # the largest loss, on the last page


def test_controls_are_reached_by_tab_and_show_their_focus(browser, triple) -> None:
    browser.get(triple.as_uri())
    reached = []
    for _ in range(22):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(run(browser, "document.activeElement.id || document.activeElement.classList[0]"))
        assert run(browser, "getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    wanted = "skip name-filter sort-key sort-direction run-key errors-toggle ranges-toggle page-number scene-link wipe"
    assert [item for item in reached if item in wanted.split()] == wanted.split()


def test_hostile_names_are_only_text(browser, triple) -> None:
    browser.get(triple.as_uri())
    assert run(browser, "document.querySelectorAll('[onerror], img[src=x]').length") == 0
    nodes = "[...document.querySelectorAll('.scene [src], .scene a, #runs a')]"
    addresses = run(browser, f"{nodes}.map((node) => node.src || node.href)")
    folder = triple.parent.parent.as_uri()
    runs = [f"{folder}/{name}/" for name in ("base", "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E", "third%2050%25")]
    allowed = (*runs, f"{triple.as_uri()}#scene=")
    assert addresses and all(address.startswith(allowed) for address in addresses)


def test_pictures_and_videos_load_only_when_seen(browser, served) -> None:
    browser.get(served)
    wait(browser, "performance.getEntriesByName('first-view').length")
    asked = run(browser, "performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [address for address in asked if address.endswith(".mp4")]
    assert len([address for address in asked if address.endswith("input.png")]) < PAGE_SIZE


def test_videos_of_every_run_play(browser, pair) -> None:
    browser.get(f"{pair.as_uri()}#scene={SCENES[0]}")
    videos = browser.find_elements(By.CSS_SELECTOR, '.scene[aria-label="Scene scene00"] video')
    assert len(videos) == 2
    for video in videos:
        browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", video)
        wait(browser, "arguments[0].readyState >= 2 && arguments[0].currentTime > 0", video)


def test_other_views_are_marked_and_have_their_own_truth(browser, tmp_path) -> None:
    runs = [write_run(tmp_path / "a", {"x": 1.0}), write_run(tmp_path / "b", {"x": 2.0, "y": 2.0}, views=(12, 31))]
    for folder in runs:
        write_scene_files(folder / "x")
    browser.get(write_comparison(tmp_path / "page", "Views", compare_runs(runs)).as_uri())
    assert texts(browser, "#caveats li") == ["Views differ between runs in 1 scene (x), marked below."]
    assert find(browser, "#omissions").text == "b has 1 scene beyond those in common."
    marks = [
        f"Views differ. {run}: frames 12 and {view}, from input frames 3 and 40" for run, view in (("a", 30), ("b", 31))
    ]
    assert texts(browser, ".other-views") == marks
    assert run(browser, "document.querySelectorAll('.row > .strip > .truth:only-child').length") == 2


def test_without_metrics_there_are_pictures_by_name(browser, tmp_path) -> None:
    runs = [write_run(tmp_path / name, dict.fromkeys("xy", 1.0), ["psnr", "ssim", "lpips"]) for name in "ab"]
    for folder in runs:
        for name in "xy":
            write_scene_files(folder / name)
    browser.get(write_comparison(tmp_path / "page", "Pictures", compare_runs(runs)).as_uri())
    assert names(browser) == ["x", "y"]
    assert find(browser, "#runs-note").text == "No metric is common to all runs: pictures only."
    assert not find(browser, "#distributions").is_displayed() and not find(browser, "#ranges-toggle").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(browser, triple, width, scheme) -> None:
    emulate(browser, width, 844, prefers_color_scheme=scheme)
    browser.get(triple.as_uri())
    find(browser, "#ranges-toggle").click()
    find(browser, "#errors-toggle").click()
    browser.execute_script("document.querySelector('#sort-key').append(new Option('A rather long name of a metric'))")
    root = "document.documentElement"
    assert run(browser, f"{root}.scrollWidth <= {root}.clientWidth")


def test_a_long_key_breaks_on_a_phone_instead_of_being_cut(browser, triple) -> None:
    emulate(browser, 390, 844)
    browser.get(triple.as_uri())
    key = "document.querySelector('.differing tbody th')"
    browser.execute_script(f"{key}.textContent = 'config.inference.render_video_config.cameras_path.and_more'")
    browser.execute_script("document.querySelector('.differing').closest('details').open = true")
    assert run(browser, f"{key}.clientWidth > 0 && {key}.scrollWidth <= {key}.clientWidth")


def many(scene: dict, number: int) -> dict:
    """A scene like the given one of three runs, with another name and other numbers."""
    values = [[20 + (number * step) % 971 / 100, 0.512345, 0.112345] for step in (7, 11, 13)]
    return scene | {"name": f"{number:016x}", "values": values, "viewValues": [[row] * 3 for row in values]}


def test_a_whole_test_set_opens_quickly(browser, tmp_path) -> None:
    runs = [write_run(tmp_path / str(i), {"a": 20.0}, views=(1, 2, 3)) for i in range(3)]
    page = tmp_path / "page" / "index.html"
    data = comparison_data(compare_runs(runs), page.parent)
    [scene] = data["scenes"]
    data["scenes"] = [many(scene, i) for i in range(6474)]
    write_page(page, "comparison", "All", data)
    assert page.stat().st_size < 10e6
    browser.get(page.as_uri())
    first_view = "performance.getEntriesByName('first-view')[0]?.startTime"  # counted from the navigation
    wait(browser, first_view)
    assert len(names(browser)) == PAGE_SIZE
    assert run(browser, first_view) < 20_000
    started = run(browser, "performance.now()")
    Select(find(browser, "#run-key")).select_by_value("2")
    Select(find(browser, "#sort-key")).select_by_value("ssim")
    find(browser, "#name-filter").send_keys("ff")
    assert run(browser, "performance.now()") - started < 20_000
    browser.get_log("browser")  # no scene has pictures

"""The viewer in a real browser: the page loads, picture and cameras appear, keys and buttons do what they say."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.browser import NEEDS_BROWSER, ActionChains, By, emulate, find, start_browser, wait
from tests.runs import wait_for
from tests.viewing import toy_viewer
from viewer.geometry import letterbox

pytestmark = [*NEEDS_BROWSER, pytest.mark.slow]

# Of the browser's window; narrower ones are taken for telephones, larger ones take longer to draw.
WIDTH = 860
# Of JPEG and of the browser's own scaling, in levels of 255, on average.
_LOSS = 12
# The colour of the inputs' cameras, as the window shows it.
_YELLOW = np.array([230, 205, 98])


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"), with_webgl=True)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(driver, tmp_path_factory):
    """The window of the browser, loaded once for all tests."""
    with toy_viewer(tmp_path_factory.mktemp("viewer"), "prefix") as served:
        emulate(driver, WIDTH, 540)
        driver.get(f"http://{served.address}")
        wait(driver, "document.querySelector('canvas') !== null")
        wait_for(lambda: served.windows)
        (window,) = served.windows.values()
        wait_for(lambda: shows(driver, window))
        yield window
        driver.get("about:blank")


@pytest.fixture
def window(driver, opened):
    """The window as it opens, where its scene begins; the test fails on errors in the console."""
    emulate(driver, WIDTH, 540)
    opened.markers.shown = True
    ActionChains(driver).send_keys("r").perform()
    wait_for(lambda: np.allclose(opened.viewpoint().c2w, opened.session.lens.c2w, atol=1e-3) and shows(driver, opened))
    yield opened
    errors = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def seen(driver):
    """The pixels of the canvas."""
    picture = np.asarray(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    box = find(driver, "canvas").rect
    left, top = round(box["x"]), round(box["y"])
    return picture[top : top + round(box["height"]), left : left + round(box["width"])]


def shows(driver, window):
    """Whether the browser shows the picture of where its camera stands, in its place."""
    look = window.painter.latest
    if look is None:
        return False
    shown = seen(driver)
    expected = letterbox(look.session.render(look.camera), look.camera, look.viewpoint)
    expected = np.asarray(Image.fromarray(expected).resize(shown.shape[1::-1]))
    # Away from the cameras and from what viser tells in a corner.
    rows, columns = slice(shown.shape[0] // 2, None), slice(shown.shape[1] // 3, None)
    near = np.abs(shown.astype(int) - expected)[rows, columns]
    return np.median(near) < _LOSS


def yellow(driver):
    """How many pixels have the colour of the inputs' cameras."""
    return int((np.abs(seen(driver).astype(int) - _YELLOW).max(-1) < 30).sum())


def press(driver, label):
    def found():
        return [button for button in driver.find_elements(By.TAG_NAME, "button") if button.text == label]

    wait_for(found)
    found()[0].click()


def test_picture_and_cameras_appear(driver, window):
    assert window.viewpoint().width < WIDTH
    # The window is as large as it says, and the picture fills its height.
    assert seen(driver).shape[:2] == (window.viewpoint().height, window.viewpoint().width)
    # Further back, the inputs' cameras are in sight, with their images.
    hold(driver, "s", 1.0)
    wait_for(lambda: window.viewpoint().c2w[2, 3] < -0.2 and shows(driver, window))
    with_cameras = yellow(driver)
    window.markers.shown = False
    window.look()
    wait_for(lambda: yellow(driver) < with_cameras - 60)


def hold(driver, key, seconds):
    ActionChains(driver).key_down(key).pause(seconds).key_up(key).perform()


def test_a_click_on_an_input_leads_to_its_camera(driver, window):
    here = window.viewpoint().c2w
    hold(driver, "s", 1.0)
    wait_for(lambda: window.viewpoint().c2w[2, 3] < -0.2 and shows(driver, window))
    # Straight ahead stands the first input, where the window was before.
    ActionChains(driver).move_to_element_with_offset(find(driver, "canvas"), 10, 20).click().perform()
    wait_for(lambda: np.allclose(window.viewpoint().c2w, here, atol=1e-3) and shows(driver, window))
    assert f"Frame {window.session.inputs[0]}, an input" in window.compare_panel._score.content


def test_keys_move_and_lead_back(driver, window):
    here = window.viewpoint().c2w
    hold(driver, "d", 0.5)
    wait_for(lambda: window.viewpoint().c2w[0, 3] > here[0, 3] + 0.02 and shows(driver, window))
    ActionChains(driver).send_keys("k").perform()
    wait_for(lambda: len(window.path_panel._keyframes) == 1)
    ActionChains(driver).send_keys("r").perform()
    wait_for(lambda: np.allclose(window.viewpoint().c2w, here, atol=1e-3) and shows(driver, window))
    assert torch.equal(window.painter.latest.camera.c2w, window.session.lens.c2w)


def test_buttons_do_what_they_say(driver, window):
    press(driver, "Next")
    wait_for(lambda: window.number == 1)
    press(driver, "Encode anew")
    wait_for(lambda: not window._opening.locked() and shows(driver, window))
    press(driver, "Stand there")
    wait_for(lambda: "dB" in find(driver, "body").text)


def test_the_picture_keeps_its_shape_in_every_window(driver, window):
    for width, height in [(700, 900), (1400, 500)]:
        emulate(driver, width, height)
        wait_for(lambda: shows(driver, window))
        viewpoint = window.viewpoint()
        assert seen(driver).shape[:2] == (viewpoint.height, viewpoint.width)

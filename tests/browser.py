"""A real browser for the tests of the pages: Debian's chromium, driven by selenium through chromedriver.

The fixtures `session` and `browser` stand in fixtures.py.
"""

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV makes the video of these tests")
pytest.importorskip("selenium", reason="selenium drives the browser")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

Driver = webdriver.Chrome
__all__ = ["ActionChains", "By", "Keys", "Select"]  # and what follows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
NEEDS_BROWSER = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(CHROMEDRIVER is None, reason="chromedriver is not installed"),
]

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# The switch to leave out, and those to add, for WebGL without a GPU.
WEBGL = ["--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SIZE = 32


def start_browser(profile: Path, with_webgl: bool = False) -> Driver:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    switches = [switch for switch in SWITCHES if switch not in WEBGL[:1]] + WEBGL[1:] if with_webgl else SWITCHES
    for switch in (*switches, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Driver(options=options, service=Service(str(CHROMEDRIVER)))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of `folder`; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def write_scene_files(folder: Path, error: int = 64) -> None:
    """Two targets; the first is predicted exactly, the second is off by `error` of 255 everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = np.full((SIZE, 2 * SIZE, 3), 100, np.uint8)
    prediction = truth.copy()
    prediction[:, SIZE:] += error
    Image.fromarray(np.concatenate([truth, prediction])).save(folder / "gt_vs_pred.png")
    Image.fromarray(truth).save(folder / "input.png")


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for level in range(0, 240, 8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def emulate(driver: Driver, width: int, height: int, **media: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def find(driver: Driver, selector: str):
    return driver.find_element(By.CSS_SELECTOR, selector)


def names(driver: Driver) -> list[str]:
    return [node.text for node in driver.find_elements(By.CSS_SELECTOR, ".scene-link bdi")]


def run(driver: Driver, script: str, *arguments: object):
    return driver.execute_script(f"return {script}", *arguments)


def wait(driver: Driver, script: str, *arguments: object) -> None:
    WebDriverWait(driver, 120).until(lambda _: run(driver, script, *arguments), f"never true: {script}")


def focused_name(driver: Driver) -> str | None:
    return run(driver, "document.activeElement.querySelector('.scene-link bdi')?.textContent")


def loaded(selector: str) -> str:
    return f"[...document.querySelectorAll('{selector}')].every((image) => image.naturalWidth > 0)"

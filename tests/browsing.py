"""Chromium for the tests marked browser."""

import contextlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")  # as Debian has them


def open_driver():
    """Yields a driver of Chromium, for a fixture; skips the test where it is not installed."""
    for path in (CHROMIUM, DRIVER):
        if not path.is_file():
            pytest.skip(f"{path} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@contextlib.contextmanager
def only_requests(driver, paths):
    """Checks at the end that nothing was logged, and nothing requested but the given pages."""
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    yield
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    requested = {url for url in urls if not url.startswith("data:")}
    assert requested and requested <= {path.as_uri() for path in paths}


class Browser:
    """A page in the browser, and what tests do with it."""

    def __init__(self, driver):
        self.driver = driver
        self.run = driver.execute_script

    def open(self, path, width=1280, dark=False):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.as_uri())

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def texts(self, selector):
        find = (
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())"
        )
        return self.run(find, selector)

    def number(self, script):
        return self.run(f"return {script}")

    def has_pixels(self, selector, size, is_as_expected):
        """Waits until a canvas [h, w, 4] uint8 is as expected: it is drawn asynchronously."""
        # Read from a copy: Chromium warns if a canvas itself is read often.
        read = """
const canvas = document.querySelector(arguments[0]);
const copy = new OffscreenCanvas(canvas.width, canvas.height);
const context = copy.getContext("2d", {willReadFrequently: true});
context.drawImage(canvas, 0, 0);
return [...context.getImageData(0, 0, copy.width, copy.height).data];
"""

        def check(_):
            pixels = np.array(self.run(read, selector), np.uint8).reshape(*size, 4)
            return is_as_expected(pixels)

        WebDriverWait(self.driver, 20).until(check)

    def wait_for(self, script, *arguments):
        return WebDriverWait(self.driver, 20).until(lambda _: self.run(script, *arguments))

    def accessibility_problems(self):
        """Returns the violations that axe-core finds."""
        axe = resources.files("axe_core_python") / "axe.min.js"
        self.run(axe.read_text(encoding="utf-8"))
        violations = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then((result) => done(result.violations))"
        )
        return [(v["id"], v["help"], [n["html"][:200] for n in v["nodes"]]) for v in violations]

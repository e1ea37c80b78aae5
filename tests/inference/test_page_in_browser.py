"""The page of an output folder in a browser: pytest -m browser."""

import numpy as np
import pytest
from browsing import Browser, only_requests, open_driver
from frames_by_hand import LABEL_SET, read_ids, run, write_image
from selenium.webdriver.common.keys import Keys

from mapseg.inference.predictor import Segmentation

pytestmark = pytest.mark.browser

SIZE = (32, 64)
CAMERAS, FRAMES = ("image_2", "image_3"), 12


def segment(image):
    ids = (image.mean(axis=-1) > 127).astype(np.uint8)
    ids[:4] = 255
    return Segmentation(ids, 1 - image.mean() / 256, 1.0)


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drive")
    for camera in CAMERAS:
        for i in range(FRAMES):
            write_image(folder / "in" / camera / f"{i:02d}.png", size=SIZE, bright=4 * i + 2)
    (folder / "in" / CAMERAS[0] / "99.png").write_bytes(b"broken")
    run(folder / "in", folder / "out", segment=segment, outputs="ids,overlay,page")
    run(folder / "in" / CAMERAS[0] / "99.png", folder / "failed", outputs="page")
    return folder / "out"


@pytest.fixture(scope="module")
def driver():
    yield from open_driver()


@pytest.fixture
def browser(driver, out_dir):
    pages = [out_dir / "index.html", out_dir.parent / "failed" / "index.html"]
    with only_requests(driver, pages):
        yield Browser(driver)


def show(browser, out_dir, width=1280, dark=False):
    browser.open(out_dir / "index.html", width, dark)


def frame_name(browser):
    return browser.texts("#frame-name")[0]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_is_accessible(browser, out_dir, dark, width):
    show(browser, out_dir, width, dark)
    assert browser.number("document.documentElement.scrollWidth") == width
    color = browser.run("return getComputedStyle(document.body).backgroundColor")
    red = int(color.partition("(")[2].partition(",")[0])
    assert red < 64 if dark else red > 192
    assert browser.accessibility_problems() == []
    browser.click("#legend [data-alone='1']")
    assert browser.accessibility_problems() == []


def test_views_and_one_class_alone(browser, out_dir):
    show(browser, out_dir)
    ids = read_ids(out_dir / "ids" / CAMERAS[0] / "03.png")
    palette = LABEL_SET.palette
    browser.click("#strip [data-open='3']")
    assert frame_name(browser) == f"{CAMERAS[0]}/03"
    label = browser.run("return document.getElementById('canvas').getAttribute('aria-label')")
    assert label.startswith(f"Overlay of {CAMERAS[0]}/03: road, dark ")
    browser.press("3")
    browser.has_pixels("#canvas", SIZE, lambda p: (p[..., :3] == palette[ids])[4:].all())
    browser.click("#legend [data-alone='1']")
    browser.has_pixels(
        "#canvas", SIZE, lambda p: (p[ids == 1, :3] == 255).all() and not p[ids != 1, :3].any()
    )
    faded = "[...document.querySelectorAll('#shares .faded')].map((e) => e.dataset.class)"
    assert {*browser.number(faded)} == {"0", "other"}
    browser.press(Keys.ESCAPE, "2")
    assert browser.texts("#legend [aria-pressed=true]") == [] and browser.number(faded) == []
    browser.has_pixels("#canvas", SIZE, lambda p: {*np.unique(p[ids < 255, 3])} == {128})
    browser.has_pixels("#canvas", SIZE, lambda p: not p[ids == 255, 3].any())
    browser.press("1")
    assert browser.number("document.getElementById('canvas').hidden")


def test_keys_sliders_and_folders_choose_frames(browser, out_dir):
    show(browser, out_dir)
    keys = [(Keys.ARROW_RIGHT, 1), (Keys.ARROW_LEFT, 0), (Keys.ARROW_LEFT, 0), (Keys.END, 11)]
    for key, place in (*keys, (Keys.HOME, 0)):
        browser.press(key)
        assert frame_name(browser) == f"{CAMERAS[0]}/{place:02d}"
    browser.driver.find_element("id", "position").send_keys(Keys.ARROW_RIGHT * 3)
    assert frame_name(browser) == f"{CAMERAS[0]}/03"
    browser.driver.find_element("id", "wipe").send_keys(Keys.ARROW_RIGHT * 30)
    assert browser.number("document.getElementById('canvas').style.clipPath") == (
        "inset(0px 0px 0px 30%)"
    )
    browser.run(
        "const e = document.getElementById('group'); e.value = 1;"
        "e.dispatchEvent(new Event('change'))"
    )
    assert frame_name(browser) == f"{CAMERAS[1]}/00"
    assert len(browser.texts("#strip li:not([hidden])")) == FRAMES
    assert browser.texts(".chart:not([hidden]) figcaption") == [CAMERAS[1]]
    first = browser.texts("#least li .name")[0]
    browser.click("#least button")
    assert frame_name(browser) == first == f"{CAMERAS[0]}/11"
    assert browser.run("return document.getElementById('group').value") == "0"
    current = browser.run(
        "return [...document.querySelectorAll('[aria-current=true]')].map((e) => e.dataset.open)"
    )
    assert current == ["11"]
    link = browser.run("return document.querySelector('#frame-links a').getAttribute('href')")
    assert (out_dir / link).is_file()


def test_a_page_without_frames_lists_what_failed(browser, out_dir):
    show(browser, out_dir.parent / "failed")
    assert browser.texts(".failed strong") == ["99"]
    assert browser.accessibility_problems() == []


def test_arrows_scroll_a_focused_chart(browser, out_dir):
    show(browser, out_dir, width=390)
    name = frame_name(browser)
    browser.run("document.querySelector('#shares .scroll').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert frame_name(browser) == name
    browser.wait_for("return document.querySelector('#shares .scroll').scrollLeft > 0")

"""The report in a browser: pytest -m browser, where Chromium and its driver are installed."""

import pytest
from browsing import Browser, only_requests, open_driver
from report_by_hand import HEIGHT, HOSTILE, WIDTH, make_classes, pictures_of, store
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from mapseg.evaluation.report import write
from mapseg.evaluation.report.write import write_report
from mapseg.labels import VOID, make_label_set

pytestmark = pytest.mark.browser

CLASSES, IMAGES = 12, 8
IMAGE, PREDICTION, LABEL, ERRORS, OTHER = range(5)  # the views
LIGHT = [0.2126, 0.7152, 0.0722]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of runs with 2, 12 and 124 classes, that of 12 compared with another run."""
    folder, made = tmp_path_factory.mktemp("pages"), {}
    for count in (2, CLASSES, 124):
        classes, run_dir = make_classes(count, HOSTILE), folder / f"run{count}"
        pairs = store(run_dir, classes, IMAGES, image_names=HOSTILE[:3])
        compare = [folder / "other"] if count == CLASSES else []
        for other in compare:
            store(other, classes, IMAGES, image_names=HOSTILE[:3], wrong=0.5)
        palette = make_label_set(classes, "all").palette
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write, "make_pictures", pictures_of(pairs, palette))
            path = write_report(run_dir, folder, lambda _: None, compare=compare)
        made[count] = path, pairs, palette
    return made


@pytest.fixture(scope="module")
def driver():
    yield from open_driver()


class Report(Browser):
    """A report in the browser."""

    def __init__(self, driver, pages):
        super().__init__(driver)
        self._pages = pages

    def show(self, count=CLASSES, width=1280, dark=False):
        self.open(self._pages[count][0], width, dark)

    def open_image(self, i):
        self.click(f".picture[data-open='{i}']")
        assert self.run("return document.getElementById('viewer').open")

    def has_pixels(self, selector, is_as_expected):
        super().has_pixels(selector, (HEIGHT, WIDTH), is_as_expected)


@pytest.fixture
def browser(driver, pages):
    with only_requests(driver, [path for path, *_ in pages.values()]):
        yield Report(driver, pages)


def card_index(browser, name):
    """Returns the number of the picture of an image."""
    names = browser.run(
        "return JSON.parse(document.getElementById('data').textContent).pictures.map((p) => p.name)"
    )
    return names.index(name)


@pytest.mark.parametrize("count", [2, CLASSES, 124])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser, count, dark, width):
    browser.show(count, width, dark)
    assert browser.number("document.documentElement.scrollWidth") == width
    color = browser.run("return getComputedStyle(document.body).backgroundColor")
    red = int(color.partition("(")[2].partition(",")[0])
    assert red < 64 if dark else red > 192
    browser.open_image(0)
    assert browser.number("document.getElementById('viewer').scrollWidth") <= width
    assert browser.number("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("count", [2, CLASSES, 124])
def test_names_are_text(browser, count):
    browser.show(count)
    assert {*HOSTILE[: min(count, 5)]} <= {*browser.texts("#legend button")}
    browser.open_image(card_index(browser, HOSTILE[0]))
    assert browser.texts("#viewer-name") == [HOSTILE[0]]
    assert browser.driver.title == f"run{count}: report"
    assert browser.number("document.querySelectorAll('script').length") == 2


def test_the_table_is_sorted(browser):
    browser.show()

    def values(column):
        rows = "[...document.querySelectorAll('#class-table tbody tr')]"
        return browser.run(f"return {rows}.map((row) => row.children[{column}].dataset.value)")

    def sorts():
        return browser.run(
            "return [...document.querySelectorAll('[aria-sort]')].map((e) => e.ariaSort)"
        )

    assert [float(v) for v in values(1)] == sorted(map(float, values(1)), reverse=True)
    assert sorts()[1] == "descending"
    for column in (2, 3, 4, 5, 6, 1):
        for order in ("descending", "ascending"):
            browser.click(f"[data-sort='{column}']")
            numbers = [float(v) for v in values(column)]
            assert numbers == sorted(numbers, reverse=order == "descending"), (column, order)
            assert sorts() == [order if i == column else "none" for i in range(7)]
    browser.click("[data-sort='0']")
    names = values(0)
    grouped = [name for name in names if name.startswith("group")]
    assert len(names) == CLASSES and grouped == sorted(grouped)
    browser.click("[data-sort='0']")
    assert values(0) == names[::-1]


def test_the_table_is_filtered(browser):
    browser.show()
    browser.driver.find_element("id", "filter").send_keys("FETT")
    rows = browser.texts("#class-table tbody tr:not([hidden]) th")
    assert rows == [HOSTILE[3]]
    assert browser.texts("#filtered") == [f"1 of {CLASSES} classes"]


def test_label_maps_have_the_colours_of_their_ids(browser, pages):
    browser.show()
    _, pairs, palette = pages[CLASSES]
    browser.open_image(card_index(browser, HOSTILE[0]))
    for view, ids in ((PREDICTION, pairs[0][1]), (LABEL, pairs[0][0]), (OTHER, pairs[0][1])):
        browser.press(str(view + 1))
        browser.has_pixels("#viewer-canvas", lambda p, ids=ids: (p[..., :3] == palette[ids]).all())
        pressed = browser.texts("#viewer [data-view][aria-pressed=true]")
        assert len(pressed) == 1 and pressed[0].startswith(str(view + 1))
    browser.press("1")
    assert browser.number("document.getElementById('viewer-canvas').hidden")


def test_errors_differ_in_brightness_from_what_is_correct(browser, pages):
    browser.show()
    label, prediction = pages[CLASSES][1][0]
    browser.open_image(card_index(browser, HOSTILE[0]))
    browser.press(str(ERRORS + 1))
    wrong, void = (label != prediction) & (label != VOID), label == VOID

    def differ(pixels):
        light = pixels[..., :3] @ LIGHT
        return light[wrong].min() > light[~wrong & ~void].max() + 80

    browser.has_pixels("#viewer-canvas", differ)
    assert browser.texts("#viewer-key span") == ["correct", "wrong", "not labelled"]


def test_one_class_is_shown_alone_in_all_pictures(browser, pages):
    browser.show()
    _, pairs, _ = pages[CLASSES]
    browser.click("#legend [data-alone='7']")
    assert browser.texts("#legend [aria-pressed=true]") == ["part--class 7"]
    for i, name in enumerate([*HOSTILE[:3], "image 3"]):
        card = card_index(browser, name)
        alone = pairs[i][1] == 7

        def only(pixels, alone=alone):
            return (pixels[alone][:, :3].sum(-1) > 0).all() and not pixels[~alone][:, :3].any()

        browser.has_pixels(f".picture[data-open='{card}'] canvas", only)
    browser.press(Keys.ESCAPE)
    assert browser.texts("#legend [aria-pressed=true]") == []
    assert browser.number("document.getElementById('show-all').hidden")


def test_keys_and_slider_of_the_viewer(browser):
    browser.show()
    order = [
        int(i)
        for i in browser.run(
            "return [...document.querySelectorAll('#grid .picture')].map((e) => e.dataset.open)"
        )
    ]
    names = [browser.texts(f".picture[data-open='{i}'] .name")[0] for i in order]
    browser.open_image(order[0])
    for key, place in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        browser.press(key)
        assert browser.texts("#viewer-name") == [names[place]]
    slider = browser.driver.find_element("id", "wipe")
    slider.send_keys(Keys.ARROW_RIGHT * 30)
    assert browser.number("document.getElementById('viewer-canvas').style.clipPath") == (
        "inset(0px 0px 0px 30%)"
    )
    assert browser.texts("#viewer-name") == [names[1]]  # the arrows belong to the slider
    browser.press(Keys.ESCAPE)
    browser.wait_for("return !document.getElementById('viewer').open")
    browser.press(Keys.ARROW_RIGHT)
    assert not browser.number("document.getElementById('viewer').open")


def test_the_order_of_images(browser):
    browser.show()

    def scores():
        shown = browser.texts("#grid .picture:not([hidden]) .score")
        return [float(text.removesuffix("%")) for text in shown]

    def choose(value):
        browser.run(
            "const e = document.getElementById('order'); e.value = arguments[0];"
            "e.dispatchEvent(new Event('change'))",
            value,
        )

    assert len(scores()) == IMAGES and scores() == sorted(scores())
    choose("best")
    assert scores() == sorted(scores(), reverse=True)
    overall = scores()
    choose("7")
    assert scores() == sorted(scores()) and scores() != overall[::-1]
    assert browser.texts("#legend [aria-pressed=true]") == ["part--class 7"]


def test_a_confusion_shows_its_images(browser, pages):
    browser.show()
    _, pairs, _ = pages[CLASSES]
    pair = browser.run("return document.querySelector('.worst [data-pair]').dataset.pair")
    a, b = map(int, pair.split(","))
    pixels = sorted((int(((y == a) & (p == b)).sum()) for y, p in pairs), reverse=True)
    expected = [f"{count} px" for count in pixels if count]
    browser.click(".worst [data-pair]")
    assert browser.texts("#grid .picture:not([hidden]) .score") == expected
    browser.click("#show-all")
    assert len(browser.texts("#grid .picture:not([hidden])")) == IMAGES
    # The same cell of the matrix, by the mouse.
    data = "JSON.parse(document.getElementById('data').textContent).heat"
    rows, columns = browser.number(f"{data}.rows"), browser.number(f"{data}.columns")
    matrix = browser.driver.find_element("id", "matrix")
    browser.run("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", matrix)
    x = ((columns.index(b) + 0.5) / len(columns) - 0.5) * matrix.rect["width"]
    y = ((rows.index(a) + 0.5) / len(rows) - 0.5) * matrix.rect["height"]
    ActionChains(browser.driver).move_to_element_with_offset(matrix, x, y).click().perform()
    assert browser.texts("#grid .picture:not([hidden]) .score") == expected
    total = sum(int((label == a).sum()) for label, _ in pairs)
    share = browser.texts("#pair-share")[0].removesuffix("%")
    assert float(share) == pytest.approx(100 * sum(pixels) / total, abs=0.06)


def test_an_image_that_differs_between_runs_is_opened(browser):
    browser.show()
    name = browser.texts("#runs [data-open]")[0]
    browser.click("#runs [data-open]")
    assert browser.texts("#viewer-name") == [name]


@pytest.mark.parametrize("count", [CLASSES, 124])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible(browser, count, dark, width):
    browser.show(count, width, dark)
    for is_open in (False, True):
        if is_open:
            browser.open_image(0)
            browser.press(str(ERRORS + 1))
        assert browser.accessibility_problems() == []


def test_a_slow_label_map_is_not_drawn_over_another_image(browser, pages):
    browser.show()
    _, pairs, palette = pages[CLASSES]
    names = browser.texts("#grid .picture .name")
    delay = """
const decode = HTMLImageElement.prototype.decode;
window.slow = JSON.parse(document.getElementById("data").textContent).pictures[0].label;
HTMLImageElement.prototype.decode = async function () {
  await decode.call(this);
  if (this.src === window.slow) await new Promise((done) => { window.finish = done; });
};
"""
    browser.run(delay)
    browser.open_image(0)
    browser.press(Keys.ARROW_RIGHT)
    shown = browser.texts("#viewer-name")[0]
    assert names.index(shown) == 1
    place = [*HOSTILE[:3], *(f"image {i}" for i in range(3, IMAGES))].index(shown)

    def is_right(pixels):
        return (pixels[..., :3] == palette[pairs[place][1]]).all()

    browser.has_pixels("#viewer-canvas", is_right)
    browser.wait_for("return Boolean(window.finish)")
    browser.run("window.finish()")
    browser.wait_for("return !document.querySelector('#grid canvas').hidden")
    browser.driver.execute_async_script(
        "const done = arguments[0]; setTimeout(() => requestAnimationFrame(done), 200)"
    )
    browser.has_pixels("#viewer-canvas", is_right)


def test_keys_keep_the_focused_image(browser):
    browser.show()
    browser.run("document.querySelector(\".picture[data-open='2']\").focus()")
    browser.press("2")
    assert browser.number("document.activeElement.dataset.open") == "2"

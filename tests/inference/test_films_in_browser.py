"""Films in a browser: pytest -m browser, where Chromium and its driver are installed."""

import sys

import pytest
from browsing import open_driver
from films_by_hand import PHONE_MS, Film, turn, write_source
from frames_by_hand import run, write_image

pytestmark = pytest.mark.browser

PLAY = """
const [source, done] = arguments, video = document.createElement("video");
document.body.replaceChildren(video);
const finish = why => done({
  why, error: video.error && video.error.message, duration: video.duration, time: video.currentTime,
  size: [video.videoHeight, video.videoWidth],
});
video.onended = () => finish("ended");
video.onerror = () => finish("error");
video.muted = true;
video.src = source;
video.play().catch(error => finish(String(error)));
"""


@pytest.fixture(scope="module")
def chromium():
    yield from open_driver()


@pytest.fixture(scope="module")
def driver(chromium, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "page.html"
    page.write_text("<!doctype html><title>films</title><body>")
    chromium.get(page.as_uri())
    chromium.set_script_timeout(120)
    return chromium


@pytest.mark.parametrize("kind", ["phone", "panorama", "odd size", "one frame", "one pixel"])
def test_chromium_plays_a_film_to_its_end(driver, tmp_path, kind):
    folder = tmp_path / "in"
    if kind == "phone":
        folder = tmp_path / "in.mp4"
        write_source(folder, PHONE_MS)
        turn(folder, 90)
    else:
        size = {"panorama": (48, 9000), "odd size": (33, 47), "one pixel": (1, 1)}
        for i in range(1 if kind == "one frame" else 5):
            write_image(folder / f"{i}.png", size=size.get(kind, (32, 64)), bright=i)
    assert run(folder, tmp_path / "out", outputs="video").failed == 0
    path = tmp_path / "out" / "video" / "in.mp4"
    film = Film(path)
    played = driver.execute_async_script(PLAY, path.as_uri())
    assert (played["why"], played["error"]) == ("ended", None)
    assert tuple(played["size"]) == film.size
    assert played["duration"] == pytest.approx(film.length_ms / 1000, abs=0.002)
    assert played["time"] == pytest.approx(played["duration"], abs=0.002)


def test_chromium_does_not_play_mpeg_4(driver, tmp_path, monkeypatch):
    """The reason for H.264, and a sign that the test above can fail."""
    monkeypatch.setitem(sys.modules, "av", None)
    write_image(tmp_path / "in" / "1.png", size=(32, 64))
    assert run(tmp_path / "in", tmp_path / "out", outputs="video").failed == 0
    path = tmp_path / "out" / "video" / "in.mp4"
    assert driver.execute_async_script(PLAY, path.as_uri())["why"] != "ended"

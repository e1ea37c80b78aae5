"""The page of an output folder: what it shows, and that it needs nothing else."""

import base64
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from frames_by_hand import LABEL_SET, files_in, read_ids, read_rows, run, write_image, write_video

from mapseg.data.resizing import resize_label
from mapseg.inference.infer import Counts
from mapseg.inference.page.choice import choose, choose_pictures
from mapseg.inference.page.picture import Picture
from mapseg.inference.predictor import Segmentation
from mapseg.labels import LabelClass, LabelSet

HOSTILE = "</script><script>document.title='taken'<"
SIZE = (32, 64)


class Page(HTMLParser):
    """The text, attributes and data of a page."""

    def __init__(self, out_dir):
        super().__init__()
        self.source = (out_dir / "index.html").read_text()
        self.attributes, self.tags, self.scripts = [], [], []
        self._text, self._in = [], ""
        self.feed(self.source)
        self.text = " ".join("".join(self._text).split())
        self.data = json.loads(self.scripts[0])
        self.names = [frame["name"] for frame in self.data["frames"]]

    def handle_starttag(self, tag, attributes):
        self._in = tag
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, text):
        if self._in == "script":
            self.scripts.append(text)
        elif self._in != "style":
            self._text.append(text)

    def values(self, tag, name):
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def decode(uri):
    data = base64.b64decode(uri.partition("base64,")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def drive(tmp_path):
    for camera in ("image_2", "image_3"):
        for i in range(3):
            write_image(tmp_path / "drive" / camera / f"{i}.png", size=SIZE, bright=10 * i)
    return tmp_path / "drive"


def test_the_page_shows_frames_predictions_and_shares(drive, tmp_path):
    out_dir = tmp_path / "out"
    run(drive, out_dir, outputs="ids,overlay,page,video")
    page = Page(out_dir)
    assert page.names == [f"image_{c}/{i}" for c in (2, 3) for i in range(3)]
    for frame in page.data["frames"]:
        stored = read_ids(out_dir / "ids" / f"{frame['name']}.png")
        np.testing.assert_array_equal(decode(frame["ids"]), stored)
        shares = {c: (stored == int(c)).mean() for c in "01" if (stored == int(c)).any()}
        assert frame["shares"] == pytest.approx(shares, abs=1e-4)
        assert frame["confidence"] == 0.75
        assert [title for title, _ in frame["links"]] == ["overlay", "ids"]
        assert all((out_dir / unquote(address)).is_file() for _, address in frame["links"])
    photos = page.values("img", "src")[1:]
    assert len(photos) == 6 and decode(photos[2])[:, :20].mean() > 240 > decode(photos[2]).mean()
    assert [group["links"] for group in page.data["groups"]] == [
        [["video", f"video/image_{c}.mp4"]] for c in (2, 3)
    ]
    assert page.source.count("<svg") == 2 and '<g data-class="1"' in page.source
    assert "6 frames of 2 folders and videos, 2 classes" in page.text
    (alt,) = {v for v in page.values("div", "aria-label") if v.startswith("Share of")}
    assert "road, dark 68.8" in alt and "marking 0.0" in alt


def test_the_page_requests_nothing(drive, tmp_path):
    run(drive, tmp_path / "out", outputs="page")
    page = Page(tmp_path / "out")
    links = [v for _, n, v in page.attributes if n in ("src", "href", "action", "srcset")]
    assert links and all(v.startswith(("data:", "#")) for v in links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="http[^"]*"|http-equiv', "", page.source)
    assert re.search(r"url\((?!#)|@import", page.source) is None
    (policy,) = [v for v in page.values("meta", "content") if "default-src" in v]
    assert "default-src 'none'" in policy and "img-src data:;" in policy
    ids = [v for _, n, v in page.attributes if n == "id"]
    assert len(ids) == len({*ids})


def test_names_are_escaped(tmp_path):
    names = ["0 % ? #", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"]
    for name in names:
        write_image(tmp_path / "in" / f"{name}.png", size=SIZE)
    (tmp_path / "in" / "<b>broken.png").write_bytes(b"broken")
    classes = LabelClass(0, HOSTILE, (1, 2, 3)), LabelClass(1, "b", (4, 5, 6))
    hostile_set = LabelSet("hostile", classes, tuple(range(256)))
    out_dir = tmp_path / "<i>out"
    run(tmp_path / "in", out_dir, label_set=hostile_set, outputs="overlay,page")
    page = Page(out_dir)
    assert {*page.names} == {*names} and "<b>broken" in page.text and "<i>out" in page.text
    assert [c["name"] for c in page.data["classes"]] == [HOSTILE, "b"]
    assert not [n for _, n, _ in page.attributes if n.startswith("on")] and "b" not in page.tags
    assert len(page.scripts) == 2 and HOSTILE not in page.source
    for frame in page.data["frames"]:
        (link,) = frame["links"]
        assert (out_dir / unquote(link[1])).is_file() and not {*"?#%"} & {*unquote(link[1])[:7]}
        assert re.fullmatch(r"[\w/.%~-]+", link[1])


def test_later_calls_add_their_frames(drive, tmp_path):
    out_dir = tmp_path / "out"
    run(drive, out_dir, cameras="image_3", outputs="page")
    assert Page(out_dir).names == [f"image_3/{i}" for i in range(3)]
    before = {p: p.stat().st_mtime_ns for p in (out_dir / "page").rglob("*.json")}
    assert run(drive, out_dir, outputs="page") == Counts(3, 0, 3)
    assert Page(out_dir).names == [f"image_{c}/{i}" for c in (2, 3) for i in range(3)]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_page_stays_up_to_date_without_its_output(drive, tmp_path):
    out_dir = tmp_path / "out"
    run(drive, out_dir, cameras="image_3", outputs="ids,page")
    write_image(drive / "image_3" / "1.png", size=(20, 30))
    run(drive, out_dir, outputs="ids")
    page = Page(out_dir)
    assert page.names == ["image_3/0", "image_3/2"]
    assert "6 frames of 2 folders" in page.text and "4 frames have no picture here" in page.text
    run(drive, out_dir, outputs="page")
    assert len(Page(out_dir).names) == 6 and "no picture here" not in Page(out_dir).text


def test_no_page_without_the_output(drive, tmp_path):
    run(drive, tmp_path / "out", outputs="ids")
    assert not (tmp_path / "out" / "index.html").exists()


def test_failed_frames_are_listed(drive, tmp_path):
    (drive / "image_2" / "1.png").write_bytes(b"broken")
    assert run(drive, tmp_path / "out", outputs="page") == Counts(5, 1, 0)
    page = Page(tmp_path / "out")
    (row,) = [row for row in read_rows(tmp_path / "out") if row["status"] != "ok"]
    assert "image_2/1" not in page.names and "1 failed" in page.text
    assert f"image_2/1 {row['status']}" in page.text


def test_a_drive_whose_frames_all_fail(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(b"broken")
    run(tmp_path / "in", tmp_path / "out", outputs="page")
    page = Page(tmp_path / "out")
    assert page.names == [] and "0 frames, 2 classes, 1 failed" in page.text
    assert "There are no pictures of frames." in page.text and "1 error: " in page.text


def test_least_confident_frames_come_first(tmp_path):
    write_video(tmp_path / "in.mp4", count=5)

    def segment(image):
        return Segmentation(np.zeros(image.shape[:2], np.uint8), 1 - image.mean() / 256, 1.0)

    run(tmp_path / "in.mp4", tmp_path / "out", segment=segment, outputs="page")
    page = Page(tmp_path / "out")
    values = [frame["confidence"] for frame in page.data["frames"]]
    assert values == sorted(values, reverse=True) and len({*values}) == 5
    assert page.values("img", "data-photo") == ["4", "3", "2", "1", "0"]


def test_classes_of_a_mapping_and_drawn_classes(drive, tmp_path):
    mapping = {
        "void_id": 7,
        "targets": [
            {"name": "street", "id": 3, "color": [9, 8, 7]},
            {"name": "sky", "id": 4, "color": [1, 2, 3]},
        ],
        "lines": [
            {"source": "road, dark", "target": "street", "reason": "the same"},
            {"source": "marking", "target": None, "reason": "there is none"},
        ],
    }
    (tmp_path / "two.json").write_text(json.dumps(mapping))
    options = {"mapping": str(tmp_path / "two.json"), "ids": "label", "outputs": "page"}
    run(drive, tmp_path / "mapped", **options)
    page = Page(tmp_path / "mapped")
    assert page.data["classes"] == [
        {"name": "street", "color": "#090807", "drawn": True},
        {"name": "sky", "color": "#010203", "drawn": True},
    ]
    assert {*np.unique(decode(page.data["frames"][2]["ids"])).tolist()} == {0, 255}
    run(drive, tmp_path / "drawn", classes="marking", outputs="page")
    assert [c["drawn"] for c in Page(tmp_path / "drawn").data["classes"]] == [False, True]


def test_a_page_of_someone_else_is_not_overwritten(drive, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="must be empty or hold results of mapseg"):
        run(drive, tmp_path / "out", outputs="page")
    assert (tmp_path / "out" / "index.html").read_text() == "mine"


def test_a_damaged_picture_is_named(drive, tmp_path):
    run(drive, tmp_path / "out", outputs="page")
    (tmp_path / "out" / "page" / "image_2" / "1.json").write_text('{"photo": 1')
    with pytest.raises(ValueError, match=r"page/image_2/1\.json: must be a picture.*delete it"):
        run(drive, tmp_path / "out", outputs="page")
    (tmp_path / "out" / "page" / "image_2" / "1.json").unlink()
    assert run(drive, tmp_path / "out", outputs="page") == Counts(1, 0, 5)


def test_pages_are_not_frames(drive, tmp_path):
    run(drive, drive / "out", outputs="page")
    assert run(drive, drive / "out", outputs="page") == Counts(0, 0, 6)
    assert files_in(drive / "out" / "page") == [
        f"image_{c}/{i}.json" for c in (2, 3) for i in range(3)
    ]


# Which frames


def rows(confidences):
    return [{"frame": str(i), "mean_confidence": f"{c:.4f}"} for i, c in enumerate(confidences)]


def test_frames_are_evenly_spaced_with_the_least_confident():
    confidences = np.full(5000, 0.9)
    confidences[[7, 4000]] = 0.1
    confidences[20] = np.nan
    chosen = choose(rows(confidences), 200)
    assert len(chosen) == 200 and {7, 4000} <= {*chosen} and chosen == sorted({*chosen})
    assert chosen[-1] == 4999 and np.diff(chosen[20:]).max() <= 5000 / 180 + 2
    assert choose(rows(confidences[:200]), 200) == [*range(200)]


@pytest.mark.parametrize("count", [1, 3, 500])
def test_pictures_fit_into_the_page(count):
    def read(row):
        return Picture("p" * 900, "i" * (100 + 400 * (int(row["frame"]) % 2)), (1, 1))

    pictures = choose_pictures(rows(np.full(count, 0.5)), read, most_bytes=100_000)
    size = sum(len(p.photo) + len(p.ids) for p in pictures.values())
    assert size <= 100_000 and len(pictures) >= min(count, 60)
    assert len(choose_pictures(rows(np.full(count, 0.5)), read, most_bytes=10)) == 1


def test_two_hundred_large_frames_stay_below_15_mb(tmp_path):
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 12, (1024, 2048, 3))
    street = cv2.resize(rng.integers(0, 256, (20, 40, 3)).astype(np.uint8), (2048, 1024))
    noise = np.clip(street + grain, 0, 255).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.jpg"), np.roll(noise, 99 * i, axis=1))
    coarse = resize_label((rng.random((16, 32)) > 0.5).astype(np.uint8), (1024, 2048))

    def segment(image):
        return Segmentation(coarse, 0.5, 1.0)

    run(tmp_path / "in", tmp_path / "out", segment=segment, outputs="page", label_set=LABEL_SET)
    assert 50 * (tmp_path / "out" / "index.html").stat().st_size < 15e6

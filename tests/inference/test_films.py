"""Films of overlays: H.264 that browsers play, at the times of their source."""

import errno
import os
import resource
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from films_by_hand import PHONE_MS, Film, turn, write_source
from frames_by_hand import files_in, read_rows, run, segment, write_image, write_video
from PIL import Image

from mapseg.inference import films
from mapseg.inference.infer import Counts
from mapseg.inference.reading import FrameReader


def status(out_dir, name):
    (row,) = [row for row in read_rows(out_dir) if row["frame"] == name]
    return row["status"]


def make_film(source, out_dir, name, **options):
    lines = []
    counts = run(source, out_dir, outputs="overlay,video", lines=lines, **options)
    assert counts.failed == 0
    return Film(out_dir / "video" / f"{name}.mp4"), lines


def overlays(out_dir):
    paths = sorted((out_dir / "overlay").rglob("*.jpg"))
    return [np.asarray(Image.open(path)) for path in paths]


@pytest.mark.parametrize(
    ("ending", "degrees", "every"),
    [("mp4", 0, 1), ("mp4", 90, 1), ("mp4", 90, 3), ("mov", 180, 1), ("mkv", 0, 1)],
)
def test_a_phones_video_keeps_its_times_and_is_upright(tmp_path, ending, degrees, every):
    write_source(tmp_path / f"clip.{ending}", PHONE_MS)
    if degrees:
        turn(tmp_path / f"clip.{ending}", degrees)
    film, _ = make_film(tmp_path / f"clip.{ending}", tmp_path / "out", "clip", every=every)
    assert (film.codec, film.pix_fmt, film.index_is_first) == ("h264", "yuv420p", True)
    assert film.size == ((80, 48) if degrees == 90 else (48, 80))
    kept = PHONE_MS[::every]
    assert film.ms == pytest.approx(kept)
    assert film.length_ms == pytest.approx(2 * kept[-1] - kept[-2])  # the last as the one before
    # The white corner of the stored frames, at the top left, is where the rotation puts it.
    corner = film.pictures[0][
        {0: np.s_[:12, :12], 90: np.s_[:12, -12:], 180: np.s_[-12:, -12:]}[degrees]
    ]
    assert corner.min() > 150
    for shown, overlay in zip(film.pictures, overlays(tmp_path / "out"), strict=True):
        assert np.abs(shown.astype(int) - overlay).mean() < 3


@pytest.mark.addons
@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1))])
def test_every_version_of_opencv_reads_a_phones_video_upright(tmp_path, degrees, corner):
    write_source(tmp_path / "clip.mp4", PHONE_MS)
    turn(tmp_path / "clip.mp4", degrees)
    reader = FrameReader()
    for number, ms in enumerate(PHONE_MS):
        image, secs = reader.read(tmp_path / "clip.mp4", number)
        assert image.shape == ((80, 48, 3) if degrees == 90 else (48, 80, 3))
        assert image[corner].min() > 230 and secs == pytest.approx(ms / 1000)


def test_a_video_that_starts_late_is_shown_from_its_first_frame(tmp_path):
    write_source(
        tmp_path / "clip.mov", [90_000 * 7 + 3003 * i for i in range(6)], Fraction(1, 90_000)
    )
    film, _ = make_film(tmp_path / "clip.mov", tmp_path / "out", "clip")
    assert film.ms == pytest.approx([1001 / 30 * i for i in range(6)])
    assert film.fps == pytest.approx(30_000 / 1001)


def test_the_frame_rate_of_the_source_is_exact(tmp_path):
    """MPEG-4 in OpenCV stores 90.12."""
    writer = cv2.VideoWriter(
        str(tmp_path / "phone.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 90.123, (64, 48)
    )
    for i in range(3):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    film, _ = make_film(tmp_path / "phone.avi", tmp_path / "out", "phone")
    assert film.fps == pytest.approx(90.123) and len(film.ms) == 3


@pytest.mark.parametrize(
    ("size", "shown"),
    [((48, 9000), (22, 4096)), ((9000, 48), (4096, 22)), ((47, 4097), (48, 4096))],
)
def test_frames_too_large_for_browsers_are_shrunk(tmp_path, size, shown):
    for i in range(3):
        write_image(tmp_path / "pano" / f"{i}.png", size=size, bright=min(size[1], 8) * i // 2)
    film, lines = make_film(tmp_path / "pano", tmp_path / "out", "pano")
    assert film.size == shown and film.ms == [0, 100, 200]
    assert "video/pano.mp4: its frames of " in lines[0] and "are shrunk to " in lines[0]
    assert f"{size[0]} x {size[1]} px" in lines[0]


def test_the_largest_frames_have_as_many_blocks_as_level_5_2_allows():
    assert films.h264_size((2160, 3840)) == (2160, 3840)
    assert films.h264_size((4096, 2304)) == (4096, 2304)
    assert films.h264_size((9, 7)) == (9, 7)  # odd sizes are padded later
    height, width = films.h264_size((3000, 4000))
    assert width / height == pytest.approx(4 / 3, rel=1e-3)
    assert 0.98 < -(-height // 16) * -(-width // 16) / 36_864 <= 1
    assert films.h264_size((2, 100_000)) == (1, 4096)


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 15), (33, 46)])
def test_odd_sizes_are_padded_with_their_last_row_and_column(tmp_path, size):
    write_image(tmp_path / "in" / "1.png", size=size, bright=size[1])
    film, lines = make_film(tmp_path / "in", tmp_path / "out", "in")
    height, width = size
    assert film.size == (height + height % 2, width + width % 2)
    overlay = overlays(tmp_path / "out")[0].astype(int)
    padded = np.pad(overlay, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    assert np.abs(film.pictures[0] - padded).max() < 8
    assert not any("shrunk" in line for line in lines)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_film_of_one_frame_is_shown_for_the_time_of_one(tmp_path, kind):
    if kind == "image":
        write_image(tmp_path / "in" / "1.png")
    else:
        write_source(tmp_path / "in.mp4", PHONE_MS)
    source = tmp_path / ("in" if kind == "image" else "in.mp4")
    film, _ = make_film(source, tmp_path / "out", "in", every=100)
    assert film.ms == [0]
    assert film.length_ms == pytest.approx(100) if kind == "image" else film.length_ms > 10


def test_times_that_do_not_increase_are_replaced(tmp_path, monkeypatch):
    """Some recorders repeat a time; the film continues at the frame rate."""
    write_video(tmp_path / "clip.mp4", count=4, fps=10.0)
    read = FrameReader.read

    def repeating(self, path, number):
        return read(self, path, number)._replace(secs=[0.0, 0.25, 0.25, 0.1][number])

    monkeypatch.setattr(FrameReader, "read", repeating)
    film, _ = make_film(tmp_path / "clip.mp4", tmp_path / "out", "clip")
    assert film.ms == pytest.approx([0, 250, 350, 450], abs=1)


# Failed writes


def write_noise(folder, count=6, size=(200, 300)):
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / f"{i}.png"), noise)


@pytest.fixture
def file_limit():
    """Limits the size of files, as a full disk does."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("count", [6, 60])  # fails when closing, or before
def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path, count, request):
    write_noise(tmp_path / "in", count)
    request.getfixturevalue("file_limit")
    assert run(tmp_path / "in", tmp_path / "out", outputs="video") == Counts(count, 1, 0)
    text = status(tmp_path / "out", "video/in.mp4")
    assert "in.mp4: cannot be written: File too large. Remedy: raise the limit" in text
    assert files_in(tmp_path / "out" / "video") == []


def test_a_full_disk_stops_the_call(tmp_path, monkeypatch):
    write_noise(tmp_path / "in", 3)

    def full(*_):
        raise av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "in.mp4")

    monkeypatch.setattr(films, "_yuv_frame", full)
    with pytest.raises(
        OSError, match=r"in\.mp4: cannot be written: No space left.*Remedy: free some space"
    ):
        run(tmp_path / "in", tmp_path / "out", outputs="video")
    assert files_in(tmp_path / "out" / "video") == []


def test_an_error_of_the_encoder_fails_only_the_film(tmp_path, monkeypatch):
    write_image(tmp_path / "in" / "1.png")
    monkeypatch.setattr(films, "_X264", {"preset": "none"})
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids,video") == Counts(1, 1, 0)
    assert "in.mp4: its frames must be ones that x264 can encode; got" in status(
        tmp_path / "out", "video/in.mp4"
    )
    assert files_in(tmp_path / "out" / "video") == []


def test_an_interrupted_film_leaves_nothing_and_is_made_again(tmp_path):
    for i in range(9):
        write_image(tmp_path / "in" / f"{i}.png")
    calls = []

    def interrupt(image):
        calls.append(image)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return segment(image)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", interrupt, outputs="ids,video")
    assert files_in(tmp_path / "out" / "video") == []
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids,video").failed == 0
    assert len(Film(tmp_path / "out" / "video" / "in.mp4").ms) == 9


# Without PyAV: MPEG-4


@pytest.fixture
def without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.usefixtures("without_pyav")
def test_without_pyav_films_are_mpeg_4_and_the_extra_is_named(tmp_path):
    write_image(tmp_path / "in" / "1.png", size=(33, 47))
    lines = []
    assert run(tmp_path / "in", tmp_path / "out", outputs="video", lines=lines) == Counts(1, 0, 0)
    assert lines[0].startswith("videos are written in MPEG-4, which browsers do not play")
    assert lines[0].endswith("Remedy: pip install 'mapseg[video]'")
    video = cv2.VideoCapture(str(tmp_path / "out" / "video" / "in.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 1
    assert int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") == b"FMP4"
    lines.clear()
    run(tmp_path / "in", tmp_path / "other", outputs="ids", lines=lines)
    assert not any("PyAV" in line for line in lines)


@pytest.mark.usefixtures("without_pyav")
@pytest.mark.parametrize(
    ("size", "why"), [((48, 9000), "got 48 x 9000 px"), ((9000, 48), "got 9000 x 48 px")]
)
def test_a_video_too_large_for_mpeg_4_fails_alone(tmp_path, size, why):
    lines = []
    write_image(tmp_path / "in" / "pano" / "1.png", size=size)
    write_image(tmp_path / "in" / "wide" / "1.png", size=(48, 8000))
    outputs = {"outputs": "ids,video"}
    assert run(tmp_path / "in", tmp_path / "out", lines=lines, **outputs) == Counts(2, 1, 0)
    assert why in status(tmp_path / "out", "video/pano.mp4")
    assert "videos failed: 1" in lines[-1] and why in lines[-2]
    assert files_in(tmp_path / "out" / "video") == ["wide.mp4"]
    # It is retried while video is requested; otherwise its row is removed.
    assert run(tmp_path / "in", tmp_path / "out", **outputs) == Counts(0, 1, 2)
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids") == Counts(0, 0, 2)
    assert [row["frame"] for row in read_rows(tmp_path / "out")] == ["pano/1", "wide/1"]


@pytest.mark.usefixtures("without_pyav")
def test_a_frame_rate_is_rounded_to_one_that_mpeg_4_can_store(tmp_path):
    path = tmp_path / "phone.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 90.123, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    assert run(path, tmp_path / "out", outputs="ids,video") == Counts(3, 0, 0)
    video = cv2.VideoCapture(str(tmp_path / "out" / "video" / "phone.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(90.12)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    ("fps", "rate"),
    [(29.97002997, 29.97002997), (65.535, 65.535), (90.123, 90.12), (1000.55, 1000.5), (7e3, 7e3)],
)
def test_rounded_frame_rates(fps, rate):
    assert films._rate(fps) == pytest.approx(rate, abs=0.06 if fps > 1000 else 1e-9)


@pytest.mark.usefixtures("without_pyav")
def test_a_video_whose_frame_rate_cannot_be_stored_fails(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", count=2)
    monkeypatch.setattr(films, "_rate", lambda fps: 90_000.0)
    assert run(tmp_path / "clip.mp4", tmp_path / "out", outputs="ids,video") == Counts(2, 1, 0)
    assert "got 32 x 48 px and 90000 frames/s" in status(tmp_path / "out", "video/clip.mp4")


@pytest.mark.usefixtures("without_pyav")
def test_an_incomplete_mpeg_4_film_is_an_error(tmp_path, monkeypatch):
    class Deaf:
        def __init__(self, *_):
            pass

        def isOpened(self):  # noqa: N802
            return True

        def write(self, picture):
            pass

        def release(self):
            pass

    write_image(tmp_path / "in" / "1.png")
    monkeypatch.setattr(films.cv2, "VideoWriter", Deaf)
    lines = []
    assert run(tmp_path / "in", tmp_path / "out", outputs="video", lines=lines) == Counts(1, 1, 0)
    assert "video/in.mp4: not all of 1 frames can be read back. Remedy" in lines[-2]
    assert not (tmp_path / "out" / "video" / "in.mp4").exists()
    monkeypatch.setattr(films, "_DISK_IS_FULL_BYTES", 2**63)
    with pytest.raises(
        OSError, match=r"in\.mp4: cannot be written: No space left.*Remedy: free some space"
    ):
        run(tmp_path / "in", tmp_path / "out", outputs="video")

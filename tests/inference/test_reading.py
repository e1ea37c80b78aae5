import base64
import os

import cv2
import numpy as np
import pytest
from frames_by_hand import (
    config,
    cut,
    damage,
    files_in,
    read_rows,
    run,
    segment,
    with_edit_list,
    write_image,
    write_moving,
    write_video,
)
from PIL import Image, TiffImagePlugin

from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts
from mapseg.inference.measuring import VideoLength, measure_video
from mapseg.inference.reading import read_image


def test_grey_and_16_bit_images_become_8_bit_rgb(tmp_path):
    grey = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    cv2.imwrite(str(tmp_path / "16.png"), grey)
    image = read_image(tmp_path / "16.png")
    assert image.dtype == np.uint8 and image.shape == (6, 10, 3)
    assert np.abs(image[..., 0].astype(int) - grey / 257).max() < 1
    assert (image[..., 0] == image[..., 2]).all()
    Image.fromarray(np.full((4, 4, 3), (200, 10, 20), np.uint8)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [200, 10, 20]


def test_the_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_a_truncated_image_is_rejected(tmp_path, kind, share):
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    data = cv2.imencode(f".{kind}", noise)[1].tobytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"a\.{kind}: cannot be"):
        read_image(path)


def test_two_videos_are_read_by_a_glob_and_resumed(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", count=6)
    write_video(tmp_path / "in" / "b.mp4", count=3)
    pattern, out_dir = tmp_path / "in" / "*.mp4", tmp_path / "out"
    assert run(pattern, out_dir, outputs="ids") == Counts(9, 0, 0)
    (out_dir / "ids" / "a" / "000004.png").unlink()
    brightness = []
    run(pattern, out_dir, lambda im: brightness.append(im.mean()) or segment(im), outputs="ids")
    np.testing.assert_allclose(brightness, [160], atol=4)


# Files of several pictures

PAGES = [Image.new("RGB", (12, 8), (bright, 0, 0)) for bright in (10, 90, 200)]
ALL = {"save_all": True, "append_images": PAGES[1:]}


@pytest.mark.parametrize("kind", ["png", "gif", "tif", "webp"])
def test_a_file_of_several_pictures_is_rejected(tmp_path, kind):
    PAGES[0].save(tmp_path / f"a.{kind}", **ALL)
    with pytest.raises(
        ValueError, match=rf"a\.{kind}: .*must hold one picture; got 3 pages.*Remedy: save each"
    ):
        read_image(tmp_path / f"a.{kind}")
    PAGES[1].save(tmp_path / f"one.{kind}")
    assert np.abs(read_image(tmp_path / f"one.{kind}")[0, 0] - [90.0, 0, 0]).max() <= 4


def test_only_the_first_picture_of_a_phones_jpeg_is_read(tmp_path):
    PAGES[2].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=PAGES[:1])
    assert read_image(tmp_path / "a.jpg")[..., 0].min() > 195


def save_tiff(path, kinds):
    """Writes a TIFF with a page of each kind: 0 a picture, 1 a smaller copy, 4 a mask."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as tiff:
        for i, kind in enumerate(kinds):
            PAGES[i].save(tiff, format="TIFF", tiffinfo={254: kind})
            tiff.newFrame()


def test_smaller_copies_and_masks_in_a_tiff_are_ignored(tmp_path):
    save_tiff(tmp_path / "a.tif", (0, 1, 4))
    assert read_image(tmp_path / "a.tif")[0, 0].tolist() == [10, 0, 0]
    for kinds in ((1, 0, 1), (0, 1, 0)):  # a preview comes first, or there are two
        save_tiff(tmp_path / "a.tif", kinds)
        with pytest.raises(ValueError, match="must hold one picture; got 3 pages"):
            read_image(tmp_path / "a.tif")


def save_ppm(path, peak, dtype, count=1, comment=b""):
    pixels = np.full((8, 12, 3), 0.7 * peak).astype(dtype)
    head = b"P6\n" + comment + b"12 8\n" + str(peak).encode() + b"\n"
    path.write_bytes(count * (head + pixels.tobytes()))


def test_a_ppm_of_another_maximum_or_several_pictures_is_rejected(tmp_path):
    """OpenCV does not scale its values, and decodes only the first picture."""
    path = tmp_path / "a.ppm"
    for peak, dtype in ((255, np.uint8), (65535, ">u2")):
        save_ppm(path, peak, dtype, comment=b"# 7 of 9\n")
        assert np.abs(read_image(path) - 178.0).max() <= 1
    for peak, dtype in ((100, np.uint8), (1023, ">u2"), (4095, ">u2")):
        save_ppm(path, peak, dtype)
        with pytest.raises(
            ValueError, match=rf"a\.ppm: .*must be 255 or 65535; got {peak}.*Remedy"
        ):
            read_image(path)
    save_ppm(path, 255, np.uint8, count=2)
    with pytest.raises(ValueError, match="must hold one picture; got more pages"):
        read_image(path)


# Videos that differ from what they announce


KINDS = [("mp4", "mp4v"), ("avi", "MJPG"), ("avi", "XVID"), ("mkv", "VP80"), ("webm", "VP90")]


@pytest.mark.parametrize(("ending", "code"), KINDS)
def test_the_length_of_a_video_is_measured(tmp_path, ending, code):
    path = tmp_path / f"a.{ending}"
    write_moving(path, code)
    assert measure_video(path) == VideoLength(60, 60, True)
    if ending != "mp4":  # a truncated MP4 cannot be opened
        cut(path)
        frames, announced, is_whole = measure_video(path)
        assert 20 < frames < 35 and announced == 60 and not is_whole


def test_the_first_frames_of_a_damaged_video_are_segmented_and_the_cause_reported(tmp_path):
    write_moving(tmp_path / "in" / "clip.mp4")
    damage(tmp_path / "in" / "clip.mp4")
    write_image(tmp_path / "in" / "z.png")
    frames, announced, is_whole = measure_video(tmp_path / "in" / "clip.mp4")
    assert 20 < frames < 40 and announced == 60 and not is_whole
    pattern, out_dir = tmp_path / "in" / "*", tmp_path / "out"
    assert run(pattern, out_dir, outputs="ids") == Counts(frames + 1, 1, 0)
    assert len(files_in(out_dir / "ids")) == frames + 1
    (row,) = [row for row in read_rows(out_dir) if row["status"] != "ok"]
    assert row["frame"] == f"clip/{frames:06d}"
    assert (
        f"clip.mp4: a video must be decodable to its end; got {frames} frames of 60: the rest is "
        "damaged or missing, or its audio is longer. Remedy: copy it again" in row["status"]
    )
    assert run(pattern, out_dir, outputs="ids") == Counts(0, 1, frames + 1)
    write_moving(tmp_path / "in" / "clip.mp4")  # copied again: all frames are done again
    assert run(pattern, out_dir, outputs="ids") == Counts(60, 0, 1)
    assert {row["status"] for row in read_rows(out_dir)} == {"ok"}


def test_a_video_shortened_by_its_edit_list_is_whole(tmp_path, monkeypatch):
    write_moving(tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(with_edit_list(data, first=24))
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    assert measure_video(tmp_path / "a.mp4") == VideoLength(36, 60, True)
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "threads;1"
    frame_list = find_frames(config(tmp_path / "a.mp4", "unused"))
    assert len(frame_list.frames) == 36
    assert frame_list.skipped == (
        f"{tmp_path}/a.mp4: its header announces 60 frames, 36 can be decoded: its frame "
        "rate varies, it was cut without re-encoding, or frames are lost",
    )


# Three grey frames of 16 x 16 in MPEG-2, interlaced.
INTERLACED = base64.b64decode(
    "AAABswEAEBP//+AYAAABtRSCAAEAAAAAAbgACABAAAABAAAP//gAAAG1j//zAAAAAAEB+y0pSIgAAAEC+y0pSIgAAAGz"
    "AQAQE///4BgAAAG1FIIAAQAAAAABuAAIAIAAAAEAAA//+AAAAbWP//MAAAAAAQH7LSlIiAAAAQL7LSlIiAAAAbMBABAT"
    "///gGAAAAbUUggABAAAAAAG4AAgBAAAAAQAAD//4AAABtY//8wAAAAABAfstKUiIAAABAvstKUiI"
)


def test_an_interlaced_video_is_rejected(tmp_path):
    """OpenCV reports success and returns black or uninitialised frames."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.avi").write_bytes(INTERLACED)
    write_video(tmp_path / "in" / "b.mp4", count=3)
    lines = []
    assert run(tmp_path / "in" / "*", tmp_path / "out", lines=lines) == Counts(3, 1, 0)
    assert "a.avi: a video must be progressive; got frames that never change" in " ".join(lines)


@pytest.mark.parametrize("left", [90, 200])
def test_a_video_of_a_still_image_is_not_rejected_as_interlaced(tmp_path, left):
    writer = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (48, 32)
    )
    picture = np.full((32, 48, 3), 90, np.uint8)
    picture[:, :20] = left
    for _ in range(4):
        writer.write(picture)
    writer.release()
    assert measure_video(tmp_path / "a.avi") == VideoLength(4, 4, True)


def test_an_unsupported_codec_is_reported(tmp_path):
    write_moving(tmp_path / "a.avi", "MJPG", count=3)
    data = (tmp_path / "a.avi").read_bytes().replace(b"MJPG", b"XYZW")
    (tmp_path / "a.avi").write_bytes(data)
    lines = []
    assert run(tmp_path / "a.avi", tmp_path / "out", lines=lines) == Counts(0, 1, 0)
    assert "a.avi: " in lines[-2] and ("codec" in lines[-2] or "can decode" in lines[-2])


@pytest.mark.parametrize(("bits", "whole"), [(16, True), (12, False)])
def test_a_16_bit_video_must_use_the_full_range(tmp_path, monkeypatch, bits, whole):
    """As from infrared cameras; OpenCV returns the upper 8 bits, so 12-bit values are dark."""
    write_moving(tmp_path / "a.avi", "MJPG", count=4)
    opened = cv2.VideoCapture

    class Deep:
        def __init__(self, path):
            self._capture = opened(path)

        def __getattr__(self, name):
            return getattr(self._capture, name)

        def get(self, what):
            code = int.from_bytes(b"Y1\0\x10", "little")
            return code if what == cv2.CAP_PROP_CODEC_PIXEL_FORMAT else self._capture.get(what)

        def read(self):
            is_read, picture = self._capture.read()
            return is_read, None if picture is None else picture >> (16 - bits)

    monkeypatch.setattr(cv2, "VideoCapture", Deep)
    if whole:
        assert measure_video(tmp_path / "a.avi") == VideoLength(4, 4, True)
    else:
        with pytest.raises(ValueError, match=r"a\.avi: an image must have 8 bits.*Remedy"):
            measure_video(tmp_path / "a.avi")

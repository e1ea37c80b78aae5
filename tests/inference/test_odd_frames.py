"""Odd and damaged frames: each is segmented correctly, or fails alone with name and cause."""

import errno
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from frames_by_hand import (
    config,
    files_in,
    names,
    read_ids,
    read_rows,
    run,
    segment,
    write_image,
    write_video,
)
from PIL import Image

from mapseg import pictures
from mapseg.inference import reading
from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts
from mapseg.inference.reading import read_image

SMOOTH = cv2.resize(np.random.default_rng(0).integers(60, 256, (8, 12, 3), np.uint8), (240, 160))


def status(out_dir, name):
    (row,) = [row for row in read_rows(out_dir) if row["frame"] == name]
    return row["status"]


# Images


def test_a_jpeg_that_a_strict_decoder_warns_about_fails_alone(tmp_path):
    data = bytearray(cv2.imencode(".jpg", SMOOTH)[1].tobytes())
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "whole.jpg").write_bytes(data)
    (tmp_path / "in" / "scan.jpg").write_bytes(data[:-2] + b"\0" * 40 + data[-2:])
    (tmp_path / "in" / "end.jpg").write_bytes(data[:-2])
    middle = len(data) // 2
    (tmp_path / "in" / "cut.jpg").write_bytes(data[:middle] + data[middle + 200 :])
    assert run(tmp_path / "in", tmp_path / "out") == Counts(2, 3, 0)
    for name in ("scan", "end", "cut"):
        assert f"{name}.jpg: cannot be decoded: " in status(tmp_path / "out", name)
    assert files_in(tmp_path / "out" / "ids") == ["1.png", "whole.png"]
    np.testing.assert_array_equal(
        read_image(tmp_path / "in" / "whole.jpg"),
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_every_kind_of_intact_jpeg_is_decoded(tmp_path, mode, options):
    picture = Image.fromarray(SMOOTH).convert(mode)
    picture.save(tmp_path / "a.jpg", **options)
    wanted = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg") - wanted).max() <= 2


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".webp", ".ppm", ".jpg"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98])
def test_a_truncated_image_of_any_format_is_rejected(tmp_path, ending, share):
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 5] if ending == ".tif" else []
    data = cv2.imencode(ending, SMOOTH, options)[1].tobytes()
    (tmp_path / f"a{ending}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"a{ending}: cannot be decoded: "):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_fewer_than_16_bits_in_16_fail_and_all_16_are_decoded(tmp_path, kind, ending):
    eight = SMOOTH if kind == "colour" else SMOOTH[..., 0]
    folder = tmp_path / "in"
    folder.mkdir()
    for bits in (10, 12, 14, 16):
        cv2.imwrite(str(folder / f"{bits}{ending}"), eight.astype(np.uint16) << (bits - 8))
    assert run(folder, tmp_path / "out") == Counts(1, 3, 0)
    assert "may be a camera's 10, 12 or 14 bits. Remedy" in status(tmp_path / "out", "12")
    expected = SMOOTH[..., ::-1] if kind == "colour" else np.dstack([eight] * 3)
    decoded = read_image(folder / f"16{ending}")
    assert np.abs(decoded - expected.astype(int)).max() <= 1  # the libraries round differently


def test_float_images_are_rejected(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), SMOOTH[..., 0].astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"a\.tif: cannot be decoded: "):
        read_image(tmp_path / "a.tif")


def test_a_decompression_bomb_fails_before_it_is_decoded(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    write_image(folder / "1.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    decoded = []
    decode = reading._decode
    monkeypatch.setattr(reading, "_decode", lambda data: decoded.append(len(data)) or decode(data))
    assert run(folder, tmp_path / "out") == Counts(1, 1, 0)
    assert "bomb.png: cannot be decoded: " in status(tmp_path / "out", "bomb")
    assert "400000000 pixels" in status(tmp_path / "out", "bomb")
    assert len(decoded) == 1


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "L"])
def test_other_kinds_of_png_are_decoded(tmp_path, mode):
    data = io.BytesIO()
    Image.fromarray(SMOOTH).convert("RGB").convert(mode).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    wanted = cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), wanted[..., ::-1])


def test_a_pipe_is_not_waited_for(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    for name in ("2.png", "3.mp4"):
        os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in" / "4.png").symlink_to(tmp_path / "nowhere")
    assert run(tmp_path / "in", tmp_path / "out") == Counts(1, 2, 0)
    assert "must be a regular file" in status(tmp_path / "out", "2")
    assert "No such file" in status(tmp_path / "out", "4")
    listing = tmp_path / "in" / "*"  # only existing files
    assert names(listing) == ["1"]


# Names, folders and lists


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    folder, lines = tmp_path / "in", []
    write_image(folder / "1.png")
    write_image(folder / "2.png", bright=7)
    odd = os.fsdecode(os.fsencode(folder) + b"/Z\xfcrich")
    os.rename(folder / "2.png", odd + ".png")  # noqa: PTH104
    write_video(folder / "clip.mp4")
    os.rename(folder / "clip.mp4", odd + " clip.mp4")  # noqa: PTH104
    (folder / "broken.png").write_bytes(b"broken")
    os.rename(folder / "broken.png", odd + " broken.png")  # noqa: PTH104
    pattern = folder / "*"
    assert run(pattern, tmp_path / "out", outputs="ids,video", lines=lines) == Counts(2, 2, 0)
    assert read_ids(tmp_path / "out" / "ids" / r"Z\xfcrich.png").mean() == 0.7
    assert status(tmp_path / "out", r"Z\xfcrich") == "ok"
    assert r"Z\xfcrich broken.png: cannot be" in status(tmp_path / "out", r"Z\xfcrich broken")
    assert "must be UTF-8" in status(tmp_path / "out", r"Z\xfcrich clip")
    assert all(line.encode() for line in lines)
    assert run(pattern, tmp_path / "out", outputs="ids,video") == Counts(0, 2, 2)


def test_only_the_video_fails_in_an_out_dir_that_is_not_utf8(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    out_dir = tmp_path / os.fsdecode(b"Z\xfcrich")
    assert run(tmp_path / "in", out_dir, outputs="ids,video") == Counts(1, 1, 0)
    assert "must be UTF-8" in status(out_dir, "video/in.mp4")


@pytest.mark.parametrize("length", [240, 251])
def test_a_name_of_nearly_255_bytes_does_not_stop_other_frames(tmp_path, length):
    write_image(tmp_path / "in" / "1.png")
    long = "x" * length
    write_image(tmp_path / "in" / "2.png")
    (tmp_path / "in" / "2.png").rename(tmp_path / "in" / f"{long}.png")
    counts = run(tmp_path / "in", tmp_path / "out", outputs="ids,overlay,video")
    assert counts.done + counts.failed == 2
    assert (status(tmp_path / "out", "1"), read_ids(tmp_path / "out/ids/1.png").shape) == (
        "ok",
        (6, 10),
    )
    if counts.failed:
        assert "File name too long" in status(tmp_path / "out", long)


def test_hidden_folders_and_loops_of_links_are_skipped_in_folders_and_globs(tmp_path):
    write_image(tmp_path / "in" / "a" / "1.png")
    write_image(tmp_path / "in" / ".ipynb_checkpoints" / "1.png")
    (tmp_path / "in" / "a" / "back").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == names(tmp_path / "in" / "**") == ["a/1"]


@pytest.mark.parametrize("folder", ["in_depth_tour", "depth", "my_instances", "semantics"])
def test_folders_with_names_similar_to_kittis_label_folders_are_frames(tmp_path, folder):
    write_image(tmp_path / "sequences" / folder / "image_2" / "000000.png")
    assert names(tmp_path) == [f"sequences/{folder}/image_2/000000"]


def test_a_frame_listed_twice_is_one_frame(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n./a.png\n../" + tmp_path.name + "/a.png\n")
    assert names(tmp_path / "list.txt") == ["a"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_may_have_a_byte_order_mark(tmp_path, encoding):
    write_image(tmp_path / "Straße.png".replace("ß", "ss"))
    (tmp_path / "list.txt").write_bytes("Strasse.png\r\n# ß\r\n".encode(encoding))
    assert names(tmp_path / "list.txt") == ["Strasse"]


@pytest.mark.parametrize(
    ("encoding", "what"),
    [("utf-16", "UTF-16"), ("utf-16-le", "zero"), ("latin-1", r"line 2: b'\\xdf'")],
)
def test_a_list_in_another_encoding_is_rejected(tmp_path, encoding, what):
    write_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes("a.png\n".encode(encoding))
    if encoding == "latin-1":
        (tmp_path / "list.txt").write_bytes("a.png\n# ß\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"list\.txt: .*must be UTF-8 text; got .*{what}"):
        find_frames(config(tmp_path / "list.txt", "unused"))


# One frame or video never stops the others


def test_a_frame_too_wide_for_a_jpeg_fails_alone(tmp_path):
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", size=(3, 70_000 if i == 1 else 10))
    assert run(tmp_path / "in", tmp_path / "out") == Counts(2, 1, 0)
    assert "must be at most 65,500 px; got 3 x 70000" in status(tmp_path / "out", "1")
    assert files_in(tmp_path / "out" / "ids") == ["0.png", "2.png"]
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids") == Counts(1, 0, 2)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a size it refuses"),
        MemoryError(),
        cv2.error("drawing"),
        RuntimeError("the network"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
@pytest.mark.parametrize("step", ["segment", "overlay", "write_png"])
def test_any_error_of_one_frame_fails_only_that_frame(tmp_path, monkeypatch, error, step):
    for i in range(9):
        write_image(tmp_path / "in" / f"{i}.png", bright=i)

    def is_fifth(first, *_):
        if step == "write_png":
            return first == tmp_path / "out/ids/5.png"
        return int((first[0] > 127).all(-1).sum()) == 5

    def fail_at_5(work):
        def working(*arguments):
            if is_fifth(*arguments):
                raise error
            return work(*arguments)

        return working

    network = fail_at_5(segment) if step == "segment" else segment
    if step != "segment":
        monkeypatch.setattr(pictures, step, fail_at_5(getattr(pictures, step)))
    assert run(tmp_path / "in", tmp_path / "out", network) == Counts(8, 1, 0)
    text = status(tmp_path / "out", "5")
    assert text.startswith("error: ") and (str(error.args[-1]) if error.args else "Memory") in text
    assert len(files_in(tmp_path / "out" / "ids")) == 8
    monkeypatch.undo()
    assert run(tmp_path / "in", tmp_path / "out") == Counts(1, 0, 8)


def test_a_full_disk_stops_the_call_and_finished_frames_are_kept(tmp_path, monkeypatch):
    for i in range(12):
        write_image(tmp_path / "in" / f"{i}.png")
    write_bytes = Path.write_bytes

    def full(self, data):
        if ".5." in self.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"5\.png: cannot be written: No space left.*Remedy"):
        run(tmp_path / "in", tmp_path / "out", outputs="ids")
    monkeypatch.undo()
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids").skipped >= 5


def test_a_broken_video_fails_alone(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", count=3)
    (tmp_path / "in" / "b.mp4").write_bytes(b"broken")
    (tmp_path / "in" / "c.avi").touch()
    assert run(tmp_path / "in" / "*", tmp_path / "out", outputs="ids,video") == Counts(3, 2, 0)
    for name in ("b", "c"):
        assert "must be a video that OpenCV can decode" in status(tmp_path / "out", name)
    assert files_in(tmp_path / "out" / "video") == ["a.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_only_the_video_fails_in_a_read_only_video_folder(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "out" / "video").mkdir(parents=True, mode=0o500)
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids,video") == Counts(1, 1, 0)


def test_a_file_in_place_of_a_folder_fails_only_its_outputs(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    write_image(tmp_path / "in" / "a" / "2.png")
    run(tmp_path / "in", tmp_path / "out", outputs="ids")
    (tmp_path / "out" / "video").touch()
    (tmp_path / "out" / "overlay").mkdir()
    (tmp_path / "out" / "overlay" / "a").touch()
    counts = run(tmp_path / "in", tmp_path / "out", outputs="ids,overlay,video")
    assert counts == Counts(1, 2, 0)
    assert "overlay/a/2.jpg: cannot be written" in status(tmp_path / "out", "a/2")
    assert "cannot be written" in status(tmp_path / "out", "video/in.mp4")

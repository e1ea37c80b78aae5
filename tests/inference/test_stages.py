import threading

import numpy as np
from frames_by_hand import LABEL_SET, config, read_ids, read_rows, run, segment, write_image
from PIL import Image

from mapseg import pictures
from mapseg.inference import reading, stages
from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts, infer_frames
from mapseg.inference.output_classes import output_classes
from mapseg.inference.reading import read_image


def test_ids_are_written_in_the_order_of_the_frames(tmp_path):
    count = 30  # more than fit into the queues
    for i in range(count):
        write_image(tmp_path / "in" / f"{i}.png", size=(4, 40), bright=i)
    order = []

    def note(image):
        order.append(int((image[0] > 127).all(-1).sum()))
        assert threading.current_thread() is threading.main_thread()
        return segment(image)

    assert run(tmp_path / "in", tmp_path / "out", note, outputs="ids") == Counts(count, 0, 0)
    assert order == list(range(count))
    assert [row["frame"] for row in read_rows(tmp_path / "out")] == [str(i) for i in range(count)]
    for i in range(count):
        assert read_ids(tmp_path / "out" / "ids" / f"{i}.png").sum() == 4 * i


def test_reading_stays_a_few_frames_ahead_and_writing_a_few_behind(tmp_path, monkeypatch):
    for i in range(40):
        write_image(tmp_path / "in" / f"{i}.png")
    read, written, ahead, behind = [], [], [], []
    monkeypatch.setattr(reading, "read_image", lambda path: read.append(path) or read_image(path))
    write_png = pictures.write_png

    def count_writes(path, *rest):
        write_png(path, *rest)
        written.extend([path] * (path.name != "legend.png"))

    monkeypatch.setattr(pictures, "write_png", count_writes)
    segmented = []

    def note(image):
        ahead.append(len(read) - len(segmented))
        behind.append(len(segmented) - len(written))
        segmented.append(image)
        return segment(image)

    run(tmp_path / "in", tmp_path / "out", note, outputs="ids")
    assert max(ahead) <= stages._AHEAD + 1
    assert max(behind) <= stages._AHEAD + 1
    assert len(read) == len(written) == 40


def test_a_broken_frame_fails_alone_and_is_retried(tmp_path):
    frames, out_dir, lines = tmp_path / "in", tmp_path / "out", []
    for i in range(3):
        write_image(frames / f"{i}.png", size=(60, 80))
    whole = (frames / "1.png").read_bytes()
    (frames / "1.png").write_bytes(whole[:-20])
    assert run(frames, out_dir, lines=lines) == Counts(2, 1, 0)
    rows = read_rows(out_dir)
    assert [row["status"][:6] for row in rows] == ["ok", "error:", "ok"]
    assert "1.png: cannot be decoded" in rows[1]["status"]
    assert rows[1]["height"] == rows[1]["share:marking"] == ""
    assert any(line.startswith("1: error: ") for line in lines)
    assert not (out_dir / "ids" / "1.png").exists()

    (frames / "1.png").write_bytes(whole)
    assert run(frames, out_dir) == Counts(1, 0, 2)
    assert [row["status"] for row in read_rows(out_dir)] == ["ok"] * 3


def test_a_frame_that_the_network_rejects_fails_alone(tmp_path):
    write_image(tmp_path / "in" / "1.png", size=(4, 4))
    write_image(tmp_path / "in" / "2.png", size=(8, 8))

    def refuse(image):
        if len(image) < 5:
            raise ValueError("image must be at least 5 pixels high; got 4")
        return segment(image)

    assert run(tmp_path / "in", tmp_path / "out", refuse) == Counts(1, 1, 0)
    assert read_rows(tmp_path / "out")[0]["status"].startswith("error: image must be at least 5")


def run_batches(frames, out_dir, sizes, **options):
    """Segments frames and records the shapes of the batches."""
    made = config(frames, out_dir, outputs="ids", **options)

    def segment_batch(images):
        sizes.append(images.shape[:3])
        if any((image == 7).all() for image in images):
            raise ValueError("all of an image is 7")
        return [segment(image) for image in images]

    frame_list = find_frames(made)
    return infer_frames(
        segment_batch, output_classes(LABEL_SET), frame_list, made, lambda _: None, "run 1"
    )


def test_frames_of_the_same_size_are_segmented_in_a_batch(tmp_path):
    for i, width in enumerate([10, 10, 10, 10, 10, 12, 12, 10]):
        write_image(tmp_path / "in" / f"{i}.png", size=(6, width), bright=i)
    sizes = []
    counts = run_batches(tmp_path / "in", tmp_path / "out", sizes, batch_size=4)
    assert counts == Counts(8, 0, 0)
    assert sizes == [(4, 6, 10), (1, 6, 10), (2, 6, 12), (1, 6, 10)]
    for i in range(8):
        assert read_ids(tmp_path / "out" / "ids" / f"{i}.png").sum() == 6 * i


def test_a_bad_frame_does_not_fail_its_batch(tmp_path):
    for i in range(7):
        write_image(tmp_path / "in" / f"{i}.png", bright=i)
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    Image.fromarray(np.full((6, 10, 3), 7, np.uint8)).save(tmp_path / "in" / "4.png")
    sizes = []
    counts = run_batches(tmp_path / "in", tmp_path / "out", sizes, batch_size=6)
    assert counts == Counts(5, 2, 0)
    assert sizes == [(5, 6, 10), *[(1, 6, 10)] * 5, (1, 6, 10)]
    rows = read_rows(tmp_path / "out")
    assert [i for i, row in enumerate(rows) if row["status"] != "ok"] == [1, 4]
    assert rows[4]["status"] == "error: all of an image is 7"
    for i in (0, 2, 3, 5, 6):
        assert read_ids(tmp_path / "out" / "ids" / f"{i}.png").sum() == 6 * i

    write_image(tmp_path / "in" / "4.png", bright=4)
    sizes.clear()
    assert run_batches(tmp_path / "in", tmp_path / "out", sizes, batch_size=6) == Counts(1, 1, 5)
    assert sizes == [(1, 6, 10)]

import threading

from frames_by_hand import read_ids, read_rows, run, segment, write_image

from mapseg import pictures
from mapseg.inference import reading, stages
from mapseg.inference.infer import Counts
from mapseg.inference.reading import read_image


def test_ids_equal_what_was_segmented_in_the_order_of_the_frames(tmp_path):
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


def test_a_broken_frame_fails_alone_and_is_tried_again(tmp_path):
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


def test_a_frame_that_the_network_refuses_fails_alone(tmp_path):
    write_image(tmp_path / "in" / "1.png", size=(4, 4))
    write_image(tmp_path / "in" / "2.png", size=(8, 8))

    def refuse(image):
        if len(image) < 5:
            raise ValueError("image must be at least 5 pixels high; got 4")
        return segment(image)

    assert run(tmp_path / "in", tmp_path / "out", refuse) == Counts(1, 1, 0)
    assert read_rows(tmp_path / "out")[0]["status"].startswith("error: image must be at least 5")

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from frames_by_hand import files_in, read_ids, read_rows, run, segment, write_image

from mapseg.inference import infer
from mapseg.inference.infer import Counts
from mapseg.inference.reading import read_image


def test_every_output_of_frames_of_mixed_sizes(tmp_path):
    frames, out_dir, lines = tmp_path / "drive", tmp_path / "out", []
    write_image(frames / "left" / "1.png", size=(6, 10), bright=3)
    write_image(frames / "left" / "2.png", size=(7, 9), bright=9)
    cv2.imwrite(str(frames / "3.png"), np.full((5, 8), 30, np.uint8))
    counts = run(frames, out_dir, outputs="ids,overlay,panel,video", lines=lines)
    assert counts == Counts(3, 0, 0)
    assert files_in(out_dir) == [
        ".lock",
        "frames.csv",
        "ids/3.png",
        "ids/left/1.png",
        "ids/left/2.png",
        "inference.json",
        "legend.png",
        "overlay/3.jpg",
        "overlay/left/1.jpg",
        "overlay/left/2.jpg",
        "panel/3.jpg",
        "panel/left/1.jpg",
        "panel/left/2.jpg",
        "video/drive.mp4",
        "video/left.mp4",
    ]
    ids = read_ids(out_dir / "ids" / "left" / "1.png")
    np.testing.assert_array_equal(ids, [[1] * 3 + [0] * 7] * 6)
    tinted = read_image(out_dir / "overlay" / "left" / "2.jpg")
    assert tinted.shape == (7, 9, 3)
    assert tinted.min() > 245  # half white, half 250
    rows = read_rows(out_dir)
    assert [row["frame"] for row in rows] == ["3", "left/1", "left/2"]
    ms = float(rows[1].pop("ms"))
    assert 0 <= ms < 600_000
    stat = (frames / "left" / "1.png").stat()
    digest = hashlib.sha256((frames / "left" / "1.png").read_bytes()).hexdigest()
    assert rows[1] == {
        "frame": "left/1",
        "status": "ok",
        "height": "6",
        "width": "10",
        "scale": "0.5",
        "mean_confidence": "0.7500",
        "source": str(frames / "left" / "1.png"),
        "source_state": f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}:{digest[:16]}",
        "video": "left",
        "share:road, dark": "0.700000",
        "share:marking": "0.300000",
    }
    assert lines[-1].startswith("3 frames: 3 done, 0 failed, 0 done before")


@pytest.mark.parametrize("outputs", ["ids", "ids,overlay,video", "overlay", "overlay,video"])
def test_a_killed_run_resumes(tmp_path, outputs):
    frames, out_dir, calls = tmp_path / "in", tmp_path / "out", []
    for i in range(20):
        write_image(frames / f"{i}.png", size=(32, 64), bright=i)

    def stop_after_12(image):
        if len(calls) == 12:
            raise KeyboardInterrupt
        calls.append(1)
        return segment(image)

    with pytest.raises(KeyboardInterrupt):
        run(frames, out_dir, stop_after_12, outputs=outputs)
    assert not (out_dir / "frames.csv").exists()
    assert not list(out_dir.rglob("*.mp4")) and not list(out_dir.rglob("*.part"))
    journal = out_dir / "frames.journal.csv"
    journaled = len(journal.read_text().splitlines()) - 1
    assert journaled == 12  # segmented frames are written although the run was stopped
    journal.write_text(journal.read_text()[:-3])  # as if killed while writing a row

    calls.clear()
    counts = run(frames, out_dir, lambda image: calls.append(1) or segment(image), outputs=outputs)
    again = 20 if outputs == "overlay,video" else 9  # a video without stored ids starts again
    assert len(calls) == again
    assert counts == Counts(again, 0, 20 - again)
    rows = read_rows(out_dir)
    assert [row["frame"] for row in rows] == [str(i) for i in range(20)]
    assert [float(row["share:marking"]) for row in rows] == [i / 64 for i in range(20)]
    assert not journal.exists()
    if "video" in outputs:
        video = cv2.VideoCapture(str(out_dir / "video" / "in.mp4"))
        shares = [float(frame.mean()) for _, frame in iter(video.read, (False, None))]
        assert len(shares) == 20
        assert shares == sorted(shares)  # sorted, including frames of the earlier call


def test_a_finished_run_is_not_repeated_and_a_lost_file_is_written_again(tmp_path):
    frames, out_dir = tmp_path / "in", tmp_path / "out"
    for i in range(3):
        write_image(frames / f"{i}.png")
    run(frames, out_dir)
    table = (out_dir / "frames.csv").read_text()

    def never(image):
        raise AssertionError("must not be called")

    assert run(frames, out_dir, never) == Counts(0, 0, 3)
    assert (out_dir / "frames.csv").read_text() == table
    (out_dir / "ids" / "1.png").unlink()
    write_image(frames / "9.png")
    assert run(frames, out_dir) == Counts(2, 0, 2)
    assert (out_dir / "ids" / "1.png").is_file()
    assert [row["frame"] for row in read_rows(out_dir)] == ["0", "1", "2", "9"]


def test_only_chosen_classes_are_drawn(tmp_path):
    write_image(tmp_path / "in" / "1.png", size=(40, 100), bright=50)
    run(tmp_path / "in", tmp_path / "out", classes="mark*", outputs="ids,overlay,panel")
    tinted = read_image(tmp_path / "out" / "overlay" / "1.jpg").astype(int)
    assert np.abs(tinted[:, 60:] - 20).max() <= 3  # 40, dimmed and not tinted
    assert tinted[:, :40].min() >= 250
    assert read_ids(tmp_path / "out" / "ids" / "1.png").mean() == 0.5  # ids keep all classes
    panel = read_image(tmp_path / "out" / "panel" / "1.jpg").astype(int)
    assert not (np.abs(panel - (128, 64, 128)).max(-1) < 12).any()
    with pytest.raises(ValueError, match=r"classes must be names of this label set"):
        run(tmp_path / "in", tmp_path / "other", classes="sky")
    assert not (tmp_path / "other").exists()


def test_a_full_disk_stops_the_run_and_it_can_be_resumed(tmp_path, monkeypatch):
    for i in range(12):
        write_image(tmp_path / "in" / f"{i}.png")
    write_bytes = Path.write_bytes

    def full(self, data):
        if self.name.startswith(".5.") and "partial" in self.name:
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"5\.png: cannot be written: No space left.*Remedy"):
            run(tmp_path / "in", tmp_path / "out", outputs="ids")
    assert not (tmp_path / "out" / "frames.csv").exists()
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids").failed == 0
    assert len(read_rows(tmp_path / "out")) == 12


def test_progress_reports_rate_and_remaining_time_every_few_seconds(tmp_path, monkeypatch):
    for i in range(10):
        write_image(tmp_path / "in" / f"{i}.png")
    clock = iter(range(0, 1000, 2))  # two seconds pass between readings
    monkeypatch.setattr(infer.time, "monotonic", lambda: float(next(clock)))
    lines = []
    run(tmp_path / "in", tmp_path / "out", outputs="ids", lines=lines)
    assert lines[0] == "1/10 frames, 0.2 frames/s, 36s left"
    assert len(lines) == 6  # after every second frame and at the end

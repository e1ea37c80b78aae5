"""Frames are counted without decoding only where the result is the same."""

import os
import sys
from fractions import Fraction

import av
import cv2
import pytest
from films_by_hand import PHONE_MS, write_source
from frames_by_hand import damage, names, read_rows, run, with_edit_list, write_moving

from mapseg.inference import measuring
from mapseg.inference.containers import count_packets, read_tick
from mapseg.inference.infer import Counts
from mapseg.inference.measuring import VideoLength, measure_video, video_length

COUNTED = [
    ("a.mp4", "libx264", {"bf": 3, "b_strategy": 0}),
    ("a.mov", "libx264", {"x264-params": "open-gop=1:keyint=8"}),
    ("a.mp4", "libx265", {"x265-params": "open-gop=1:keyint=8:log-level=none"}),
    ("a.mp4", "mpeg4", {}),
    ("a.mov", "mjpeg", {}),
    ("a.mp4", "libvpx-vp9", {"lag-in-frames": 16, "auto-alt-ref": 1}),
]


@pytest.mark.parametrize(("name", "codec", "options"), COUNTED)
@pytest.mark.parametrize("times", ["constant", "phone"])
def test_packets_are_the_frames_that_opencv_decodes(tmp_path, name, codec, options, times):
    ms = PHONE_MS if times == "phone" else [40 * i for i in range(50)]
    write_source(tmp_path / name, ms, codec=codec, size=(64, 80), **options)
    assert count_packets(tmp_path / name) == measure_video(tmp_path / name).frames == len(ms)


def test_counting_decodes_only_the_first_frames(tmp_path, monkeypatch):
    write_moving(tmp_path / "a.mp4")
    monkeypatch.setattr(measuring, "measure_video", None)
    assert video_length(tmp_path / "a.mp4") == VideoLength(60, 60, True)


@pytest.mark.parametrize("kind", ["no PyAV", "mkv", "avi", "edit list", "truncated", "late key"])
def test_where_the_index_leaves_doubt_frames_are_decoded(tmp_path, monkeypatch, kind):
    path = tmp_path / f"a.{kind if kind in ('mkv', 'avi') else 'mp4'}"
    if kind in ("mkv", "avi"):
        write_moving(path, "MJPG")
    else:
        write_moving(path)
    if kind == "no PyAV":
        monkeypatch.setitem(sys.modules, "av", None)
    elif kind == "edit list":
        path.write_bytes(with_edit_list(path.read_bytes(), first=24))
    elif kind == "truncated":
        write_source(path, range(60), Fraction(1, 10), g=5)
        with (
            av.open(str(path)) as whole,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "+faststart"}) as first,
        ):
            stream = first.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    first.mux(packet)
        path = tmp_path / "b.mp4"
        start, size = path.read_bytes().index(b"mdat"), path.stat().st_size
        os.truncate(path, (start + size) // 2)
    elif kind == "late key":
        data = path.read_bytes()
        at = data.index(b"stss") + 12
        path.write_bytes(data[:at] + (3).to_bytes(4, "big") + data[at + 4 :])
    assert count_packets(path) is None
    assert video_length(path) == measure_video(path)
    if kind == "truncated":
        assert not video_length(path).is_whole


@pytest.mark.parametrize("every", [1, 7])
def test_damage_is_found_where_it_is_decoded(tmp_path, every):
    write_moving(tmp_path / "clip.mp4")
    damage(tmp_path / "clip.mp4")
    intact, announced, is_whole = measure_video(tmp_path / "clip.mp4")
    assert 20 < intact < 40 and announced == 60 and not is_whole
    assert len(names(tmp_path / "clip.mp4", every=every)) == len(range(0, 60, every))
    done, lines = len(range(0, intact, every)), []
    options = {"every": every, "outputs": "ids,video", "lines": lines}
    assert run(tmp_path / "clip.mp4", tmp_path / "out", **options) == Counts(done, 1, 0)
    assert lines[-1].startswith(f"{done + 1} frames: {done} done, 1 failed, 0 done before")
    rows = read_rows(tmp_path / "out")
    assert [row["status"] == "ok" for row in rows] == [True] * done + [False]
    assert f"got {intact} frames of 60" in rows[-1]["status"]
    assert run(tmp_path / "clip.mp4", tmp_path / "out", **options) == Counts(0, 1, done)
    film = cv2.VideoCapture(str(tmp_path / "out" / "video" / "clip.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == done
    write_moving(tmp_path / "clip.mp4")
    all_frames = Counts(len(range(0, 60, every)), 0, 0)
    assert run(tmp_path / "clip.mp4", tmp_path / "out", **options) == all_frames
    assert all(row["status"] == "ok" for row in read_rows(tmp_path / "out"))


def test_the_unit_of_times_is_that_of_the_container(tmp_path):
    write_source(tmp_path / "a.mp4", PHONE_MS, Fraction(1, 25_000))
    assert read_tick(tmp_path / "a.mp4") == Fraction(1, 25_000)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert read_tick(tmp_path / "b.mp4") == Fraction(1, 90_000)

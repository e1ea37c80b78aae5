"""Rows, ids and videos in an output folder always match the current content of their sources."""

import json
import os
import shutil
import threading

import cv2
import pytest
from frames_by_hand import (
    LABEL_SET,
    config,
    files_in,
    read_ids,
    read_rows,
    run,
    segment,
    write_image,
    write_video,
)

from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts
from mapseg.inference.output_classes import output_classes


def frames_of(out_dir):
    return [row["frame"] for row in read_rows(out_dir)]


def film(path):
    video = cv2.VideoCapture(str(path))
    return [float(frame.mean()) for _, frame in iter(video.read, (False, None))]


@pytest.fixture
def drive(tmp_path):
    for camera in ("image_2", "image_3"):
        for i in range(3):
            write_image(tmp_path / "drive" / camera / f"{i}.png", size=(32, 64), bright=10 * i)
    return tmp_path / "drive"


ALL = [f"{camera}/{i}" for camera in ("image_2", "image_3") for i in range(3)]


# Rows


def test_another_camera_adds_its_rows_in_order(drive, tmp_path):
    assert run(drive, tmp_path / "out", cameras="image_3") == Counts(3, 0, 0)
    assert frames_of(tmp_path / "out") == ALL[3:]
    assert run(drive, tmp_path / "out", cameras="image_2") == Counts(3, 0, 0)
    assert frames_of(tmp_path / "out") == ALL
    table = (tmp_path / "out" / "frames.csv").read_bytes()
    assert run(drive, tmp_path / "out") == Counts(0, 0, 6)
    assert (tmp_path / "out" / "frames.csv").read_bytes() == table


def test_a_glob_of_the_same_frames_adds_no_rows(drive, tmp_path):
    run(drive, tmp_path / "out")
    assert run(drive / "*" / "1.png", tmp_path / "out") == Counts(0, 0, 2)
    assert frames_of(tmp_path / "out") == ALL


def test_more_outputs_keep_existing_ones(drive, tmp_path):
    run(drive, tmp_path / "out", outputs="ids")
    ids = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "ids").rglob("*.png")}
    assert run(drive, tmp_path / "out", cameras="image_2", outputs="overlay") == Counts(3, 0, 0)
    assert frames_of(tmp_path / "out") == ALL
    assert {path: path.stat().st_mtime_ns for path in ids} == ids
    assert run(drive, tmp_path / "out", outputs="ids") == Counts(0, 0, 6)


def test_failed_rows_of_another_camera_stay(drive, tmp_path):
    (drive / "image_3" / "1.png").write_bytes(b"broken")
    assert run(drive, tmp_path / "out", cameras="image_3") == Counts(2, 1, 0)
    run(drive, tmp_path / "out", cameras="image_2")
    assert frames_of(tmp_path / "out") == ALL
    assert [row["frame"] for row in read_rows(tmp_path / "out") if row["status"] != "ok"] == [
        "image_3/1"
    ]


def test_rows_are_removed_with_their_files_not_with_their_source(drive, tmp_path):
    run(drive, tmp_path / "out", outputs="ids")
    shutil.rmtree(drive / "image_3")  # to free space
    (tmp_path / "out" / "ids" / "image_2" / "0.png").unlink()
    assert run(drive / "image_2" / "1.png", tmp_path / "other", outputs="ids").failed == 0
    assert run(drive / "*" / "1.png", tmp_path / "out", outputs="ids") == Counts(0, 0, 1)
    assert frames_of(tmp_path / "out") == ALL[1:]


def test_other_frames_with_the_same_names_are_rejected_while_the_first_exist(drive, tmp_path):
    for i in range(3):  # of other content
        write_image(drive / "image_3" / f"{i}.png", size=(32, 64), bright=10 * i + 5)
    run(drive / "image_2", tmp_path / "out")
    before = files_in(tmp_path / "out"), (tmp_path / "out" / "frames.csv").read_bytes()
    with pytest.raises(
        ValueError, match=r"0 must keep its source, .*image_2/0\.png; got .*image_3/0\.png"
    ):
        run(drive / "image_3", tmp_path / "out")
    assert before == (files_in(tmp_path / "out"), (tmp_path / "out" / "frames.csv").read_bytes())
    shutil.rmtree(drive / "image_2")
    assert run(drive / "image_3", tmp_path / "out") == Counts(3, 0, 0)


def test_moved_frames_are_not_segmented_again(drive, tmp_path):
    run(drive, tmp_path / "out")
    drive.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "out") == Counts(0, 0, 6)
    assert read_rows(tmp_path / "out")[0]["source"] == str(tmp_path / "moved/image_2/0.png")


def test_copied_frames_are_not_segmented_again(drive, tmp_path):
    """Every file of a copy, or with new permissions, has another time of change."""
    write_video(drive / "image_2" / "clip.mp4", count=3, size=(32, 48))
    clip = drive / "image_2" / "clip.mp4"
    for frames in (drive, clip):
        run(frames, tmp_path / "out")
    ids = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "ids").rglob("*.png")}
    shutil.copytree(drive, tmp_path / "copy")
    shutil.rmtree(drive)
    lines = []
    assert run(tmp_path / "copy", tmp_path / "out", lines=lines) == Counts(0, 0, 6)
    assert lines[-2] == "comparing 6 frames whose files have new times by content"
    lines.clear()
    assert run(tmp_path / "copy", tmp_path / "out", lines=lines) == Counts(0, 0, 6)
    assert not [line for line in lines if line.startswith("comparing")]
    # Also those that a call does not request.
    for path in (tmp_path / "copy" / "image_3").iterdir():
        path.chmod(0o600)
    copied_clip = tmp_path / "copy" / "image_2" / "clip.mp4"
    assert run(copied_clip, tmp_path / "out") == Counts(0, 0, 3)
    assert frames_of(tmp_path / "out") == [*ALL[:3], *(f"clip/{i:06d}" for i in range(3)), *ALL[3:]]
    assert {path: path.stat().st_mtime_ns for path in ids} == ids


# Content


def replace(path, like, **image):
    """Replaces an image by another with the same size in bytes and modification time."""
    write_image(path.with_name("new.bmp"), **image)
    os.utime(path.with_name("new.bmp"), ns=(like.st_atime_ns, like.st_mtime_ns))
    path.with_name("new.bmp").replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (like.st_size, like.st_mtime_ns)


def test_a_replaced_frame_is_segmented_again_with_all_outputs(tmp_path):
    path, out_dir = tmp_path / "in" / "1.bmp", tmp_path / "out"
    write_image(path, size=(32, 64), bright=10)
    write_image(tmp_path / "in" / "2.bmp", size=(32, 64))
    run(path.parent, out_dir, outputs="ids,overlay,panel,video")
    replace(path, path.stat(), size=(32, 64), bright=50)
    assert run(path.parent, out_dir, outputs="ids") == Counts(1, 0, 1)
    assert read_ids(out_dir / "ids" / "1.png").mean() == 50 / 64
    # Outputs that were not requested are removed: they showed the old frame.
    assert files_in(out_dir / "overlay") == files_in(out_dir / "panel") == ["2.jpg"]
    assert files_in(out_dir / "video") == []


def test_a_frame_replaced_by_a_broken_one_leaves_no_ids(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "1.png").write_bytes(b"broken")
    assert run(tmp_path / "in", tmp_path / "out") == Counts(0, 1, 0)
    assert not list((tmp_path / "out" / "ids").iterdir())
    assert read_rows(tmp_path / "out")[0]["status"].startswith("error: ")


def test_rows_ids_and_video_of_replaced_frames_of_another_camera_are_removed(drive, tmp_path):
    out_dir = tmp_path / "out"
    run(drive, out_dir, cameras="image_3", outputs="ids,video")
    write_image(drive / "image_3" / "1.png", size=(20, 20))
    run(drive, out_dir, cameras="image_2", outputs="ids,video")
    assert frames_of(out_dir) == [name for name in ALL if name != "image_3/1"]
    assert not (out_dir / "ids" / "image_3" / "1.png").exists()
    assert files_in(out_dir / "video") == ["image_2.mp4"]


def test_all_results_of_a_replaced_video_are_removed(tmp_path):
    clip, out_dir = tmp_path / "clip.mp4", tmp_path / "out"
    write_video(clip, count=5, size=(32, 48))
    run(clip, out_dir, outputs="ids,video")
    write_video(clip, count=3, size=(64, 32))
    assert run(clip, out_dir, outputs="ids,video") == Counts(3, 0, 0)
    assert frames_of(out_dir) == [f"clip/{i:06d}" for i in range(3)]
    assert files_in(out_dir / "ids") == [f"clip/{i:06d}.png" for i in range(3)]
    assert read_ids(out_dir / "ids" / "clip" / "000002.png").shape == (64, 32)
    assert len(film(out_dir / "video" / "clip.mp4")) == 3
    clip.write_bytes(b"broken")
    assert run(clip, out_dir, outputs="ids,video") == Counts(0, 1, 0)
    assert frames_of(out_dir) == ["clip"] and files_in(out_dir / "ids") == []
    assert files_in(out_dir / "video") == []


def test_damaged_ids_are_computed_again(tmp_path):
    for i in range(2):
        write_image(tmp_path / "in" / f"{i}.png", size=(32, 64))
    run(tmp_path / "in", tmp_path / "out", outputs="ids")
    (tmp_path / "out" / "ids" / "0.png").write_bytes(b"broken")
    assert run(tmp_path / "in", tmp_path / "out", outputs="ids,video") == Counts(1, 0, 1)
    assert read_ids(tmp_path / "out" / "ids" / "0.png").shape == (32, 64)
    assert len(film(tmp_path / "out" / "video" / "in.mp4")) == 2


def test_the_old_row_of_a_replaced_frame_is_gone_after_a_killed_call(tmp_path):
    for i in range(2):
        write_image(tmp_path / "in" / f"{i}.png")
    run(tmp_path / "in", tmp_path / "out")
    former = tmp_path / "in" / "0.png"
    former.rename(tmp_path / "kept.png")
    write_image(former, size=(8, 8))

    def stop(image):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", stop)
    assert frames_of(tmp_path / "out") == ["1"]
    assert files_in(tmp_path / "out" / "ids") == ["1.png"]
    (tmp_path / "kept.png").replace(former)
    assert run(tmp_path / "in", tmp_path / "out") == Counts(1, 0, 1)
    assert read_ids(tmp_path / "out" / "ids" / "0.png").shape == (6, 10)


# Videos


def test_a_video_shows_the_requested_frames(drive, tmp_path):
    out_dir, video = tmp_path / "out", tmp_path / "out" / "video" / "image_2.mp4"
    asked = {"cameras": "image_2", "outputs": "ids,video"}
    run(drive, out_dir, **asked)
    assert len(film(video)) == 3
    assert run(drive, out_dir, every=2, **asked) == Counts(0, 0, 2)
    assert len(film(video)) == 2
    assert frames_of(out_dir) == ALL[:3]
    time = video.stat().st_mtime_ns
    assert run(drive, out_dir, every=2, **asked) == Counts(0, 0, 2)
    assert video.stat().st_mtime_ns == time
    write_image(drive / "image_2" / "4.png", size=(32, 64), bright=64)
    run(drive, out_dir, every=2, **asked)
    assert len(film(video)) == 2 and film(video)[-1] < 240  # 0 and 2
    run(drive, out_dir, **asked)
    assert len(film(video)) == 4 and film(video)[-1] > 240
    write_image(drive / "image_2" / "4.png", size=(32, 64), bright=0)
    run(drive, out_dir, **asked)
    assert len(film(video)) == 4 and film(video)[-1] < 100


def test_a_video_of_another_folder_is_not_replaced(drive, tmp_path):
    run(drive, tmp_path / "out", cameras="image_2", outputs="ids,video")
    write_image(tmp_path / "other" / "image_2" / "7.png", size=(32, 64))
    other = tmp_path / "other" / "**" / "*.png"
    with pytest.raises(
        ValueError, match=r"video/image_2\.mp4 must keep its source, .*drive/image_2; got"
    ):
        run(other, tmp_path / "out", outputs="ids,video")
    assert run(other, tmp_path / "out", outputs="ids") == Counts(1, 0, 0)
    assert len(frames_of(tmp_path / "out")) == 4


def test_a_video_and_a_folder_with_the_same_name_have_separate_videos(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", count=4)
    for i in range(2):
        write_image(tmp_path / "in" / "a" / f"{i}.png", size=(32, 64))
    write_video(tmp_path / "in" / "in.mp4", count=3)
    write_image(tmp_path / "in" / "1.png", size=(32, 64))
    assert run(tmp_path / "in" / "**", tmp_path / "out", outputs="ids,video") == Counts(10, 0, 0)
    lengths = {p.name: len(film(p)) for p in (tmp_path / "out" / "video").iterdir()}
    assert lengths == {"a.mp4": 4, "a_.mp4": 2, "in.mp4": 1, "in_.mp4": 3}


# Ownership of the folder


def test_a_concurrent_call_is_rejected_immediately(tmp_path):
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png")
    refusals = []

    def call_again(image):
        def second():
            try:
                run(tmp_path / "in", tmp_path / "out")
            except ValueError as error:
                refusals.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return segment(image)

    assert run(tmp_path / "in", tmp_path / "out", call_again) == Counts(3, 0, 0)
    assert len(refusals) == 3
    assert all(f"{tmp_path}/out: must be written by one call at a time" in r for r in refusals)
    assert frames_of(tmp_path / "out") == ["0", "1", "2"]


def test_a_folder_of_an_earlier_version_is_rejected(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    mark = tmp_path / "out" / "inference.json"
    mark.write_text('{\n  "fingerprint": "frames /in by /runs/first, step-00000009 (12ab)"\n}\n')
    before = {path: (tmp_path / "out" / path).read_bytes() for path in files_in(tmp_path / "out")}
    with pytest.raises(
        ValueError, match=r"format_version 2.*got 1\. Remedy: use another --out_dir"
    ):
        run(tmp_path / "in", tmp_path / "out")
    assert before == {p: (tmp_path / "out" / p).read_bytes() for p in files_in(tmp_path / "out")}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 2}', "\udcff"])
def test_a_damaged_mark_is_reported(tmp_path, text):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    mark = tmp_path / "out" / "inference.json"
    mark.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"inference\.json: damaged: .*Remedy"):
        run(tmp_path / "in", tmp_path / "out")


def test_a_changed_table_is_reported(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    table = tmp_path / "out" / "frames.csv"
    table.write_text("\ufeff" + table.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match=r"frames\.csv: must have the columns.*Remedy"):
        run(tmp_path / "in", tmp_path / "out")


def test_no_file_is_written_to_a_foreign_folder(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "foreign" / "ids").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"without an inference\.json"):
        run(tmp_path / "in", tmp_path / "foreign")
    assert files_in(tmp_path / "foreign") == []


def test_a_folder_is_bound_to_weights_and_options_not_to_the_frames_path(tmp_path, monkeypatch):
    from mapseg.inference import infer

    fingerprints, classes = [], output_classes(LABEL_SET)
    monkeypatch.setattr(infer, "infer_frames", lambda *a: fingerprints.append(a[-1]))

    class Predictor:
        segment_batch, config, long_side_px = segment, "scale=1", 64

    for frames in ("a", "b"):
        write_image(tmp_path / frames / "1.png")
        asked = config(tmp_path / frames, tmp_path / "out")
        infer._infer(Predictor(), classes, find_frames(asked), asked, print, "step-7 (12ab)")
    assert fingerprints[0] == fingerprints[1]
    assert str(tmp_path) not in fingerprints[0]


def test_the_mark_is_json_that_names_its_version_and_videos(drive, tmp_path):
    run(drive, tmp_path / "out", cameras="image_2", outputs="ids,video")
    mark = json.loads((tmp_path / "out" / "inference.json").read_text())
    assert mark["format_version"] == 2
    assert mark["videos"]["image_2"]["source"] == str(drive / "image_2")


# Names and bytes


def test_a_name_with_a_line_break_keeps_its_row(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "1.png").rename(tmp_path / "in" / "a\nb, \u2028c.png")
    assert run(tmp_path / "in", tmp_path / "out") == Counts(1, 0, 0)
    assert frames_of(tmp_path / "out") == [r"a\nb, \u2028c"]
    assert run(tmp_path / "in", tmp_path / "out") == Counts(0, 0, 1)


def test_equal_calls_write_equal_files(drive, tmp_path):
    for out_dir in (tmp_path / "out 1", tmp_path / "out 2"):
        run(drive, out_dir, outputs="ids,overlay,panel,video")
    for path in files_in(tmp_path / "out 1"):
        if path not in ("frames.csv",) and not path.endswith(".mp4"):
            first, second = (tmp_path / name / path for name in ("out 1", "out 2"))
            assert first.read_bytes() == second.read_bytes(), path

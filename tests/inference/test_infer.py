import csv
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from mapseg import pictures
from mapseg.config import InferConfig
from mapseg.inference import frames as finding
from mapseg.inference import infer, videos
from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts, infer_frames
from mapseg.inference.predictor import Segmentation
from mapseg.inference.reading import read_image
from mapseg.labels import LabelClass, LabelSet

LABEL_SET = LabelSet(
    "tiny",
    (LabelClass(0, "road, dark", (128, 64, 128)), LabelClass(1, "marking", (255, 255, 255))),
    tuple(range(256)),
)


def segment(image):
    """Calls what is bright a marking."""
    ids = (image.mean(axis=-1) > 127).astype(np.uint8)
    return Segmentation(ids, 0.75, 0.5)


def write_image(path, size=(6, 10), bright=3):
    """Writes a grey image whose first `bright` columns are white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 40, np.uint8)
    image[:, :bright] = 250
    assert cv2.imwrite(str(path), image)


def write_video(path, count=5, size=(32, 48), fps=12.0):
    """Writes frames that get brighter one by one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size[::-1])
    for i in range(count):
        writer.write(np.full((*size, 3), 40 * i, np.uint8))
    writer.release()


def config(frames, out_dir, **options):
    return InferConfig(frames=str(frames), out_dir=str(out_dir), **options)


def names(frames, out_dir="unused", **options):
    return [frame.name for frame in find_frames(config(frames, out_dir, **options)).frames]


def run(frames, out_dir, segment=segment, fingerprint="run 1, step 7", lines=None, **options):
    lines = [] if lines is None else lines
    made = config(frames, out_dir, **options)
    return infer_frames(segment, LABEL_SET, find_frames(made), made, lines.append, fingerprint)


def read_rows(out_dir):
    with (out_dir / "frames.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_ids(path):
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.asarray(picture)


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# Finding frames


def test_a_folder_gives_all_its_images_in_natural_order(tmp_path):
    for name in ["f10.png", "f9.JPG", "b/2.bmp", "b/10.tiff", "a/x.webp", "f1.ppm"]:
        write_image(tmp_path / name)
    write_image(tmp_path / ".cache" / "thumbnail.png")
    write_image(tmp_path / "._f1.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "old.txt").touch()
    found = find_frames(config(tmp_path, "unused"))
    assert [f.name for f in found.frames] == ["f1", "f9", "f10", "a/x", "b/2", "b/10"]
    assert found.skipped == ("skipped files that are not images: 2 .txt",)
    assert found.frames[1].path == tmp_path / "f9.JPG"
    assert [f.video for f in found.frames] == [tmp_path.name] * 3 + ["a", "b", "b"]


def test_a_folder_inside_one_of_its_name_has_a_video_of_its_own(tmp_path):
    write_image(tmp_path / "x" / "1.png")
    write_image(tmp_path / "x" / "x" / "1.png")
    assert [f.video for f in find_frames(config(tmp_path / "x", "unused")).frames] == ["x_", "x"]


def test_every_takes_each_nth_frame_of_each_folder(tmp_path):
    for i in range(5):
        write_image(tmp_path / "a" / f"{i}.png")
        write_image(tmp_path / "b" / f"{i}.png")
    assert names(tmp_path, every=2) == ["a/0", "a/2", "a/4", "b/0", "b/2", "b/4"]


KITTI = {
    "raw": [
        "2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000000.png",
        "2011_09_26/2011_09_26_drive_0001_sync/image_03/data/0000000000.png",
    ],
    "odometry": ["sequences/00/image_2/000000.png", "sequences/00/image_2/000001.png"],
    "semantic": ["training/image_2/000000_10.png", "testing/image_2/000000_10.png"],
    "360": ["data_2d_raw/2013_05_28_drive_0000_sync/image_00/data_rect/0000000000.png"],
}
NOT_FRAMES = {
    "raw": [
        "train/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png",
        "2011_09_26/2011_09_26_drive_0001_sync/velodyne_points/data/0000000000.bin",
    ],
    "odometry": ["sequences/00/times.txt"],
    "semantic": [
        "training/semantic/000000_10.png",
        "training/semantic_rgb/000000_10.png",
        "training/instance/000000_10.png",
        "training/gt_image_2/um_lane_000000.png",
        "training/disp_occ_0/000000_10.png",
    ],
    "360": [
        "data_2d_semantics/train/2013_05_28_drive_0000_sync/image_00/semantic/0000000250.png",
        "data_2d_semantics/train/2013_05_28_drive_0000_sync/image_00/instance/0000000250.png",
    ],
}
SKIPPED = {
    "raw": ["1 images in proj_depth", "1 .bin"],
    "odometry": ["1 .txt"],
    "semantic": [
        *(f"1 images in {name}: labels" for name in ("semantic", "semantic_rgb", "instance")),
        *(f"1 images in {name}: not an image_* folder" for name in ("gt_image_2", "disp_occ_0")),
    ],
    "360": ["2 images in data_2d_semantics: labels or depth, not frames"],
}


@pytest.mark.parametrize("layout", KITTI)
def test_a_kitti_root_gives_its_camera_images_alone(tmp_path, layout):
    for name in KITTI[layout] + NOT_FRAMES[layout]:
        write_image((tmp_path / name).with_suffix(".png"))
        (tmp_path / name).with_suffix(".png").rename(tmp_path / name)
    found = find_frames(config(tmp_path, "unused"))
    assert sorted(f.name for f in found.frames) == sorted(n[:-4] for n in KITTI[layout])
    text = " ".join(found.skipped)
    assert all(word in text for word in SKIPPED[layout])


def test_cameras_narrow_a_kitti_root_and_what_is_skipped_is_counted(tmp_path):
    for camera in ("image_0", "image_2", "image_3"):
        for i in range(2):
            write_image(tmp_path / "sequences" / "00" / camera / f"{i:06d}.png")
    write_image(tmp_path / "training" / "semantic" / "000000_10.png")
    found = find_frames(config(tmp_path, "unused", cameras="image_2,image_3"))
    assert {f.video for f in found.frames} == {"sequences/00/image_2", "sequences/00/image_3"}
    assert found.skipped == (
        "skipped 2 images in image_0: not among --cameras=image_2,image_3",
        "skipped 1 images in semantic: labels or depth, not frames",
    )
    with pytest.raises(FileNotFoundError, match=r"no frames.*image_0: not among.*Remedy"):
        find_frames(config(tmp_path, "unused", cameras="image_9"))


def test_one_camera_folder_is_an_ordinary_folder(tmp_path):
    write_image(tmp_path / "image_02" / "data" / "7.png")
    assert names(tmp_path / "image_02") == ["data/7"]


def test_cameras_need_camera_folders(tmp_path):
    write_image(tmp_path / "a.png")
    for frames in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"cameras must be used with a folder that has image_"):
            find_frames(config(frames, "unused", cameras="image_2"))


def test_a_glob_goes_through_folders_and_names_from_its_fixed_part(tmp_path):
    for name in ["day 1/left/1.png", "day 1/right/1.png", "day 2/left/1.png", "day 2/left/1.txt"]:
        write_image((tmp_path / name).with_suffix(".png"))
    (tmp_path / "day 2" / "left" / "1.txt").touch()
    assert names(tmp_path / "**" / "left" / "*") == ["day 1/left/1", "day 2/left/1"]
    assert names(tmp_path / "day 2" / "**") == ["left/1"]


def test_a_list_takes_relative_and_absolute_paths(tmp_path):
    for name in ["set/a.png", "set/b.png", "elsewhere/c.png"]:
        write_image(tmp_path / name)
    listing = tmp_path / "set" / "frames.txt"
    listing.write_text(f"# two here\nb.png\n\n  a.png\n{tmp_path}/set/../elsewhere/c.png\n")
    outside = (tmp_path / "elsewhere" / "c").relative_to("/").as_posix()
    assert sorted(names(listing)) == sorted(["a", "b", outside])
    listing.write_text("a.png\n\nmissing.png\n")
    with pytest.raises(FileNotFoundError, match=r"frames\.txt, line 3: no such file: .*missing"):
        find_frames(config(listing, "unused"))
    listing.write_text("frames.txt\n")
    with pytest.raises(ValueError, match=r"line 1: must name an image or a video"):
        find_frames(config(listing, "unused"))


def test_a_single_image_and_a_video(tmp_path):
    write_image(tmp_path / "a.b.png")
    assert names(tmp_path / "a.b.png") == ["a.b"]
    write_video(tmp_path / "clip.mp4", count=5)
    frames = find_frames(config(tmp_path / "clip.mp4", "unused", every=2)).frames
    assert [(f.name, f.number) for f in frames] == [
        ("clip/000000", 0),
        ("clip/000002", 2),
        ("clip/000004", 4),
    ]
    assert {f.video for f in frames} == {"clip"}


def test_nothing_found_says_what_to_do(tmp_path):
    (tmp_path / "points.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no frames found; .*1 \.bin\. Remedy"):
        find_frames(config(tmp_path, "unused"))
    with pytest.raises(FileNotFoundError, match=r"no frames found; no files there"):
        find_frames(config(tmp_path / "*.png", "unused"))
    with pytest.raises(FileNotFoundError, match=r"no such file or folder"):
        find_frames(config(tmp_path / "nowhere", "unused"))
    with pytest.raises(ValueError, match=r"frames must be a folder.*points\.bin"):
        find_frames(config(tmp_path / "points.bin", "unused"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4: must be a video"):
        find_frames(config(tmp_path / "broken.mp4", "unused"))


def test_two_frames_of_one_name_are_refused(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would both be a\."):
        find_frames(config(tmp_path, "unused"))


def test_links_to_folders_are_followed_once(tmp_path):
    write_image(tmp_path / "disk" / "1.png")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "frames")
    assert names(tmp_path / "frames") == ["linked/1"]


def test_the_shared_kitti_sample_gives_56_frames():
    root = SHARED / "data" / "kitti"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/kitti")
    found = names(root)
    assert len(found) == 56
    assert "odometry/sequences/01/image_0/000000" in found


# Reading frames


def test_grey_and_16_bit_images_become_8_bit_rgb(tmp_path):
    grey = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    cv2.imwrite(str(tmp_path / "16.png"), grey)
    image = read_image(tmp_path / "16.png")
    assert image.dtype == np.uint8 and image.shape == (6, 10, 3)
    assert np.abs(image[..., 0].astype(int) - grey / 257).max() < 1
    assert (image[..., 0] == image[..., 2]).all()
    Image.fromarray(np.full((4, 4, 3), (200, 10, 20), np.uint8)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [200, 10, 20]


def test_a_rotation_noted_in_exif_is_carried_out(tmp_path):
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_a_cut_off_image_is_refused(tmp_path, kind, share):
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    data = cv2.imencode(f".{kind}", noise)[1].tobytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"a\.{kind}: cannot be"):
        read_image(path)


# Segmenting frames


def test_every_output_of_frames_of_mixed_sizes(tmp_path):
    frames, out_dir, lines = tmp_path / "drive", tmp_path / "out", []
    write_image(frames / "left" / "1.png", size=(6, 10), bright=3)
    write_image(frames / "left" / "2.png", size=(7, 9), bright=9)
    cv2.imwrite(str(frames / "3.png"), np.full((5, 8), 30, np.uint8))
    counts = run(frames, out_dir, outputs="ids,overlay,panel,video", lines=lines)
    assert counts == Counts(3, 0, 0)
    assert files_in(out_dir) == [
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
    assert 0 <= ms < 10_000
    assert rows[1] == {
        "frame": "left/1",
        "status": "ok",
        "height": "6",
        "width": "10",
        "scale": "0.5",
        "mean_confidence": "0.7500",
        "share:road, dark": "0.700000",
        "share:marking": "0.300000",
    }
    assert lines[-1].startswith("3 frames: 3 done, 0 failed, 0 done before")


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
    monkeypatch.setattr(finding, "read_image", lambda path: read.append(path) or read_image(path))
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
    assert max(ahead) <= infer._AHEAD + 1
    assert max(behind) <= infer._AHEAD + 1
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


@pytest.mark.parametrize("outputs", ["ids", "ids,overlay,video", "overlay", "overlay,video"])
def test_a_killed_run_is_continued(tmp_path, outputs):
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
    noted = len(journal.read_text().splitlines()) - 1
    assert noted == 12  # what was segmented is written, though the run was stopped
    journal.write_text(journal.read_text()[:-3])  # as a process killed while it wrote a row

    calls.clear()
    counts = run(frames, out_dir, lambda image: calls.append(1) or segment(image), outputs=outputs)
    again = 20 if outputs == "overlay,video" else 9  # a video without ids is done from its start
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
        assert shares == sorted(shares)  # in order, the earlier call's frames included


def test_a_finished_run_is_not_repeated_and_a_lost_file_is_made_again(tmp_path):
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


def test_results_of_another_run_are_not_mixed(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    run(tmp_path / "in", tmp_path / "out")
    before = files_in(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "inference.json").read_text()) == {
        "fingerprint": "run 1, step 7"
    }
    with pytest.raises(ValueError, match=r"of run 1, step 7, asked is run 2.*another --out_dir"):
        run(tmp_path / "in", tmp_path / "out", fingerprint="run 2")
    assert files_in(tmp_path / "out") == before
    (tmp_path / "foreign" / "ids").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"without an inference\.json"):
        run(tmp_path / "in", tmp_path / "foreign")


def test_results_inside_the_frames_folder_are_not_frames(tmp_path):
    write_image(tmp_path / "1.png")
    for out_dir in (tmp_path / "out 1", tmp_path / "out 2", tmp_path):
        assert run(tmp_path, out_dir, outputs="ids,overlay,panel") == Counts(1, 0, 0)
    assert names(tmp_path) == names(tmp_path / "**") == ["1"]
    assert names(tmp_path / "out 1" / "overlay") == ["1"]  # where they are named, they are


def test_only_chosen_classes_are_drawn(tmp_path):
    write_image(tmp_path / "in" / "1.png", size=(40, 100), bright=50)
    run(tmp_path / "in", tmp_path / "out", classes="mark*", outputs="ids,overlay,panel")
    tinted = read_image(tmp_path / "out" / "overlay" / "1.jpg").astype(int)
    assert np.abs(tinted[:, 60:] - 20).max() <= 3  # 40, dimmed and not tinted
    assert tinted[:, :40].min() >= 250
    assert read_ids(tmp_path / "out" / "ids" / "1.png").mean() == 0.5  # ids stay whole
    panel = read_image(tmp_path / "out" / "panel" / "1.jpg").astype(int)
    assert not (np.abs(panel - (128, 64, 128)).max(-1) < 12).any()
    with pytest.raises(ValueError, match=r"classes must be names of this label set"):
        run(tmp_path / "in", tmp_path / "other", classes="sky")
    assert not (tmp_path / "other").exists()


def test_a_video_is_read_in_order_and_written_at_its_own_pace(tmp_path):
    write_video(tmp_path / "clip.mp4", count=5, fps=12.0)
    seen = []
    counts = run(
        tmp_path / "clip.mp4",
        tmp_path / "out",
        lambda image: seen.append(round(float(image.mean()))) or segment(image),
        every=2,
        outputs="ids,video",
    )
    assert counts == Counts(3, 0, 0)
    np.testing.assert_allclose(seen, [0, 80, 160], atol=4)
    assert read_ids(tmp_path / "out" / "ids" / "clip" / "000004.png").shape == (32, 48)
    assert read_ids(tmp_path / "out" / "ids" / "clip" / "000004.png").min() == 1
    video = cv2.VideoCapture(str(tmp_path / "out" / "video" / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(6)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_folder_of_two_videos_is_read_by_a_glob_and_continued(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", count=6)
    write_video(tmp_path / "in" / "b.mp4", count=3)
    pattern, out_dir = tmp_path / "in" / "*.mp4", tmp_path / "out"
    assert run(pattern, out_dir, outputs="ids") == Counts(9, 0, 0)
    (out_dir / "ids" / "a" / "000004.png").unlink()
    seen = []
    run(pattern, out_dir, lambda im: seen.append(im.mean()) or segment(im), outputs="ids")
    np.testing.assert_allclose(seen, [160], atol=4)


def test_mixed_sizes_fit_into_the_videos_first_without_distortion():
    white = np.full((10, 40, 3), 255, np.uint8)
    fitted = videos._fit(white, (20, 20))  # to 5 x 20, in the middle
    np.testing.assert_array_equal(
        (fitted == 255).all((1, 2)), [False] * 7 + [True] * 5 + [False] * 8
    )
    assert videos._fit(white, (10, 40)) is white


def test_a_full_disk_stops_the_run_and_it_can_be_continued(tmp_path, monkeypatch):
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


def test_an_out_dir_that_cannot_be_made_is_named(tmp_path):
    write_image(tmp_path / "in" / "1.png")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/out/inference\.json: cannot be written.*Remedy"):
        run(tmp_path / "in", tmp_path / "file" / "out")


def test_progress_tells_rate_and_time_left_now_and_then(tmp_path, monkeypatch):
    for i in range(10):
        write_image(tmp_path / "in" / f"{i}.png")
    clock = iter(range(0, 1000, 2))  # two seconds pass from look to look
    monkeypatch.setattr(infer.time, "monotonic", lambda: float(next(clock)))
    lines = []
    run(tmp_path / "in", tmp_path / "out", outputs="ids", lines=lines)
    assert lines[0] == "1/10 frames, 0.2 frames/s, 36s left"
    assert len(lines) == 6  # after every other frame and at the end


def test_a_video_that_did_not_arrive_whole_is_an_error(tmp_path, monkeypatch):
    class Deaf:
        def __init__(self, *_):
            pass

        def write(self, picture):
            pass

        def release(self):
            pass

    write_image(tmp_path / "in" / "1.png")
    monkeypatch.setattr(videos.cv2, "VideoWriter", Deaf)
    with pytest.raises(
        OSError, match=r"video/in\.mp4: cannot be written: not all of 1 frames.*Remedy"
    ):
        run(tmp_path / "in", tmp_path / "out", outputs="video")

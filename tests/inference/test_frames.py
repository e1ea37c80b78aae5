import pytest
from conftest import SHARED
from frames_by_hand import config, names, run, write_image, write_video

from mapseg.inference.frames import find_frames
from mapseg.inference.infer import Counts


def test_all_images_of_a_folder_are_found_in_natural_order(tmp_path):
    for name in ["f10.png", "f9.JPG", "b/2.bmp", "b/10.tiff", "a/x.webp", "f1.ppm"]:
        write_image(tmp_path / name)
    write_image(tmp_path / ".cache" / "thumbnail.png")
    write_image(tmp_path / "._f1.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "old.txt").touch()
    frame_list = find_frames(config(tmp_path, "unused"))
    assert [f.name for f in frame_list.frames] == ["f1", "f9", "f10", "a/x", "b/2", "b/10"]
    assert frame_list.skipped == ("skipped files that are not images: 2 .txt",)
    assert frame_list.frames[1].path == tmp_path / "f9.JPG"
    assert [f.video for f in frame_list.frames] == [tmp_path.name] * 3 + ["a", "b", "b"]


def test_a_subfolder_with_the_name_of_its_parent_has_a_separate_video(tmp_path):
    write_image(tmp_path / "x" / "1.png")
    write_image(tmp_path / "x" / "x" / "1.png")
    assert [f.video for f in find_frames(config(tmp_path / "x", "unused")).frames] == ["x_", "x"]


def test_every_n_selects_each_nth_frame_of_each_folder(tmp_path):
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
def test_only_the_camera_images_of_a_kitti_root_are_frames(tmp_path, layout):
    for name in KITTI[layout] + NOT_FRAMES[layout]:
        write_image((tmp_path / name).with_suffix(".png"))
        (tmp_path / name).with_suffix(".png").rename(tmp_path / name)
    frame_list = find_frames(config(tmp_path, "unused"))
    assert sorted(f.name for f in frame_list.frames) == sorted(n[:-4] for n in KITTI[layout])
    text = " ".join(frame_list.skipped)
    assert all(word in text for word in SKIPPED[layout])


def test_cameras_select_image_folders_and_skipped_images_are_counted(tmp_path):
    for camera in ("image_0", "image_2", "image_3"):
        for i in range(2):
            write_image(tmp_path / "sequences" / "00" / camera / f"{i:06d}.png")
    write_image(tmp_path / "training" / "semantic" / "000000_10.png")
    frame_list = find_frames(config(tmp_path, "unused", cameras="image_2,image_3"))
    assert {f.video for f in frame_list.frames} == {"sequences/00/image_2", "sequences/00/image_3"}
    assert frame_list.skipped == (
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


def test_a_glob_is_recursive_and_names_are_relative_to_its_fixed_part(tmp_path):
    for name in ["day 1/left/1.png", "day 1/right/1.png", "day 2/left/1.png", "day 2/left/1.txt"]:
        write_image((tmp_path / name).with_suffix(".png"))
    (tmp_path / "day 2" / "left" / "1.txt").touch()
    assert names(tmp_path / "**" / "left" / "*") == ["day 1/left/1", "day 2/left/1"]
    assert names(tmp_path / "day 2" / "**") == ["left/1"]


def test_a_list_may_have_relative_and_absolute_paths(tmp_path):
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


def test_missing_frames_are_reported_with_a_remedy(tmp_path):
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
    assert names(tmp_path / "broken.mp4") == ["broken"]  # reading it fails and reports the cause


def test_two_frames_with_the_same_name_are_rejected(tmp_path):
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


def test_the_shared_kitti_sample_has_56_frames():
    root = SHARED / "data" / "kitti"
    if not root.is_dir():
        pytest.skip("needs ../shared/data/kitti")
    frame_names = names(root)
    assert len(frame_names) == 56
    assert "odometry/sequences/01/image_0/000000" in frame_names


def test_results_inside_the_frames_folder_are_not_frames(tmp_path):
    write_image(tmp_path / "1.png")
    for out_dir in (tmp_path / "out 1", tmp_path / "out 2", tmp_path):
        assert run(tmp_path, out_dir, outputs="ids,overlay,panel") == Counts(1, 0, 0)
    assert names(tmp_path) == names(tmp_path / "**") == ["1"]
    assert names(tmp_path / "out 1" / "overlay") == ["1"]  # unless they are named

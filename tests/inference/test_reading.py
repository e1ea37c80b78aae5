import cv2
import numpy as np
import pytest
from frames_by_hand import run, segment, write_video
from PIL import Image

from mapseg.inference.infer import Counts
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


def test_a_folder_of_two_videos_is_read_by_a_glob_and_continued(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", count=6)
    write_video(tmp_path / "in" / "b.mp4", count=3)
    pattern, out_dir = tmp_path / "in" / "*.mp4", tmp_path / "out"
    assert run(pattern, out_dir, outputs="ids") == Counts(9, 0, 0)
    (out_dir / "ids" / "a" / "000004.png").unlink()
    seen = []
    run(pattern, out_dir, lambda im: seen.append(im.mean()) or segment(im), outputs="ids")
    np.testing.assert_allclose(seen, [160], atol=4)

import cv2
import numpy as np
import pytest
from frames_by_hand import read_ids, run, segment, write_video

from mapseg.inference import videos
from mapseg.inference.infer import Counts


def test_a_video_is_read_in_order_and_written_at_its_frame_rate(tmp_path):
    write_video(tmp_path / "clip.mp4", count=5, fps=12.0)
    brightness = []
    counts = run(
        tmp_path / "clip.mp4",
        tmp_path / "out",
        lambda image: brightness.append(round(float(image.mean()))) or segment(image),
        every=2,
        outputs="ids,video",
    )
    assert counts == Counts(3, 0, 0)
    np.testing.assert_allclose(brightness, [0, 80, 160], atol=4)
    assert read_ids(tmp_path / "out" / "ids" / "clip" / "000004.png").shape == (32, 48)
    assert read_ids(tmp_path / "out" / "ids" / "clip" / "000004.png").min() == 1
    video = cv2.VideoCapture(str(tmp_path / "out" / "video" / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(6)
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_mixed_sizes_are_fitted_to_the_first_without_distortion():
    white = np.full((10, 40, 3), 255, np.uint8)
    fitted = videos._fit(white, (20, 20))  # scaled to 5 x 20 and centred
    np.testing.assert_array_equal(
        (fitted == 255).all((1, 2)), [False] * 7 + [True] * 5 + [False] * 8
    )
    assert videos._fit(white, (10, 40)) is white

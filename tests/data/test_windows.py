import io

import cv2
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from records_by_hand import encoded

from mapseg.data.samples import Sample, encode_sample, parse_sample
from mapseg.data.tiles import Window, encode_tiles
from mapseg.data.windows import decode_image_window, decode_label_tile, decode_label_window

DATA = SHARED / "data"
SIZES = [(97, 131), (160, 240), (700, 523)]


def picture(size, seed=0):
    """A smooth image with some noise, as chroma smoothing shows at edges only."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (size[0] // 12 + 1, size[1] // 12 + 1, 3), np.uint8)
    image = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.add(image, rng.integers(0, 30, image.shape, np.uint8))


def sample_of(image, image_format="JPEG", tiled=True, **options):
    size = image.shape[:2]
    label = np.random.default_rng(1).integers(0, 66, size, np.uint8)
    tiles = encode_tiles(label) if tiled else []
    record = encode_sample(
        "key",
        encoded(image, image_format, **options),
        image_format.lower(),
        size,
        3,
        encoded(label, "PNG"),
        tiles,
    )
    return parse_sample(record), label


def windows_of(size, count=25, multiple=1):
    rng = np.random.default_rng(2)
    yield Window(0, 0, *size)
    for _ in range(count):
        top, left = (int(rng.integers(0, side)) // multiple * multiple for side in size)
        height = int(rng.integers(1, size[0] - top + 1))
        yield Window(top, left, height, int(rng.integers(1, size[1] - left + 1)))


@pytest.mark.addons
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 2},  # 4:2:0
        {"subsampling": 1},
        {"subsampling": 0},
        {"subsampling": 2, "progressive": True},
        {"subsampling": 2, "restart_marker_rows": 1},
    ],
    ids=str,
)
def test_a_window_of_a_jpeg_has_the_pixels_of_the_whole(size, options):
    sample, _ = sample_of(picture(size), **options)
    whole = np.asarray(Image.open(io.BytesIO(sample.image)))
    for window in windows_of(size):
        np.testing.assert_array_equal(decode_image_window(sample, window), window.cut(whole))


@pytest.mark.parametrize("size", SIZES[:2])
def test_a_window_of_a_png_and_of_a_grey_jpeg(size):
    image = picture(size)
    png, _ = sample_of(image, "PNG")
    grey, _ = sample_of(image[..., 0])
    whole = np.asarray(Image.open(io.BytesIO(grey.image)))
    for window in windows_of(size, 5):
        np.testing.assert_array_equal(decode_image_window(png, window), window.cut(image))
        decoded = decode_image_window(grey, window)
        np.testing.assert_array_equal(decoded, np.stack([window.cut(whole)] * 3, axis=-1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_shrunk_window_shows_the_same_view(size, shrink, image_format):
    image = cv2.GaussianBlur(picture(size), (0, 0), shrink)
    options = {"quality": 95} if image_format == "JPEG" else {}
    sample, _ = sample_of(image, image_format, **options)
    for window in windows_of(size, 8, multiple=shrink):
        decoded = decode_image_window(sample, window, shrink)
        shrunk = -(-window.height // shrink), -(-window.width // shrink)
        assert decoded.shape == (*shrunk, 3)
        if min(window.height, window.width) < shrink:
            continue
        inner = window.cut(image)
        inner = inner[: len(inner) // shrink * shrink, : inner.shape[1] // shrink * shrink]
        blocks = inner.reshape(len(inner) // shrink, shrink, -1, shrink, 3).mean(axis=(1, 3))
        error = np.abs(decoded[: blocks.shape[0], : blocks.shape[1]] - blocks)
        assert error.mean() < (1 if image_format == "PNG" else 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiled", [True, False])
def test_a_window_and_a_tile_of_the_label(size, tiled):
    sample, label = sample_of(picture(size), tiled=tiled)
    assert bool(sample.tiles) == tiled
    for window in windows_of(size, 8):
        np.testing.assert_array_equal(decode_label_window(sample, window), window.cut(label))
    last = -(-size[0] // 256) * -(-size[1] // 256) - 1
    for tile in {0, last}:
        ids, (top, left) = decode_label_tile(sample, tile)
        np.testing.assert_array_equal(ids, label[top : top + 256, left : left + 256])
    assert (top, left) == tuple((side - 1) // 256 * 256 for side in size)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")
def test_windows_of_real_images_are_exact():
    """The three smallest JPEGs; 4:2:0, from several cameras."""
    paths = sorted((DATA / "mapillary_sample/training/images").glob("*.jpg"))
    for path in sorted(paths, key=lambda p: p.stat().st_size)[:3]:
        whole = np.asarray(Image.open(path))
        size = whole.shape[:2]
        sample = Sample("a", size, path.read_bytes(), b"", ())
        rng = np.random.default_rng(0)
        for _ in range(6):
            top, left = (int(rng.integers(0, side - 513)) for side in size)
            window = Window(top, left, 513, 513)
            np.testing.assert_array_equal(decode_image_window(sample, window), window.cut(whole))

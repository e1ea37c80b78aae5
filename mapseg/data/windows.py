"""Decodes only the window of a sample that a training crop needs.

A JPEG is read down to the window's last row, and only the window's blocks are converted to pixels.
Of the label, only the tiles that the window overlaps are decoded.
"""

import cv2
import numpy as np
import tensorflow as tf

from mapseg.data.samples import Sample
from mapseg.data.tiles import TILE_PX, Window, decode_window, tile_grid

# A window of whole JPEG blocks decodes to the whole image's pixels, except at its rim, where
# chroma upsampling needs the next chroma value, two pixels wide. Blocks are at most 16 pixels wide.
_BLOCK_PX, _RIM_PX = 16, 2

_JPEG = b"\xff\xd8\xff"


def decode_image_window(sample: Sample, window: Window, shrink: int = 1) -> np.ndarray:
    """Decodes a window of the image.

    Args:
      sample: a parsed record.
      window: within the image; its top and left are multiples of `shrink`.
      shrink: 1, 2, 4 or 8; both sides are divided by it, rounded up. A JPEG is decoded at that
        fraction of its size, which is cheaper than decoding and averaging all pixels.

    Returns:
      [H, W, 3] uint8; unless shrunk, exactly the pixels of the fully decoded image.
    """
    if not sample.image.startswith(_JPEG):
        return _shrink(window.cut(sample.whole_image), shrink)
    top, rows, start_y, end_y = _span(window.top, window.height, sample.size[0], shrink)
    left, columns, start_x, end_x = _span(window.left, window.width, sample.size[1], shrink)
    with tf.device("CPU"):
        pixels = tf.io.decode_and_crop_jpeg(
            sample.image,
            [start_y, start_x, end_y - start_y, end_x - start_x],
            channels=3,
            ratio=shrink,
            dct_method="INTEGER_ACCURATE",
        ).numpy()
    top, left = top - start_y, left - start_x
    return pixels[top : top + rows, left : left + columns]


def _shrink(pixels: np.ndarray, shrink: int) -> np.ndarray:
    """Averages squares of pixels; incomplete ones repeat the edge pixels."""
    if shrink == 1:
        return pixels
    height, width = (-(-side // shrink) for side in pixels.shape[:2])
    bottom, right = height * shrink - pixels.shape[0], width * shrink - pixels.shape[1]
    padded = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)


def _span(first: int, length: int, side: int, shrink: int) -> tuple[int, int, int, int]:
    """Returns (first, length, start, end) along a side in shrunk pixels; decode start to end."""
    start = max((first - _RIM_PX) // _BLOCK_PX * _BLOCK_PX, 0)
    end = -(-(first + length + _RIM_PX) // _BLOCK_PX) * _BLOCK_PX
    shrunk_side = -(-side // shrink)
    return first // shrink, -(-length // shrink), start // shrink, min(end // shrink, shrunk_side)


def decode_label_window(sample: Sample, window: Window) -> np.ndarray:
    """Decodes a window, which lies within the label, to [height, width] uint8 source ids."""
    if sample.tiles:
        return decode_window(sample.tiles, sample.size, window)
    return window.cut(sample.whole_label)


def decode_label_tile(sample: Sample, tile: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes one tile of the label, clipped to the label.

    Returns:
      The source ids, [H, W] uint8, and the (row, column) of their first pixel in the label.
    """
    row, column = divmod(tile, tile_grid(sample.size)[1])
    window = Window(row * TILE_PX, column * TILE_PX, TILE_PX, TILE_PX).within(sample.size)
    return decode_label_window(sample, window), (window.top, window.left)

"""Small pictures inside a page: photographs and label maps as data URIs."""

import base64

import numpy as np

from mapseg.data.resizing import resize_image, resize_label
from mapseg.pictures import encode_jpg, encode_png

LONG_SIDE_PX = 512
# Keeps 100 images with their label maps below 15 MB.
_PHOTO_BYTES = 75_000
_QUALITIES = (82, 65, 45, 25)


def to_uri(data: bytes, kind: str) -> str:
    """Returns an encoded picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encode_photo(image: np.ndarray, most_bytes: int = _PHOTO_BYTES) -> str:
    """Shrinks an image and encodes it as the data URI of a JPEG.

    Args:
      image: [H, W, 3] uint8 RGB.
      most_bytes: if the JPEG is larger, its quality is lowered, down to a limit.
    """
    image = resize_image(image, thumbnail_size(image))
    for quality in _QUALITIES:
        data = encode_jpg(image, quality)
        if len(data) <= most_bytes:
            break
    return to_uri(data, "jpeg")


def encode_ids(ids: np.ndarray) -> str:
    """Returns ids [H, W] uint8, shrunk, as the data URI of a greyscale PNG."""
    return to_uri(encode_png(resize_label(ids, thumbnail_size(ids))), "png")


def thumbnail_size(pixels: np.ndarray) -> tuple[int, int]:
    """Returns the (height, width) of the small picture of an image or a label map."""
    height, width = pixels.shape[:2]
    factor = min(1.0, LONG_SIDE_PX / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))

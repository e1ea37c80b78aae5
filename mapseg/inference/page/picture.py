"""The small picture of a frame and its prediction, stored in `page/<frame>.json` for the page."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mapseg.files import write_text
from mapseg.pages.thumbnails import encode_ids, encode_photo, thumbnail_size

# Keeps 200 frames with their predictions below 15 MB.
_PHOTO_BYTES = 40_000


class Picture(NamedTuple):
    """A frame on the page.

    Attributes:
      photo: a JPEG as data URI.
      ids: a greyscale PNG of classes or VOID as data URI.
      size: (height, width) of both in pixels.
    """

    photo: str
    ids: str
    size: tuple[int, int]


def write_picture(path: Path, image: np.ndarray, ids: np.ndarray) -> None:
    """Writes the small picture of a frame.

    Args:
      path: the file.
      image: [H, W, 3] uint8 RGB.
      ids: [H, W] uint8, the class of each pixel, or VOID.
    """
    photo = encode_photo(image, _PHOTO_BYTES)
    picture = Picture(photo, encode_ids(ids), thumbnail_size(image))
    write_text(path, json.dumps(picture._asdict()) + "\n")


def read_picture(path: Path) -> Picture:
    """Reads the small picture of a frame.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        height, width = map(int, raw["size"])
        return Picture(str(raw["photo"]), str(raw["ids"]), (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: must be a picture that mapseg wrote; got: {error!r}. Remedy: delete it and "
            "repeat the command"
        ) from error

"""One training crop of a sample: decoded, resized, augmented and padded."""

import cv2
import numpy as np

from mapseg.config import TrainConfig
from mapseg.data.resizing import resize_pair
from mapseg.data.samples import Sample
from mapseg.data.transforms import augment, pad, random_scale, random_window, shrink_of
from mapseg.data.windows import decode_image_window, decode_label_tile, decode_label_window
from mapseg.labels import VOID

# Pads a crop beyond the image: near zero for every encoder, like the padding in prediction.
_GREY = 127


def make_crop(
    sample: Sample,
    table: np.ndarray,
    config: TrainConfig,
    rng: np.random.Generator,
    focus: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one training crop of a sample, decoding only the part it needs.

    Args:
      sample: a parsed record.
      table: [256] uint8, source id -> train id.
      config: crop size and augmentation.
      rng: the crop is a pure function of its numbers.
      focus: (tile, train id): the crop contains a random pixel of this class from this tile.

    Returns:
      The pair ([crop_height, crop_width, 3] uint8, [crop_height, crop_width] uint8 train ids).

    Raises:
      ValueError: the tile does not contain the class.
    """
    around = None if focus is None else _random_pixel(sample, table, *focus, rng)
    scale = random_scale(config, rng)
    window = random_window(sample.size, config.crop_size, scale, rng, around)
    visible = window.within(sample.size)
    image = decode_image_window(sample, visible, shrink_of(scale))
    label = cv2.LUT(decode_label_window(sample, visible), table)
    # The part of the crop that the image covers. Padding comes last: a window padded before it is
    # resized would take much memory at a small scale.
    height, width = config.crop_size
    covered = (
        max(round(height * visible.height / window.height), 1),
        max(round(width * visible.width / window.width), 1),
    )
    image, label = augment(*resize_pair(image, label, covered), config, rng)
    return pad(image, config.crop_size, _GREY), pad(label, config.crop_size, VOID)


def _random_pixel(
    sample: Sample, table: np.ndarray, tile: int, train_id: int, rng: np.random.Generator
) -> tuple[int, int]:
    ids, (top, left) = decode_label_tile(sample, tile)
    places = np.flatnonzero(cv2.LUT(ids, table) == train_id)
    if not len(places):
        raise ValueError(
            f"{sample.key}: tile {tile} must contain class {train_id}; got none of its pixels. "
            "Remedy: find the damaged files with python -m data_prep.verify_records"
        )
    row, column = divmod(int(places[int(len(places) * rng.random())]), ids.shape[1])
    return top + row, left + column

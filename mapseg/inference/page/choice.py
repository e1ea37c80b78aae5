"""Chooses the frames that the page shows."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mapseg.inference.page.picture import Picture
from mapseg.inference.results import Row

FRAMES = 200
BYTES = 13_500_000  # of all pictures
_LEAST = 10  # one in ten frames is shown because of its low confidence


def confidence(row: Row) -> float | None:
    """Returns the mean confidence of a frame; None if it is unknown."""
    try:
        value = float(row["mean_confidence"])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def least_confident(rows: Sequence[Row], count: int) -> list[int]:
    """Returns the positions of the least confident frames, the least confident first."""
    values = {i: value for i, row in enumerate(rows) if (value := confidence(row)) is not None}
    return sorted(values, key=lambda i: values[i])[:count]


def choose(rows: Sequence[Row], most: int) -> list[int]:
    """Chooses frames: the least confident, and others evenly spaced.

    Args:
      rows: in the order of the frames.
      most: the most frames to choose.

    Returns:
      Ascending positions.
    """
    if len(rows) <= most:
        return [*range(len(rows))]
    least = {*least_confident(rows, most // _LEAST)}
    others = [i for i in range(len(rows)) if i not in least]
    spaced = np.linspace(0, len(others) - 1, most - len(least)).round().astype(int)
    return sorted(least | {others[i] for i in spaced})


def choose_pictures(
    rows: Sequence[Row], read: Callable[[Row], Picture], most_bytes: int = BYTES
) -> dict[int, Picture]:
    """Chooses frames whose pictures fit into a page.

    Args:
      rows: of frames with a picture.
      read: reads the picture of a frame.
      most_bytes: of all pictures.

    Returns:
      Pictures by ascending position.
    """
    most = FRAMES
    while True:
        pictures = {i: read(rows[i]) for i in choose(rows, most)}
        size = sum(len(picture.photo) + len(picture.ids) for picture in pictures.values())
        if size <= most_bytes or len(pictures) <= 1:
            return pictures
        most = max(1, min(len(pictures) - 1, len(pictures) * most_bytes // size))

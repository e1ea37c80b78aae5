"""Compares an export with the predictor, on frames that show more than one class."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mapseg.config import PredictConfig
from mapseg.inference.export.formats import Format
from mapseg.inference.predictor import Predictor

Segment = Callable[[np.ndarray], np.ndarray]

# Formats without tiles hold the logits of all pixels, of the image and of the network's input.
_MOST_PIXELS = 2**20


class Expected(NamedTuple):
    """A frame and its ids.

    Attributes:
      image: [H, W, 3] uint8.
      ids: [H, W] uint8, from the predictor.
    """

    image: np.ndarray
    ids: np.ndarray


def predict(predictor: Predictor, frames: Sequence[np.ndarray]) -> list[Expected]:
    """Segments the frames of a check, after cutting them to a size that fits in memory.

    Args:
      predictor: what is exported.
      frames: [H, W, 3] uint8 each.

    Raises:
      ValueError: all pixels have the same class, so that agreement would show little.
    """
    images = [cut(frame, predictor.config, predictor.long_side_px) for frame in frames]
    expected = [Expected(image, predictor.segment(image).ids) for image in images]
    if count_classes(expected) < 2:
        raise ValueError(
            "the frames on which an export is checked must show more than one class; the network "
            f"gives only id {expected[0].ids.flat[0]} on {len(images)} frames. Remedy: choose "
            "frames of the kind that it was trained on by --check_frames or --records_dir"
        )
    return expected


def count_classes(expected: Sequence[Expected]) -> int:
    """Returns the number of classes among the ids."""
    return len(np.unique(np.concatenate([ids.ravel() for _, ids in expected])))


def check(form: Format, segment: Segment, expected: Sequence[Expected]) -> float:
    """Compares the ids of an export with the predictor's.

    Args:
      form: the format of the export.
      segment: the export, from images [B, H, W, 3] uint8 to ids [B, H, W] uint8.
      expected: from `predict`.

    Returns:
      The share of pixels for which both are equal.

    Raises:
      ValueError: it is too small, or all ids of the export are the same.
    """
    exported = [Expected(image, segment(image[np.newaxis])[0]) for image, _ in expected]
    pairs = zip(exported, expected, strict=True)
    equal = sum(int((x.ids == y.ids).sum()) for x, y in pairs)
    share = equal / sum(ids.size for _, ids in expected)
    if share < form.least_equal or count_classes(exported) < 2:
        remedy = (
            "leave this format out; the network does not bear rounding to 8 bits"
            if form.rounded
            else "leave this format out, and report it with the run's config.json"
        )
        raise ValueError(
            f"at least {form.least_equal:.1%} of the ids of format {form.name} must equal the "
            f"predictor's, and show more than one class; got {share:.3%}, and "
            f"{count_classes(exported)}. Nothing was written. Remedy: {remedy}"
        )
    return share


def cut(frame: np.ndarray, config: PredictConfig, long_side_px: int) -> np.ndarray:
    """Cuts a frame around its centre if it, or the network's input, would be too large.

    Only the shorter side is cut, as `scale=auto` follows from the longer one.

    Args:
      frame: [H, W, 3] uint8.
      config: scales.
      long_side_px: as in `Predictor`.
    """
    axis = int(frame.shape[1] < frame.shape[0])
    longer, shorter = frame.shape[1 - axis], frame.shape[axis]
    scale = long_side_px / longer if config.scale == "auto" else float(config.scale)
    scale = max(scale * config.factors[-1], 1)
    kept = min(max(1, math.floor(_MOST_PIXELS / (longer * scale**2))), shorter)
    start = (shorter - kept) // 2
    return np.ascontiguousarray(frame.take(range(start, start + kept), axis))

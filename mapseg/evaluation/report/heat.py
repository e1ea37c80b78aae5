"""The heat map of a confusion matrix, and the numbers behind it."""

from typing import Any, NamedTuple

import numpy as np

from mapseg.evaluation.evaluation import Evaluation
from mapseg.pages.thumbnails import to_uri
from mapseg.pictures import encode_png

_RIGHT, _WRONG = (59, 130, 246), (234, 113, 12)  # blue and orange: for the colour-blind too


class Heat(NamedTuple):
    """A confusion matrix without the classes that do not occur.

    Attributes:
      rows: ids of the classes in the labels.
      columns: ids of the predicted classes; the number of classes stands for no class.
      shares: [rows, columns] share of the row's pixels.
      picture: one pixel for each cell, transparent at 0, as data URI.
    """

    rows: list[int]
    columns: list[int]
    shares: np.ndarray
    picture: str

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers for the page."""
        shares = self.shares.round(4).tolist()
        return {"rows": self.rows, "columns": self.columns, "shares": shares}


def heat_of(evaluation: Evaluation) -> Heat:
    """Normalises the confusion matrix by row and draws it.

    The colours grow with the square root of the share, so that small confusions are visible.
    """
    confusion = evaluation.scored_confusion
    rows = np.flatnonzero(confusion.sum(1))
    used = confusion.sum(0) > 0
    used[rows] = True
    columns = np.flatnonzero(used)
    shares = confusion[rows][:, columns] / confusion[rows].sum(1, keepdims=True)
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = np.where((rows[:, np.newaxis] == columns)[..., np.newaxis], _RIGHT, _WRONG)
    pixels[..., 3] = np.round(255 * np.sqrt(shares))
    picture = to_uri(encode_png(pixels), "png") if shares.size else ""
    return Heat(rows.tolist(), columns.tolist(), shares, picture)

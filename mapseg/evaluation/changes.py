"""Compares two evaluations class by class."""

import numpy as np

from mapseg.evaluation.scores import Scores

_LEAST_POINTS = 0.1  # what one decimal shows
_MOST_CLASSES = 3


def describe_changes(before: Scores, after: Scores) -> str:
    """Returns which classes got better and worse, as a clause.

    Args:
      before: the earlier evaluation.
      after: the later one, with the same label set.

    Returns:
      At most three classes each, the largest changes of IoU first, in points: `better: car +3.1;
      worse: pole -1.2 (IoU in points)`. Empty if no class changed by 0.1 points or more. Classes
      that one evaluation lacks are ignored.
    """
    points = np.round(100 * (after.iou - before.iou), 6)  # so that rounding errors do not decide
    names = after.label_set.names
    parts = []
    for word, gains in (("better", points), ("worse", -points)):
        order = np.argsort(-gains, kind="stable")  # nan comes last
        largest = [i for i in order if gains[i] >= _LEAST_POINTS][:_MOST_CLASSES]
        if largest:
            parts.append(f"{word}: " + ", ".join(f"{names[i]} {points[i]:+.1f}" for i in largest))
    return f"{'; '.join(parts)} (IoU in points)" if parts else ""

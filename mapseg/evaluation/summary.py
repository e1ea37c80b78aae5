"""An evaluation in lines of text."""

import math
from collections.abc import Iterator

from mapseg.evaluation.bootstrap import intervals
from mapseg.evaluation.evaluation import Evaluation


def summary_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yields the classes by descending IoU, then the totals, which a terminal shows last."""
    yield from evaluation.class_lines()
    yield from evaluation.total_lines()
    low, high = intervals(evaluation).mean_iou
    if low <= high:
        yield f"95 % interval of mean IoU, over images: {low:.2%} to {high:.2%}"
    more = {
        "boundary IoU": evaluation.mean_boundary_iou,
        "frequency-weighted IoU": evaluation.frequency_weighted_iou,
        "class accuracy": evaluation.mean_class_accuracy,
        "calibration error": evaluation.calibration_error,
    }
    known = [f"{name} {value:.2%}" for name, value in more.items() if not math.isnan(value)]
    if known:
        yield ", ".join(known)

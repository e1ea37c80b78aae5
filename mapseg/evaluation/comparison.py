"""Two stored evaluations of the same images -> the lines of their comparison."""

from collections.abc import Iterator
from pathlib import Path

from mapseg.evaluation.bootstrap import Difference, compare
from mapseg.evaluation.evaluation import Evaluation
from mapseg.evaluation.stored import evaluation_path, read_evaluation


def read_compared(path: Path, split: str) -> Evaluation:
    """Reads an evaluation with the counts of its images.

    Args:
      path: an evaluation file, or a run folder, whose evaluation of the split is read.
      split: name of a split.

    Raises:
      FileNotFoundError: no such evaluation.
      ValueError: it is damaged, or of an earlier version, which stored no counts of images.
    """
    return read_evaluation(evaluation_path(path, split) if path.is_dir() else path)


def comparison_lines(first: Evaluation, second: Evaluation) -> Iterator[str]:
    """Yields the difference of mean IoU, and the classes whose difference is real.

    Args:
      first: the baseline.
      second: an evaluation of the same images in the same classes.

    Raises:
      ValueError: their images, labels or classes differ.
    """
    compared = compare(first, second)
    verdict = (
        "real, as the interval excludes zero"
        if compared.mean_iou.is_real
        else "not real, as the interval includes zero"
    )
    yield f"difference of mean IoU: {_points(compared.mean_iou)}, {verdict}"
    real = sorted(
        (i for i, difference in enumerate(compared.iou) if difference.is_real),
        key=lambda i: -abs(compared.iou[i].value),
    )
    present = int(first.present.sum())
    yield (
        f"classes whose difference of IoU is real: {len(real)} of {present}"
        + (", largest first" if len(real) > 1 else "")
    )
    for i in real:
        yield f"  {_points(compared.iou[i])}  {first.label_set.names[i]}"


def _points(difference: Difference) -> str:
    low, high = difference.interval
    return (
        f"{100 * difference.value:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    )

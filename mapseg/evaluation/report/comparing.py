"""Whether the difference between two runs is real, and where it lies."""

from collections.abc import Callable
from typing import NamedTuple

from mapseg.evaluation.bootstrap import Comparison, compare
from mapseg.evaluation.report.choice import largest_changes
from mapseg.evaluation.report.command import RECORDS, evaluate_command
from mapseg.evaluation.report.source import Source

_IMAGES = 8


class ImageChange(NamedTuple):
    """An image whose score differs: its position, and its mean IoU before and after."""

    place: int
    before: float
    after: float


class Compared(NamedTuple):
    """The run of the report against another run.

    Attributes:
      name: of the other run.
      comparison: the run of the report less the other; None if they cannot be compared.
      reason: why not; else empty.
      images: those that differ most.
    """

    name: str
    comparison: Comparison | None
    reason: str
    images: tuple[ImageChange, ...] = ()

    @property
    def verdict(self) -> str:
        """What the comparison shows, in a sentence."""
        if self.comparison is None:
            return f"Cannot be compared with {self.name}: {self.reason}"
        value, (low, high) = self.comparison.mean_iou
        amount = f"{100 * abs(value):.1f} points"
        ends = f"95 % interval of the difference, {100 * low:+.1f} to {100 * high:+.1f},"
        if not self.comparison.mean_iou.is_real:
            return (
                f"No real difference from {self.name} is shown: mean IoU differs by {amount}, but "
                f"the {ends} includes 0."
            )
        better, higher = ("Better", "higher") if value > 0 else ("Worse", "lower")
        return (
            f"{better} than {self.name}: mean IoU is {amount} {higher}. The difference is real: "
            f"the {ends} excludes 0."
        )


def compare_sources(source: Source, other: Source, progress: Callable[[str], None]) -> Compared:
    """Compares the run of a report with another, by a paired bootstrap; reports the verdict."""
    compared = _compare(source, other)
    progress(compared.verdict)
    return compared


def _compare(source: Source, other: Source) -> Compared:
    mine, theirs = source.evaluation, other.evaluation
    if mine is None or theirs is None:
        lacking = source if mine is None else other
        remedy = evaluate_command(lacking.run, RECORDS, source.split)
        reason = f"{lacking.run.run_dir} has no evaluation of {source.split}. Remedy: {remedy}"
        return Compared(other.name, None, reason)
    try:
        comparison = compare(theirs, mine)
    except ValueError as error:
        return Compared(other.name, None, str(error))
    before = dict(zip([i.name for i in theirs.images], theirs.image_mean_iou, strict=True))
    images = tuple(
        ImageChange(i, before[mine.images[i].name], float(mine.image_mean_iou[i]))
        for i in largest_changes(theirs, mine)[:_IMAGES]
    )
    return Compared(other.name, comparison, "", images)

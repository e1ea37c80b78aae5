"""Writes the report of a run: one page, complete in itself, that shows how good the run is.

    python -m mapseg.evaluation.report --run_dir=O --records_dir=R [--compare=O2,O3]

Writes O/report/index.html: scores with intervals, curves, classes, confusions, and the worst and
best images, which the network segments again. Without --records_dir the page has no pictures. The
scores are those of the stored evaluation; see train_main.py --mode=evaluate.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.evaluation.report.write import IMAGES, write_report


def define_flags() -> flags.FlagValues:
    """Defines the program's flags."""
    values = flags.FlagValues()
    for name, text in (
        ("run_dir", "folder of the run"),
        ("records_dir", "folder of the records that it was evaluated on; empty: no pictures"),
        ("split", "split whose evaluation is shown; empty is the run's --eval_split"),
        ("frames_dir", "an --out_dir of infer_main.py, whose frames are shown too"),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_list("compare", [], "run folders to compare with", flag_values=values)
    text = "the most images to show"
    flags.DEFINE_integer("images", IMAGES, text, lower_bound=0, flag_values=values)
    text = "also write pictures at full size, into RUN_DIR/report/pictures"
    flags.DEFINE_bool("pictures", False, text, flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Writes the report."""
    records_dir = Path(values.records_dir) if values.records_dir else None
    path = write_report(
        Path(cli.required(values, "run_dir")),
        records_dir,
        cli.report,
        split=values.split,
        compare=[Path(folder) for folder in values.compare],
        images=values.images,
        frames_dir=Path(values.frames_dir) if values.frames_dir else None,
        full_pictures=values.pictures,
    )
    cli.report(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

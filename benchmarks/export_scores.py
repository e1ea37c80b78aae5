"""Measures how far the formats of an export keep the ids and scores of inference, and their sizes.

python benchmarks/export_scores.py --run_dir=RUN --records_dir=RECORDS
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from exports import megabytes

from mapseg import cli
from mapseg.config import PredictConfig


def define_flags() -> flags.FlagValues:
    """Defines the command-line flags."""
    values = flags.FlagValues()
    flags.DEFINE_string("run_dir", "", "a trained run", flag_values=values)
    flags.DEFINE_string("records_dir", "", "records to calibrate and score on", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Prints a table with a row for each format, at scale 1."""
    from mapseg.data.manifest import read_manifest
    from mapseg.estimator import Estimator
    from mapseg.evaluation.exported import score_exports
    from mapseg.inference.export.formats import FORMATS
    from mapseg.inference.export.source import Source
    from mapseg.inference.export.write import open_format
    from mapseg.runs.checkpoints import find_checkpoint

    estimator = Estimator(cli.required(values, "run_dir"), cli.report)
    records_dir, config = cli.required(values, "records_dir"), PredictConfig(scale="1")
    source = Source(estimator.run, find_checkpoint(estimator.run_dir), config)
    with tempfile.TemporaryDirectory() as folder:
        names = [form.name for form in FORMATS]
        export_dir = estimator.export(
            Path(folder) / "export", config, formats=names, records_dir=records_dir
        )
        segments = {form.name: open_format(form, export_dir) for form in FORMATS}
        scores = score_exports(source, segments, read_manifest(records_dir), cli.report)
        sizes = {form.name: megabytes(form, export_dir) for form in FORMATS}
    cli.report("| format | MB | equal ids | mean IoU | change in points |")
    cli.report("| --- | --- | --- | --- | --- |")
    for name, row in scores.items():
        change = 100 * (row["mean_iou"] - row["mean_iou_of_source"])
        cli.report(
            f"| `{name}` | {sizes[name]:.1f} | {row['equal_ids']:.2%} | "
            f"{row['mean_iou']:.1%} | {change:+.2f} |"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

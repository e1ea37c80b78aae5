"""Segments camera frames with a trained run: flags in, library call, exit code."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.config import InferConfig, PredictConfig


def define_flags() -> flags.FlagValues:
    """Defines what the program takes."""
    values = flags.FlagValues()
    for name, default, help_text in (
        ("run_dir", "", "folder of the run whose network is used"),
        ("checkpoint", "best", "best, latest or a step"),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    cli.define_flags(values, InferConfig, PredictConfig)
    return values


def work(values: flags.FlagValues) -> int:
    """Segments the frames; 1 where some could not be."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_dir = Path(cli.required(values, "run_dir"))
    config = InferConfig(**cli.given(values, InferConfig))
    predicting = PredictConfig(**cli.given(values, PredictConfig))

    from mapseg.infer import infer_run  # TensorFlow takes seconds to import

    counts = infer_run(run_dir, config, predicting, values.checkpoint, cli.report)
    return 1 if counts.failed else 0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

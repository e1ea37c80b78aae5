"""Segments camera frames with the network of a run or with TF DeepLab's."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.config import InferConfig, PredictConfig


def define_flags() -> flags.FlagValues:
    """Defines the program's flags."""
    values = flags.FlagValues()
    for name, default, help_text in (
        ("run_dir", "", "folder of the run whose network to use"),
        ("checkpoint", "best", "of the run: best, latest or a step"),
        ("init_checkpoint", "", "instead of a run: prefix of TF DeepLab's Cityscapes checkpoint"),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    cli.define_flags(values, InferConfig, PredictConfig)
    return values


def work(values: flags.FlagValues) -> int:
    """Segments the frames; returns 1 if any failed."""
    run_dir, prefix = values.run_dir, values.init_checkpoint
    if bool(run_dir) == bool(prefix) or (prefix and values["checkpoint"].present):
        raise ValueError(
            "either run_dir, optionally with checkpoint, or init_checkpoint must be given; got "
            f"run_dir={run_dir}, init_checkpoint={prefix}. Remedy: give either "
            "--run_dir=FOLDER or --init_checkpoint=PREFIX"
        )
    config = InferConfig(**cli.explicit_options(values, InferConfig))
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))

    from mapseg.inference import infer

    if prefix:
        counts = infer.infer_deeplab(prefix, config, predicting, cli.report)
    else:
        run = Path(run_dir)
        counts = infer.infer_run(run, config, predicting, values.checkpoint, cli.report)
    return 1 if counts.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Segments camera frames with a trained run: flags in, library call, exit code."""

import os
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.config import InferConfig, PredictConfig

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", "", "folder of the run whose network is used")
flags.DEFINE_string("checkpoint", "best", "best, latest or a step")
cli.define_flags(InferConfig, PredictConfig)


def main() -> int:
    """Segments the frames; 1 where some could not be."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_dir = Path(cli.required("run_dir"))
    config = InferConfig(**cli.given(InferConfig))

    from mapseg.infer import infer_run  # TensorFlow takes seconds to import

    predicting = PredictConfig(**cli.given(PredictConfig))
    counts = infer_run(run_dir, config, predicting, FLAGS.checkpoint, cli.report)
    return 1 if counts.failed else 0


if __name__ == "__main__":
    cli.run(main)

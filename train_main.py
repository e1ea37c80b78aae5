"""Trains, evaluates, exports and plots: flags in, library call, exit code."""

import os
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig

MODES = ("train_and_evaluate", "train", "evaluate", "export", "plot")
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", "train_and_evaluate", MODES, "what to do")
flags.DEFINE_string("run_dir", "", "folder of the run: configuration, checkpoints, history")
flags.DEFINE_string("records_dir", "", "folder of records, made by data_prep.build_records")
flags.DEFINE_string("checkpoint", "best", "to evaluate or export: best, latest or a step")
flags.DEFINE_string("export_dir", "", "where the SavedModel goes; default RUN_DIR/export")
flags.DEFINE_list("runs", [], "to plot: the run folders to draw together")
flags.DEFINE_string("plot_path", "runs.png", "to plot: the picture to write")
cli.define_flags(ModelConfig, TrainConfig, PredictConfig)
flags.DEFINE_alias("init_checkpoint", "init_from")


def main() -> int:
    """Does what --mode says."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if FLAGS.mode == "plot":
        from mapseg.checkpoints import read_history
        from mapseg.plots import plot_runs

        histories = {run: read_history(Path(run) / "history.csv") for run in FLAGS.runs}
        plot_runs(histories, Path(FLAGS.plot_path), FLAGS.loss_smoothing)
        cli.report(f"wrote {FLAGS.plot_path}")
        return 0
    run_dir = Path(cli.required("run_dir"))
    records_dir = Path(cli.required("records_dir")) if FLAGS.mode != "export" else Path()

    from mapseg.estimator import Estimator  # TensorFlow takes seconds to import

    estimator = Estimator(run_dir, cli.report)
    predicting = PredictConfig(**cli.given(PredictConfig))
    if FLAGS.mode == "evaluate":
        split = cli.given(TrainConfig).get("eval_split", "")
        scores = estimator.evaluate(records_dir, split, predicting, FLAGS.checkpoint)
        cli.report("\n".join(scores.lines()))
    elif FLAGS.mode == "export":
        path = estimator.export(FLAGS.export_dir, predicting, FLAGS.checkpoint)
        cli.report(f"wrote {path}")
    else:
        evaluating = FLAGS.mode == "train_and_evaluate"
        options = cli.given(ModelConfig, TrainConfig)
        with cli.stop_on_signal() as stopping:
            estimator.train(records_dir, evaluating=evaluating, stopping=stopping, **options)
    return 0


if __name__ == "__main__":
    cli.run(main)

"""Trains, evaluates and exports a segmentation network, and plots training runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mapseg import cli
from mapseg.config import ModelConfig, PredictConfig, TrainConfig
from mapseg.errors import one_line
from mapseg.inference.export.formats import FORMATS

if TYPE_CHECKING:
    from mapseg.estimator import Estimator

MODES = ("train_and_evaluate", "train", "evaluate", "export", "plot")


def define_flags() -> flags.FlagValues:
    """Defines the program's flags."""
    values = flags.FlagValues()

    def text(name: str, default: str, help_text: str) -> None:
        flags.DEFINE_string(name, default, help_text, flag_values=values)

    flags.DEFINE_enum("mode", MODES[0], MODES, "what to do", flag_values=values)
    text("run_dir", "", "folder of the run: configuration, checkpoints, history")
    text("records_dir", "", "folder of records, made by data_prep.build_records")
    text("checkpoint", "best", "for evaluate and export: best, latest or a step")
    text("mapping", "", "for evaluate: mapping to the classes of the records; see docs/data.md")
    text("export_dir", "", "folder for the export; default RUN_DIR/export")
    names = ", ".join(form.name for form in FORMATS)
    help_text = f"for export: any of {names}"
    flags.DEFINE_list("format", [FORMATS[0].name], help_text, flag_values=values)
    help_text = "for export: frames to check it on; default images of records_dir, else scripted"
    text("check_frames", "", help_text)
    flags.DEFINE_list("runs", [], "for plot: run folders to draw in one chart", flag_values=values)
    text("plot_path", "runs.png", "for plot: the PNG to write")
    help_text = "for train_and_evaluate: at the end, evaluate the best checkpoint and write a page"
    flags.DEFINE_bool("report", True, help_text, flag_values=values)
    cache = "cache for programs compiled by XLA; auto is ~/.cache/mapseg, empty disables it"
    text("compile_cache_dir", "auto", cache)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    return values


def work(values: flags.FlagValues) -> int:
    """Runs the chosen --mode."""
    mode = values.mode
    if mode == "plot":
        from mapseg.charts import plot_runs
        from mapseg.runs.history import read_history

        histories = {run: read_history(Path(run) / "history.csv") for run in values.runs}
        plot_path = Path(cli.required(values, "plot_path"))
        plot_runs(histories, plot_path, values.loss_smoothing)
        cli.report(f"wrote {plot_path}")
        return 0
    run_dir = Path(cli.required(values, "run_dir"))
    records_dir = Path(
        values.records_dir if mode == "export" else cli.required(values, "records_dir")
    )
    cli.use_compile_cache(values)

    from mapseg.estimator import Estimator

    estimator = Estimator(run_dir, cli.report)
    options = cli.explicit_options(values, ModelConfig, TrainConfig)
    predicting = PredictConfig(**cli.explicit_options(values, PredictConfig))
    if mode == "evaluate":
        from mapseg.evaluation.report.command import report_command
        from mapseg.evaluation.summary import summary_lines

        train = estimator.amended(options).train
        split, panels = train.eval_split, train.eval_panels
        scores = estimator.evaluate(
            records_dir, split, predicting, values.checkpoint, panels, mapping=values.mapping
        )
        cli.report("\n".join(summary_lines(scores)))
        if not values.mapping:
            cli.report(f"to write a report: {report_command(run_dir, records_dir, split)}")
    elif mode == "export":
        split = estimator.amended(options).train.eval_split
        _export(estimator, values, predicting, split)
    else:
        evaluating = mode == "train_and_evaluate"
        with cli.stop_on_signal() as stopping:
            estimator.train(
                records_dir,
                predicting=predicting,
                evaluating=evaluating,
                stopping=stopping,
                **options,
            )
            stopped = stopping()
        if evaluating and values.report and not stopped:
            _report(estimator, records_dir, predicting)
    return 0


def _export(
    estimator: "Estimator", values: flags.FlagValues, predicting: PredictConfig, split: str
) -> None:
    export_dir = estimator.export(
        values.export_dir,
        predicting,
        values.checkpoint,
        formats=values.format,
        check_frames=values.check_frames,
        records_dir=values.records_dir,
        split=split,
    )
    cli.report(f"wrote {export_dir}")


def _report(estimator: "Estimator", records_dir: Path, predicting: PredictConfig) -> None:
    """Writes the report of a trained run; a failure does not undo the training."""
    from mapseg.training.devices import find_cluster

    if find_cluster(estimator.run.train):
        return  # several processes: one would evaluate while the others end
    try:
        cli.report(f"wrote {estimator.report(records_dir, predicting)}")
    except KeyboardInterrupt:
        cli.report("the run is trained; its report was interrupted: the same command writes it")
    except Exception as error:
        cli.report(f"WARNING: the run is trained, but its report failed: {one_line(error)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

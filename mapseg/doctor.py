"""Checks, before a run, whether training will work on this machine; cheap checks first.

    python -m mapseg.doctor [--records_dir=R] [--run_dir=O] [--flagfile=F] [training options]

Prints a line for each check: ok; WARN, training works, but not as well as it could; FAIL, training
will not work; skip, a check that this one needs did not pass. It writes no files and downloads
nothing. Without --records_dir the step is tested on a synthetic batch. The exit code is 1 if a
check failed.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from mapseg import cli
from mapseg.checks import environment, options, records, steps
from mapseg.checks.case import FAIL, SKIP, Case, Finding
from mapseg.config import ModelConfig, PredictConfig, TrainConfig
from mapseg.errors import is_foreseen, one_line

_NOT_NEEDED = (
    *("checkpoint", "mapping", "export_dir", "format", "check_frames"),
    *("runs", "plot_path", "compile_cache_dir"),
)

# In order of execution: name, the checks that must pass first, the check.
CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Case], Finding]], ...] = (
    ("versions", (), environment.check_versions),
    ("flags", (), options.check_flags),
    ("run folder", ("versions", "flags"), options.check_run_dir),
    ("GPU", ("versions",), environment.check_gpu),
    ("memory", ("versions", "flags"), environment.check_memory),
    ("precision", ("versions", "flags"), options.check_precision),
    ("weights", ("versions", "flags"), options.check_weights),
    ("records", ("flags",), records.check_records),
    ("ids", ("versions", "records"), records.check_ids),
    ("batch", ("versions", "ids"), records.check_batch),
    ("network", ("run folder", "precision"), steps.check_network),
    ("disk", ("network",), environment.check_disk),
    ("step", ("network",), steps.check_step),
    ("speed", ("step",), steps.check_speed),
    ("largest batch", ("speed",), steps.check_largest_batch),
)


def examine(case: Case, report: Callable[[str], None]) -> bool:
    """Runs all checks and reports each; returns whether none failed."""
    not_passed: dict[str, str] = {}
    for name, needs, check in CHECKS:
        lacking = [need for need in needs if need in not_passed]
        try:
            finding = check(case) if not lacking else Finding(SKIP, f"needs {lacking[0]}")
        except Exception as error:
            if not is_foreseen(error):
                traceback.print_exc()
            finding = Finding(FAIL, one_line(error))
        if finding.level in (FAIL, SKIP):
            not_passed[name] = finding.level
        report(f"{finding.level:<4}  {name}: {finding.text}")
    return FAIL not in not_passed.values()


def define_flags() -> flags.FlagValues:
    """Defines the flags: all those of train_main.py, so that its flag files work."""
    values = flags.FlagValues()
    for name, text in (
        ("records_dir", "folder of records, made by data_prep.build_records"),
        ("run_dir", "folder of the run, new or to resume"),
        ("mode", "as in train_main.py; train needs no split to evaluate on"),
        *((name, "of train_main.py; ignored") for name in _NOT_NEEDED),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_bool("report", True, "of train_main.py; ignored", flag_values=values)
    cli.define_flags(values, ModelConfig, TrainConfig, PredictConfig)
    flags.DEFINE_alias("init_checkpoint", "init_from", flag_values=values)
    return values


def make_case(values: flags.FlagValues) -> Case:
    """Builds a case from the flags."""
    return Case(
        options=cli.explicit_options(values, ModelConfig, TrainConfig),
        run_dir=Path(values.run_dir) if values.run_dir else None,
        records_dir=Path(values.records_dir) if values.records_dir else None,
        mode=values.mode,
        progress=lambda line: cli.report(f"      {line}"),
    )


def work(values: flags.FlagValues) -> int:
    """Runs the checks; returns 1 if any failed."""
    return 0 if examine(make_case(values), cli.report) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return cli.run(work, define_flags(), argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())

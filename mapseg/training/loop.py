"""The loop around the training step."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mapseg
from mapseg import onednn
from mapseg.config import PredictConfig, TrainConfig, to_json
from mapseg.data.batches import CropStream
from mapseg.data.manifest import Manifest
from mapseg.data.sharing import share_batches
from mapseg.machine import gpus
from mapseg.progress import reporting
from mapseg.runs.checkpoints import saved_steps
from mapseg.runs.folder import Run, clear_leftovers, lock_run, store_run
from mapseg.runs.history import read_history
from mapseg.training.devices import Workers, check_batch_norm, find_cluster, join, make_sum
from mapseg.training.early_stopping import check_evaluated, scores_by_step, stored_early_end
from mapseg.training.guard import Guard
from mapseg.training.journal import Journal
from mapseg.training.lost_workers import is_lost_worker, lost_worker_message
from mapseg.training.prepare import check_steps
from mapseg.training.saving import Saver
from mapseg.training.state import TrainState, open_state, state_facts
from mapseg.training.step import Steps, make_step, make_steps, steps_per_call
from mapseg.training.summary import describe, describe_devices
from mapseg.training.validation import Validator

Progress = Callable[[str], None]

_CONTINUE = "a larger --early_stopping, or 0, continues"


def train(
    run: Run,
    manifest: Manifest,
    progress: Progress,
    *,
    predicting: PredictConfig | None = None,
    evaluating: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Trains a run up to `run.train.steps`, from its newest checkpoint if it has one.

    Args:
      run: from `begin_run`.
      manifest: the manifest of the records.
      progress: receives progress lines.
      predicting: how whole images are evaluated.
      evaluating: evaluate every `eval_steps` and at the end, and keep the best checkpoint.
      stopping: polled between steps; if true, the run is saved and the function returns.

    Raises:
      FileNotFoundError: a shard or the initial weights do not exist.
      ValueError: a checkpoint does not fit the run, a split does not exist, or `early_stopping`
        without evaluation.
      FloatingPointError: the loss or a gradient is not finite.
      ConnectionError: another worker of the run did not connect, or was lost.
    """
    check_evaluated(run.train, evaluating=evaluating)
    cluster = find_cluster(run.train)
    is_first = cluster is None or cluster.index == 0
    with lock_run(run.run_dir) if is_first else nullcontext(lambda: None) as check_folder:
        if ending := _ending(run, evaluating):
            if is_first:
                store_run(run)
            progress(f"nothing to do: {run.run_dir} {ending}")
            return
        predicting = predicting or PredictConfig()
        greeting = _greeting(run, manifest, predicting, evaluating)
        workers = join(run.train, greeting, progress, stopping)
        if workers is None:
            progress("stopped while other workers were missing; training had not started")
            return
        check_batch_norm(run.train, workers.replicas)
        try:
            _train(
                run,
                manifest,
                workers,
                predicting if evaluating else None,
                progress if is_first else lambda _: None,  # only worker 0 reports
                stopping,
                check_folder,
            )
        except (OSError, tf.errors.OpError) as error:
            check_folder()  # a write may have failed because the run folder was removed
            if isinstance(error, OSError):
                raise
            if workers.count == 1 or not is_lost_worker(error):
                raise
            raise ConnectionError(lost_worker_message(run, workers.index, error)) from error


@dataclass(frozen=True)
class _Parts:
    """The parts of a run on its devices."""

    state: TrainState
    take_steps: Steps
    batches: Iterator[Any]
    journal: Journal
    guard: Guard
    saver: Saver
    validator: Validator | None


def _train(
    run: Run,
    manifest: Manifest,
    workers: Workers,
    predicting: PredictConfig | None,
    progress: Progress,
    stopping: Callable[[], bool],
    check_folder: Callable[[], None],
) -> None:
    """Trains on connected devices; if `predicting` is None, nothing is evaluated."""
    add_up = make_sum(workers)

    def agree(*wishes: bool) -> list[bool]:
        """Returns whether any worker has each wish, so that all act at the same step."""
        return [bool(count) for count in add_up(np.array(wishes, np.float64))]

    parts = _assemble(run, manifest, workers, predicting, progress, add_up, check_folder)

    def ends() -> bool:
        return stopping() or (parts.validator is not None and parts.validator.early_end is not None)

    step = _take_all_steps(run.train, parts, progress, lambda late: agree(ends(), late))
    parts.saver.save(step)
    parts.journal.plot()
    agree(False)  # a barrier: all wait until everything is written
    early_end = parts.validator and parts.validator.early_end
    if step < run.train.steps and early_end:
        progress(f"finished early at step {step}: {early_end}; {_CONTINUE}: {run.run_dir}")
    elif step < run.train.steps:
        progress(f"stopped and saved at step {step}; the same command resumes")
    else:
        progress(f"finished at step {step}: {run.run_dir}")


def _assemble(
    run: Run,
    manifest: Manifest,
    workers: Workers,
    predicting: PredictConfig | None,
    progress: Progress,
    add_up: Callable[[np.ndarray], np.ndarray],
    check_folder: Callable[[], None],
) -> _Parts:
    config, is_first = run.train, workers.is_first
    split = manifest.split(config.train_split)
    if predicting is not None:
        manifest.split(config.eval_split)
    stream = CropStream(manifest, config, run.label_set)
    resumed = bool(saved_steps(run.checkpoints_dir))
    state = open_state(run, workers.strategy, progress, resumed=resumed)
    for line in describe(run, state, split.samples, workers):
        progress(line)
    if is_first:  # only now: a run whose initial weights are unavailable leaves no folder behind
        if removed := clear_leftovers(run.run_dir, is_new=not resumed):
            progress(
                f"starting from scratch: {run.run_dir} has no checkpoint; removed files of an "
                f"earlier start: {', '.join(removed)}"
            )
        store_run(replace(run, machine=describe_devices(workers)))
    step = int(state.step.numpy())
    journal = Journal(run, progress, is_first=is_first, step=step)
    skipped = int(max((row.get("skipped_steps", 0) for row in journal.rows), default=0))
    guard = Guard(run, state, stream, progress, is_first=is_first, skipped=skipped)
    validator = None
    if predicting is not None:
        scores = scores_by_step(journal.rows)
        validator = Validator(run, manifest, state, workers, predicting, progress, add_up, scores)
    class_pixels = run.label_set.count(split.pixels, run.source_classes)
    return _Parts(
        state,
        make_steps(make_step(state, config, workers.strategy, class_pixels)),
        iter(share_batches(stream, workers.strategy, workers.index, workers.count, step)),
        journal,
        guard,
        Saver(run, state, workers, check_folder, before_save=guard.collect),
        validator,
    )


def _take_all_steps(
    config: TrainConfig,
    parts: _Parts,
    progress: Progress,
    agree: Callable[[bool], list[bool]],
) -> int:
    """Takes steps until the last, or until a worker must stop; returns the step reached."""
    state, journal, guard, saver = parts.state, parts.journal, parts.guard, parts.saver
    step = first_step = int(state.step.numpy())
    if step:
        progress(f"resuming from step {step}")
    if parts.validator:
        parts.validator.run_if_due(step, saver, journal)
    while step < config.steps:
        stop, save = agree(saver.is_late())
        if save:
            saver.save(step)
        if stop:
            break
        if step == first_step:
            with reporting("compiling the training step", progress):
                results = parts.take_steps(parts.batches, tf.constant(1))
                results[0].numpy()  # waits for the device
            step += 1
            journal.start_clock(step)
        else:
            count = min(steps_per_call(), _steps_until_due(config, step))
            results = parts.take_steps(parts.batches, tf.constant(count))
            step += count
        guard.add(results)
        if step % config.log_steps == 0 or step == config.steps:
            guard.collect(step)
            facts = {**guard.take_means(), **state_facts(state), "skipped_steps": guard.skipped}
            journal.log(step, facts)
        if config.checkpoint_steps and step % config.checkpoint_steps == 0:
            saver.save(step)
        if parts.validator:
            parts.validator.run_if_due(step, saver, journal)
    return step


def _steps_until_due(config: TrainConfig, step: int) -> int:
    """Returns the number of steps until the next log, checkpoint or evaluation."""
    periods = (config.log_steps, config.checkpoint_steps, config.eval_steps)
    waits = [period - step % period for period in periods if period]
    return min(*waits, config.steps - step)


def _ending(run: Run, evaluating: bool) -> str:
    """Returns how a run has ended, as a clause; empty if there is something left to do."""
    check_steps(run)  # again: another process may have trained it before this one got the lock
    steps, saved = run.train.steps, saved_steps(run.checkpoints_dir)
    if steps in saved:
        # Someone may have removed the history; the last evaluation is then repeated.
        rows = read_history(run.history_path) if run.history_path.is_file() else []
        evaluated = not evaluating or steps in scores_by_step(rows)
        return f"is finished at step {steps}" if evaluated else ""
    if early_end := stored_early_end(run):
        return f"ended early at step {saved[-1]}: {early_end}; {_CONTINUE}"
    return ""


def _greeting(
    run: Run, manifest: Manifest, predicting: PredictConfig, evaluating: bool
) -> dict[str, str]:
    """Returns the values that must be equal on all workers of a run, by name."""
    saved = saved_steps(run.checkpoints_dir)
    versions = (mapseg.__version__, tf.__version__, keras.__version__)
    options = {**to_json(predicting), **to_json(run.model), **to_json(run.train)}
    # By content: machines may have the file at different paths, or different files at one path.
    labels = json.dumps({**run.label_set.to_json(), "name": ""}).encode()
    digest = hashlib.sha256(labels).hexdigest()[:12]
    options["label_set"] = f"{len(run.label_set.classes)} classes, digest {digest}"
    return {
        "GPUs": str(len(gpus())),
        "evaluating": str(evaluating),
        "versions of mapseg, TensorFlow and Keras": ", ".join(versions),
        "oneDNN": str(onednn.is_on()),
        "records": run.records_digest,
        "records to evaluate on": manifest.split(run.train.eval_split).digest if evaluating else "",
        "initial weights": run.start_sha256,
        "newest checkpoint": str(saved[-1] if saved else None),
        **{name: str(value) for name, value in options.items()},
    }

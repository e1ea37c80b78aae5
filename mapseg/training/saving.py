"""Saves a training run."""

import tempfile
import time
from collections.abc import Callable

from mapseg.model.weights import weight_arrays
from mapseg.runs.checkpoints import saved_steps, write_checkpoint
from mapseg.runs.folder import Run
from mapseg.training.devices import Workers
from mapseg.training.state import TrainState
from mapseg.training.step import make_averaging


class Saver:
    """Writes the checkpoints of a run; all processes must call it at the same steps."""

    def __init__(
        self,
        run: Run,
        state: TrainState,
        workers: Workers,
        check_folder: Callable[[], None],
        before_save: Callable[[int], None],
    ):
        """Binds to a run.

        Args:
          run: its options and its folder.
          state: the state to save.
          workers: the processes and devices.
          check_folder: raises if the run folder no longer belongs to this process.
          before_save: called with the step before it is saved; if it raises, nothing is saved.
        """
        self._run, self._state, self._workers = run, state, workers
        self._check_folder, self._before_save = check_folder, before_save
        equal_norms = run.train.sync_batch_norm or run.train.batch_norm == "frozen"
        self._average = None
        if workers.replicas > 1 and not equal_norms:
            self._average = make_averaging(state, workers.strategy)
        self._saved_step = max(saved_steps(run.checkpoints_dir), default=-1)
        self._saved_at = time.monotonic()

    def save(self, step: int) -> None:
        """Writes a checkpoint of the current step, unless it is already saved."""
        if self._saved_step != step:
            self._before_save(step)
            if self._average is not None:
                self._average()
            weights = weight_arrays(self._state.model)
            if self._workers.is_first:
                self._check_folder()
                write_checkpoint(
                    self._run.checkpoints_dir,
                    step,
                    self._state.checkpoint,
                    weights,
                    self._run.train.keep_checkpoints,
                )
            else:  # variables distributed over workers are written by all workers or by none
                with tempfile.TemporaryDirectory() as folder:
                    self._state.checkpoint.write(f"{folder}/state")
            self._saved_step = step
        self._saved_at = time.monotonic()

    def is_late(self) -> bool:
        """Returns whether `checkpoint_secs` requires a save now; only the first process decides."""
        elapsed = time.monotonic() - self._saved_at
        return self._workers.is_first and 0 < self._run.train.checkpoint_secs <= elapsed

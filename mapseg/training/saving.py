"""When and how a training run is saved."""

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
    """Writes the checkpoints of a run; all processes of a run call it at the same steps."""

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
          state: what is saved.
          workers: the processes and devices.
          check_folder: raises where the run folder is not this process's any more.
          before_save: called with the step that is about to be saved; what it raises prevents it.
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
        """Writes a checkpoint of the present step, unless there is one."""
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
            else:  # what workers have between them is written by all or by none
                with tempfile.TemporaryDirectory() as folder:
                    self._state.checkpoint.write(f"{folder}/state")
            self._saved_step = step
        self._saved_at = time.monotonic()

    def is_late(self) -> bool:
        """Whether `checkpoint_secs` have gone by since the last save; the first process decides."""
        waited = time.monotonic() - self._saved_at
        return self._workers.is_first and 0 < self._run.train.checkpoint_secs <= waited

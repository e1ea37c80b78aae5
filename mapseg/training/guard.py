"""Handles steps whose loss or gradient is not finite."""

import math
from collections.abc import Callable

import numpy as np

from mapseg.data.batches import CropStream
from mapseg.files import whole_file
from mapseg.runs.folder import Run
from mapseg.training.state import TrainState
from mapseg.training.step import Results

_MOST_SKIPPED_IN_A_ROW = 20


class Guard:
    """Collects the results of the steps, and skips non-finite steps or stops the run.

    Attributes:
      skipped: number of non-finite steps of the run.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        stream: CropStream,
        progress: Callable[[str], None],
        *,
        is_first: bool,
        skipped: int,
    ):
        """Binds to a run.

        Args:
          run: its options and its folder.
          state: has the loss scale, which may still be adapting to an overflow.
          stream: reproduces the batch of a step.
          progress: receives progress lines.
          is_first: whether this process writes files.
          skipped: number of non-finite steps before the run was resumed.
        """
        self._run, self._state, self._stream, self._progress = run, state, stream, progress
        self._is_first, self.skipped = is_first, skipped
        self._skipped_in_a_row = 0
        # Of the finite steps since the last report.
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._pending: list[Results] = []  # not yet read from the device

    def add(self, results: Results) -> None:
        """Queues the results of some steps, [count] each, without waiting for the device."""
        self._pending.append(results)

    def collect(self, step: int) -> None:
        """Reads the queued results; this is where the host waits for the device.

        Args:
          step: the run's current step.

        Raises:
          FloatingPointError: a step was not finite and `on_nan` is stop, or too many steps in a
            row were not finite.
        """
        if not self._pending:
            return
        losses, finite, norms = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending = []
        self._losses += losses[finite].tolist()
        self._norms += norms[finite].tolist()
        for is_finite in finite:
            self._skipped_in_a_row = 0 if is_finite else self._skipped_in_a_row + 1
        self.skipped += int(np.sum(~finite))
        # If the loss scale is above 1, this was an overflow, and the scale has been halved.
        if not finite.all() and float(self._state.loss_scale.scale.numpy()) <= 1:
            self._report(step - len(finite) + int(np.argmin(finite)))

    def take_means(self) -> dict[str, float]:
        """Returns the mean results of the finite steps collected since the last call, by name.

        They are nan if no step was finite.
        """
        lists = {"loss": self._losses, "gradient_norm": self._norms}
        self._losses, self._norms = [], []
        return {name: float(np.mean(x)) if x else math.nan for name, x in lists.items()}

    def _report(self, step: int) -> None:
        """Writes the batch of a non-finite step, then reports the step or stops the run."""
        config = self._run.train
        path = self._run.run_dir / "not_finite" / f"step-{step:08d}.npz"
        keys = self._stream.keys(step)
        if self._is_first:
            image, label = next(self._stream.batches(step).as_numpy_iterator())
            with whole_file(path) as partial:
                np.savez(partial, image=image, label=label, keys=keys)
        problem = (
            f"the loss or a gradient of step {step} is not finite; the step changed no variable. "
            f"Its samples: {', '.join(keys)}; its batch: {path}"
        )
        if config.on_nan == "skip" and self._skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
            self._progress(f"skipped: {problem}")
            return
        count = self._skipped_in_a_row
        row = f" ({count} steps in a row were not finite)" if count > 1 else ""
        raise FloatingPointError(
            f"{problem}{row}. Remedy: a lower --learning_rate, some --warmup_steps, or "
            "--precision=float32; --on_nan=skip skips isolated non-finite steps"
        )

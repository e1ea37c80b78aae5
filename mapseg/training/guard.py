"""The guard against steps whose loss or gradient is not finite."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mapseg.data.batches import CropStream
from mapseg.files import whole_file
from mapseg.runs.folder import Run
from mapseg.training.state import TrainState

_MOST_SKIPPED_IN_A_ROW = 20


class Guard:
    """Takes in the losses of steps, and decides what becomes of a run whose step is not finite.

    Attributes:
      skipped: how many steps of the run were not finite.
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
        """Begins without any steps.

        Args:
          run: its options and its folder.
          state: whose loss scale may mend an overflow.
          stream: gives the batch of a step again.
          progress: takes lines for people.
          is_first: whether this process writes files.
          skipped: how many steps were not finite before.
        """
        self._run, self._state, self._stream, self._progress = run, state, stream, progress
        self._is_first, self.skipped = is_first, skipped
        self._skipped_in_a_row = 0
        self._losses: list[float] = []  # of the finite steps since the last report
        self._pending: list[tuple[tf.Tensor, tf.Tensor]] = []  # not yet asked of the device

    def add(self, losses: tf.Tensor, finite: tf.Tensor) -> None:
        """Notes the outcome of steps, [count] each, without waiting for the device."""
        self._pending.append((losses, finite))

    def collect(self, step: int) -> None:
        """Takes in the steps that were made; this is where the host waits for the device.

        Args:
          step: the run's present one.

        Raises:
          FloatingPointError: a step was not finite, and `on_nan` says stop, or too many in a row
            were not.
        """
        if not self._pending:
            return
        losses, finite = (np.concatenate([p[i] for p in self._pending]) for i in range(2))
        self._pending = []
        self._losses += losses[finite].tolist()
        for one in finite:
            self._skipped_in_a_row = 0 if one else self._skipped_in_a_row + 1
        self.skipped += int(np.sum(~finite))
        # Else the loss scale will mend it.
        if not finite.all() and float(self._state.loss_scale.scale.numpy()) <= 1:
            self._report(step - len(finite) + int(np.argmin(finite)))

    def take_losses(self) -> list[float]:
        """Returns the losses of the finite steps that were collected since the last call."""
        losses, self._losses = self._losses, []
        return losses

    def _report(self, step: int) -> None:
        """Writes the batch of a step that was not finite; reports it or stops."""
        config = self._run.train
        path = self._run.run_dir / "not_finite" / f"step-{step:08d}.npz"
        keys = self._stream.keys(step)
        if self._is_first:
            image, label = next(self._stream.batches(step).as_numpy_iterator())
            with whole_file(path) as partial:
                np.savez(partial, image=image, label=label, keys=keys)
        found = (
            f"the loss or a gradient of step {step} is not finite; no variable was changed by it. "
            f"Its samples: {', '.join(keys)}; its batch: {path}"
        )
        if config.on_nan == "skip" and self._skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
            self._progress(f"skipped: {found}")
            return
        several = self._skipped_in_a_row > 1
        row = f" (nor are {self._skipped_in_a_row} in a row)" if several else ""
        raise FloatingPointError(
            f"{found}{row}. Remedy: a lower --learning_rate, some --warmup_steps, or "
            "--precision=float32; --on_nan=skip goes on without single such steps"
        )

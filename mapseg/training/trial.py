"""Trial of the training step before a run: whether it fits in memory, and its time."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mapseg import machine
from mapseg.config import TrainConfig
from mapseg.progress import reporting
from mapseg.training.devices import Workers
from mapseg.training.state import TrainState
from mapseg.training.step import make_step, without_rewriting

_STEPS_TIMED, _TIMED_SECS = 5, 60.0
_MOST_OVERFLOWS = 20  # while the loss scale of float16 adapts


class FirstStep(NamedTuple):
    """The result of the first step.

    Attributes:
      loss: its loss.
      finite: whether loss and gradients are finite.
      secs: its duration, compilation included.
    """

    loss: float
    finite: bool
    secs: float


class Trial:
    """A training step repeated on one batch.

    Attributes:
      crops: how many crops of the batch fit in the devices' memory.
    """

    def __init__(self, state: TrainState, config: TrainConfig, workers: Workers):
        """Binds to a network on its devices; the steps change its weights."""
        self._state, self._config, self._workers = state, config, workers
        self.crops = config.batch_size
        self._step: Callable[[], Any] | None = None
        self._idle_bytes = self._free_bytes = 0  # of the device and the host, between steps

    @property
    def weight_bytes(self) -> int:
        """The size of the network's weights in float32."""
        return sum(4 * math.prod(v.shape) for v in self._state.model.variables)

    def take_first_step(
        self,
        batch: tuple[np.ndarray, np.ndarray],
        class_pixels: Sequence[int] | np.ndarray,
        progress: Callable[[str], None],
    ) -> FirstStep:
        """Takes a step; halves the number of crops until it fits in memory.

        Args:
          batch: ([B, h, w, 3] uint8, [B, h, w] uint8).
          class_pixels: see `make_loss`.
          progress: receives progress lines.

        Raises:
          tf.errors.ResourceExhaustedError: the smallest batch does not fit.
        """
        compiled = without_rewriting(
            make_step(self._state, self._config, self._workers.strategy, class_pixels)
        )
        while True:
            started = time.perf_counter()
            try:
                crops = [self.on_devices(pixels[: self.crops]) for pixels in batch]
                with reporting(f"compiling the step for {self.crops} crops", progress):
                    loss, finite, _ = map(float, compiled(*crops))
                break
            except tf.errors.ResourceExhaustedError:
                least = self._workers.replicas * self._config.accumulate_steps
                if self.crops < 2 * least:
                    raise
                self.crops = self.crops // 2 // least * least
        secs = time.perf_counter() - started
        for _ in range(_MOST_OVERFLOWS):
            if finite or self._state.loss_scale.scale.numpy() <= 1:
                break
            loss, finite, _ = map(float, compiled(*crops))
        self._step = lambda: compiled(*crops)
        return FirstStep(loss, bool(finite), secs)

    def on_devices(self, pixels: np.ndarray) -> Any:
        """Distributes the crops over the devices."""
        each = len(pixels) // self._workers.replicas
        return self._workers.strategy.experimental_distribute_values_from_function(
            lambda replica: tf.constant(pixels[replica.replica_id_in_sync_group * each :][:each])
        )

    def time_steps(self) -> tuple[float, int]:
        """Times steps after the first; returns the seconds per step and the number of steps."""
        if self._step is None:
            raise ValueError("take_first_step must be called before time_steps")
        machine.reset_peak()
        self._idle_bytes = machine.allocated_bytes("current")
        self._free_bytes = machine.available_bytes()
        started, count = time.perf_counter(), 0
        while count < _STEPS_TIMED and time.perf_counter() - started < _TIMED_SECS:
            loss, *_ = self._step()
            count += 1
        float(loss)  # waits for the device
        return (time.perf_counter() - started) / count, count

    def largest_batch(self) -> tuple[int, float]:
        """Estimates the largest batch from the memory that the timed steps used.

        Returns:
          The number of crops, and the bytes per crop; (0, 0) if unknown.
        """
        # These do not grow with the batch: gradients, and the weights and slots in the idle bytes.
        gradients, replicas = self.weight_bytes, self._workers.replicas
        activations = machine.allocated_bytes("peak") - self._idle_bytes - gradients
        crop_bytes = activations * replicas / self.crops
        if machine.gpus():
            spare = machine.gpu_limit_bytes() - self._idle_bytes - gradients
        else:
            spare = self._free_bytes - self._config.input_memory_mb * 2**20 - gradients
        if crop_bytes <= 0 or spare <= 0:
            return 0, 0.0
        return max(int(spare * replicas / crop_bytes), self.crops), crop_bytes

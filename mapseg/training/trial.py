"""A training step that is tried before a run: whether it fits, its time and its memory."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mapseg import machine
from mapseg.config import TrainConfig
from mapseg.progress import telling
from mapseg.training.devices import Workers
from mapseg.training.state import TrainState
from mapseg.training.step import make_step

_STEPS_TIMED, _TIMED_SECS = 5, 60.0
_MOST_OVERFLOWS = 20  # until the loss scale of float16 has found its height


class FirstStep(NamedTuple):
    """The outcome of the first step.

    Attributes:
      loss: its loss.
      finite: whether loss and gradients are.
      secs: how long it took, compiling included.
    """

    loss: float
    finite: bool
    secs: float


class Trial:
    """A step that is taken again and again with one batch.

    Attributes:
      crops: of the batch, those that fit into the memory of the devices.
    """

    def __init__(self, state: TrainState, config: TrainConfig, workers: Workers):
        """Binds to a network on its devices, which the steps change."""
        self._state, self._config, self._workers = state, config, workers
        self.crops = config.batch_size
        self._step: Callable[[], Any] | None = None
        self._idle_bytes = self._free_bytes = 0  # of the device and the host, between steps

    @property
    def weight_bytes(self) -> int:
        """What the network's weights take in float32."""
        return sum(4 * math.prod(v.shape) for v in self._state.model.variables)

    def take_first_step(
        self,
        batch: tuple[np.ndarray, np.ndarray],
        class_pixels: Sequence[int] | np.ndarray,
        progress: Callable[[str], None],
    ) -> FirstStep:
        """Takes a step, with half the crops again and again where memory is too little.

        Args:
          batch: ([B, h, w, 3] uint8, [B, h, w] uint8).
          class_pixels: see `make_loss`.
          progress: takes lines for people.

        Raises:
          tf.errors.ResourceExhaustedError: the least batch does not fit.
        """
        compiled = make_step(self._state, self._config, self._workers.strategy, class_pixels)
        while True:
            started = time.perf_counter()
            try:
                crops = [self.on_devices(pixels[: self.crops]) for pixels in batch]
                with telling(f"compiling the step for {self.crops} crops", progress):
                    loss, finite = map(float, compiled(*crops))
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
            loss, finite = map(float, compiled(*crops))
        self._step = lambda: compiled(*crops)
        return FirstStep(loss, bool(finite), secs)

    def on_devices(self, pixels: np.ndarray) -> Any:
        """Gives each device its share of the crops."""
        each = len(pixels) // self._workers.replicas
        return self._workers.strategy.experimental_distribute_values_from_function(
            lambda replica: tf.constant(pixels[replica.replica_id_in_sync_group * each :][:each])
        )

    def time_steps(self) -> tuple[float, int]:
        """Takes steps, after the first; returns the seconds of one, and how many were timed."""
        if self._step is None:
            raise ValueError("take_first_step must be called before time_steps")
        machine.reset_peak()
        self._idle_bytes = machine.allocated_bytes("current")
        self._free_bytes = machine.available_bytes()
        started, count = time.perf_counter(), 0
        while count < _STEPS_TIMED and time.perf_counter() - started < _TIMED_SECS:
            loss, _ = self._step()
            count += 1
        float(loss)  # waits for the device
        return (time.perf_counter() - started) / count, count

    def largest_batch(self) -> tuple[int, float]:
        """Estimates how many crops a batch may have, from the memory that the steps took.

        Returns:
          The crops, and the bytes that each takes; (0, 0) where that is not known.
        """
        # Fixed are weights and slots, which lay there before, and gradients.
        gradients, replicas = self.weight_bytes, self._workers.replicas
        taken = machine.allocated_bytes("peak") - self._idle_bytes - gradients
        crop_bytes = taken * replicas / self.crops
        if machine.gpus():
            spare = machine.gpu_limit_bytes() - self._idle_bytes - gradients
        else:
            spare = self._free_bytes - self._config.input_memory_mb * 2**20 - gradients
        if crop_bytes <= 0 or spare <= 0:
            return 0, 0.0
        return max(int(spare * replicas / crop_bytes), self.crops), crop_bytes

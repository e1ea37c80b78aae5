"""Where the steps run: one device, the GPUs of a machine, or several machines."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.progress import duration
from mapseg.training import rendezvous

_CONNECT_SECS = 60.0


@dataclass(frozen=True)
class Workers:
    """The processes that train together and the devices of each.

    Attributes:
      strategy: of TensorFlow; its replicas are the devices of all.
      index: of this process; only 0 writes files.
      count: of the processes.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder, and speaks for all."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """The devices of all processes."""
        return int(self.strategy.num_replicas_in_sync)


def find_cluster(config: TrainConfig) -> rendezvous.Cluster | None:
    """Returns the processes that are to train together; None where it is this one alone.

    Raises:
      ValueError: `multi_worker` without a sound TF_CONFIG of several workers.
    """
    if config.strategy not in ("auto", "multi_worker"):
        return None
    found = rendezvous.read_cluster()
    if found is not None and len(found.workers) > 1:
        return found
    if config.strategy == "multi_worker":
        raise ValueError(
            "strategy=multi_worker must find several workers in TF_CONFIG; got "
            f"{'one' if found else 'no TF_CONFIG'}. Remedy: see docs/several_machines.md"
        )
    return None


def join(
    config: TrainConfig,
    greeting: Mapping[str, str],
    progress: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Workers | None:
    """Joins the other processes, if there are any, and chooses the devices.

    Args:
      config: `strategy`, `batch_size`, `accumulate_steps`, `peer_timeout_secs`.
      greeting: what all processes must have in common: name -> value.
      progress: takes lines while others are missing.
      stopping: asked while others are missing.

    Returns:
      The workers; None if `stopping` said so.

    Raises:
      ConnectionError: the others did not come.
      ValueError: a batch that cannot be shared evenly, processes that differ, or a process that
        has used TensorFlow already.
    """
    found = find_cluster(config)
    if found is None:
        workers = Workers(_local_strategy(config))
    else:
        arguments = (greeting, config.peer_timeout_secs, progress, stopping)
        if not rendezvous.meet(found, *arguments):
            return None
        workers = Workers(_connect(progress), found.index, len(found.workers))
    if config.batch_size % (workers.replicas * config.accumulate_steps):
        raise ValueError(
            f"batch_size must be a multiple of devices times accumulate_steps, {workers.replicas} "
            f"x {config.accumulate_steps}; got {config.batch_size}. Remedy: another --batch_size, "
            "or --strategy=one_device"
        )
    return workers


def check_batch_norm(config: TrainConfig, replicas: int) -> None:
    """Refuses batch norms that are trained on one crop at a time.

    Image pooling leaves one value of a crop and channel. Less its own mean it is zero and has no
    variance, so in training nothing comes of it, and in prediction hundreds of times too much.

    Args:
      config: `batch_size`, `accumulate_steps`, and what batch norms see.
      replicas: the devices of all processes.

    Raises:
      ValueError: they would see one crop.
    """
    devices = 1 if config.sync_batch_norm else replicas
    crops = config.batch_size // (devices * config.accumulate_steps)
    if config.batch_norm == "train" and crops == 1:
        raise ValueError(
            "batch_norm=train must see two crops or more at once, eight or more to be any good; "
            f"got one: batch_size={config.batch_size} over {devices} devices in "
            f"accumulate_steps={config.accumulate_steps} parts. Remedy: --batch_norm=frozen with "
            "pretrained weights, a larger --batch_size, fewer parts, or --sync_batch_norm"
        )


def _connect(progress: Callable[[str], None]) -> tf.distribute.Strategy:
    """Lets TensorFlow connect the workers, which takes a moment, or for ever if one has gone."""
    limit = duration(_CONNECT_SECS)
    progress(f"all workers are there and are being connected; a failure ends this within {limit}")
    try:
        with _bounded(_CONNECT_SECS):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"TensorFlow must be able to connect the workers of TF_CONFIG; {error.message}. "
            "Remedy: check that every port is free where its worker runs"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            "strategy=multi_worker must be the first that a process does with TensorFlow; "
            f"{error}. Remedy: train in a process of its own, best with train_main.py"
        ) from error


@contextmanager
def _bounded(secs: float) -> Iterator[None]:
    """Ends the process after some seconds; Ctrl-C ends it at once, as if Python had no handler.

    TensorFlow holds the interpreter while it connects: no thread or handler of Python would run.
    It takes SIGTERM for itself, so the handlers are set again afterwards.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    former = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(secs, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in former.items():
                signal.signal(number, handler)


def _local_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU")
    if not devices and config.strategy == "mirrored":
        devices = tf.config.list_logical_devices("CPU")
    if config.strategy == "one_device" or len(devices) < 2:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([d.name for d in devices])


def make_sum(workers: Workers) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function that adds up arrays of one shape, one of each process.

    All processes must call it, at the same place among their steps. It takes float64 and integers
    below 2^53; it returns float64 where there are several processes.
    """
    if workers.count == 1:
        return lambda own: own
    strategy, local = workers.strategy, workers.replicas // workers.count

    @tf.function(reduce_retracing=True)
    def run(values: tf.Tensor) -> tf.Tensor:
        def add() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group % local == 0
            own = tf.where(is_first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

        return strategy.experimental_local_results(strategy.run(add))[0]

    return lambda own: run(tf.constant(own, tf.float64)).numpy()

"""Chooses the devices of a run: one device, the GPUs of a machine, or several machines."""

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
    """The processes that train together, and their devices.

    Attributes:
      strategy: TensorFlow's strategy; its replicas are the devices of all processes.
      index: index of this process; only 0 writes files.
      count: number of processes.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and reports progress."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """The number of devices of all processes."""
        return int(self.strategy.num_replicas_in_sync)


def find_cluster(config: TrainConfig) -> rendezvous.Cluster | None:
    """Returns the processes that train together; None if this is the only one.

    Raises:
      ValueError: `multi_worker` without a valid TF_CONFIG of several workers.
    """
    if config.strategy not in ("auto", "multi_worker"):
        return None
    cluster = rendezvous.read_cluster()
    if cluster is not None and len(cluster.workers) > 1:
        return cluster
    if config.strategy == "multi_worker":
        raise ValueError(
            "strategy=multi_worker must find several workers in TF_CONFIG; got "
            f"{'one' if cluster else 'no TF_CONFIG'}. Remedy: see docs/several_machines.md"
        )
    return None


def join(
    config: TrainConfig,
    greeting: Mapping[str, str],
    progress: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Workers | None:
    """Connects to the other processes, if there are any, and chooses the devices.

    Args:
      config: `strategy`, `batch_size`, `accumulate_steps`, `peer_timeout_secs`.
      greeting: values that must be equal in all processes, by name.
      progress: receives lines while workers are missing.
      stopping: polled while workers are missing; true ends the wait.

    Returns:
      The workers; None if `stopping` ended the wait.

    Raises:
      ConnectionError: another worker did not connect.
      ValueError: the batch cannot be divided evenly, the processes differ, or this process has
        already used TensorFlow.
    """
    cluster = find_cluster(config)
    if cluster is None:
        workers = Workers(_local_strategy(config))
    else:
        arguments = (greeting, config.peer_timeout_secs, progress, stopping)
        if not rendezvous.meet(cluster, *arguments):
            return None
        workers = Workers(_connect(progress), cluster.index, len(cluster.workers))
    if config.batch_size % (workers.replicas * config.accumulate_steps):
        raise ValueError(
            f"batch_size must be a multiple of devices times accumulate_steps, {workers.replicas} "
            f"x {config.accumulate_steps}; got {config.batch_size}. Remedy: another --batch_size, "
            "or --strategy=one_device"
        )
    return workers


def check_batch_norm(config: TrainConfig, replicas: int) -> None:
    """Refuses to train batch norm on one crop at a time.

    Image pooling leaves one value per crop and channel. Normalized over a single crop, this is
    always zero, with zero variance: the branch contributes nothing in training, and values
    hundreds of times too large in prediction.

    Args:
      config: `batch_size`, `accumulate_steps`, `batch_norm`, `sync_batch_norm`.
      replicas: number of devices of all processes.

    Raises:
      ValueError: batch norm would be trained on one crop.
    """
    devices = 1 if config.sync_batch_norm else replicas
    crops = config.batch_size // (devices * config.accumulate_steps)
    if config.batch_norm == "train" and crops == 1:
        raise ValueError(
            "batch_norm=train must see two crops or more at once, preferably eight or more; "
            f"got one: batch_size={config.batch_size} over {devices} devices in "
            f"accumulate_steps={config.accumulate_steps} parts. Remedy: --batch_norm=frozen with "
            "pretrained weights, a larger --batch_size, fewer parts, or --sync_batch_norm"
        )


def _connect(progress: Callable[[str], None]) -> tf.distribute.Strategy:
    """Lets TensorFlow connect the workers, with a timeout: it would wait forever for a lost one."""
    limit = duration(_CONNECT_SECS)
    progress(f"all workers are ready; connecting them, for at most {limit}")
    try:
        with _bounded(_CONNECT_SECS):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"TensorFlow must be able to connect the workers of TF_CONFIG; {error.message}. "
            "Remedy: check that each port is free on its worker's machine"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            "strategy=multi_worker must be set up before any other use of TensorFlow; "
            f"{error}. Remedy: train in a separate process, preferably with train_main.py"
        ) from error


@contextmanager
def _bounded(secs: float) -> Iterator[None]:
    """Exits the process after a timeout; Ctrl-C ends it at once, through the default handler.

    TensorFlow holds the GIL while it connects, so no Python thread or signal handler would run.
    It installs its own SIGTERM handler, so the former handlers are restored afterwards.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    former = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    with Path(os.devnull).open("w") as devnull:
        faulthandler.dump_traceback_later(secs, exit=True, file=devnull)
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
    """Makes a function that sums an array over the processes.

    All processes must call it at the same step, with arrays of equal shape. It accepts float64, and
    integers below 2^53; with several processes it returns float64.
    """
    if workers.count == 1:
        return lambda values: values
    strategy, local = workers.strategy, workers.replicas // workers.count

    @tf.function(reduce_retracing=True)
    def run(values: tf.Tensor) -> tf.Tensor:
        def add() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group % local == 0
            counted_once = tf.where(is_first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, counted_once)

        return strategy.experimental_local_results(strategy.run(add))[0]

    return lambda values: run(tf.constant(values, tf.float64)).numpy()

"""Recognizes and reports that another worker of a run is unreachable."""

import re

import tensorflow as tf

from mapseg.runs.checkpoints import saved_steps
from mapseg.runs.folder import Run

# TensorFlow's errors when another process is unreachable. The device names in a message prove
# nothing: every error contains those of several workers.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_LOST_TEXT = re.compile(r"NCCL|ops is aborted|heartbeat|[Ss]ocket closed|[Cc]onnection (re|closed)")
_MAYBE_LOST = (tf.errors.InternalError, tf.errors.UnknownError, tf.errors.FailedPreconditionError)


def is_lost_worker(error: tf.errors.OpError) -> bool:
    """Returns whether an error means that another worker is unreachable, not a failed step here."""
    if isinstance(error, _MAYBE_LOST):
        return bool(_LOST_TEXT.search(_cause(error)))
    return isinstance(error, _LOST)


def _cause(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message without the traceback of the operation."""
    heads = ("Graph execution error", "Detected at node", "File ", "[[", "The error could be from")
    lines = (line.strip() for line in str(error.message).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(heads))


def lost_worker_message(run: Run, index: int, error: tf.errors.OpError) -> str:
    """Returns the message that names the lost worker, the remedy and TensorFlow's error."""
    cause = _cause(error)
    lost_workers = [task for task in re.findall(r"task:(\d+)", cause) if int(task) != index]
    subject = f"worker {lost_workers[0]}" if lost_workers else "a worker"
    saved = saved_steps(run.checkpoints_dir)
    outcome = f"resume from step {saved[-1]}" if saved else "start from scratch: nothing was saved"
    return (
        f"{subject} has ended or is unreachable; training cannot continue without it. Remedy: "
        f"read its output, and start all workers again with the same command: they {outcome}. "
        f"TensorFlow's {type(error).__name__}: {cause[:600]}"
    )

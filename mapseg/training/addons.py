"""The optimizers of TensorFlow Addons: the only module that imports tensorflow_addons."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def build_addon_optimizer(
    name: str, schedule: keras.optimizers.schedules.LearningRateSchedule
) -> Any:
    """Builds `lookahead_radam` or `novograd`.

    Lookahead (Zhang et al. 2019) wraps rectified Adam (Liu et al. 2020) with the papers' defaults;
    NovoGrad is Ginsburg et al. 2019.

    Raises:
      ValueError: TensorFlow Addons is not installed.
    """
    try:
        import tensorflow_addons as tfa
    except ImportError as error:
        raise ValueError(
            f"optimizer={name} must be used with TensorFlow Addons, which needs Python 3.11 and "
            f"TensorFlow 2.15; the import failed ({error}). "
            "Remedy: pip install 'mapseg[addons]' in a separate Python 3.11 environment, or "
            "--optimizer=adamw"
        ) from error
    if name == "lookahead_radam":
        return tfa.optimizers.Lookahead(tfa.optimizers.RectifiedAdam(schedule))
    return tfa.optimizers.NovoGrad(schedule)


def create_slots(optimizer: Any, variables: Sequence[tf.Variable]) -> None:
    """Creates all variables of an addon optimizer, so that a checkpoint can be restored into them.

    Otherwise they would be created at the first step, after the restore. Lookahead and the
    optimizer that it wraps share one step counter.
    """
    wrapped = getattr(optimizer, "_optimizer", None)
    if wrapped is not None:
        wrapped.iterations = optimizer.iterations
        wrapped._create_all_weights(variables)
    _ = optimizer.iterations
    optimizer._create_all_weights(variables)

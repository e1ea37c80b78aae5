"""Starts a network from another's weights, and says what fitted."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mapseg.checkpoints import find_checkpoint, open_run, read_weights
from mapseg.encoders import deeplab_names
from mapseg.labels import LabelSet
from mapseg.model import assign_weight_arrays, weight_arrays

_LAST_LAYER = "logits-semantic/"


def init_weights(model: keras.Model, source: str, label_set: LabelSet) -> list[str]:
    """Copies every weight whose name and shape fit; the others keep their values.

    The last layer fits only if the source is known to have been trained on the same classes.

    Args:
      model: from `build_model`; it is changed.
      source: a run folder (its best checkpoint), a checkpoint's folder or `weights.npz` of mapseg,
        or the prefix of a TF DeepLab checkpoint.
      label_set: what the model's logits mean.

    Returns:
      Lines that say what matched and what did not.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: it cannot be read, or nothing in it fits.
    """
    found = _read_source(model, source)
    own = weight_arrays(model)
    same_classes = _names_of(source) == label_set.names
    fitting = {
        k: v
        for k, v in found.items()
        if k in own and own[k].shape == v.shape and (same_classes or not k.startswith(_LAST_LAYER))
    }
    if not fitting:
        raise ValueError(
            f"{source}: init_from must hold weights of this network; none of its {len(found)} fit. "
            "Remedy: the same --encoder and --decoder_channels as there"
        )
    assign_weight_arrays(model, {**own, **fitting})
    return _table(source, own, found, fitting)


def _read_source(model: keras.Model, source: str) -> dict[str, np.ndarray]:
    path = Path(source)
    if (path / "config.json").is_file():
        return read_weights(find_checkpoint(path))
    if path.exists():
        return read_weights(path)
    if Path(source + ".index").is_file():
        return _read_deeplab(model, source)
    raise FileNotFoundError(
        f"{source}: init_from must be a run folder, a weights.npz, or the prefix of a TF DeepLab "
        "checkpoint (PREFIX.index and PREFIX.data-* exist); nothing of the kind is there"
    )


def _names_of(source: str) -> tuple[str, ...]:
    """Returns the classes of the run that a source belongs to; empty where that is unknown."""
    for folder in (Path(source), *Path(source).absolute().parents[:3]):
        if (folder / "labels.json").is_file() and (folder / "config.json").is_file():
            return open_run(folder).label_set.names
    return ()


def _read_deeplab(model: keras.Model, prefix: str) -> dict[str, np.ndarray]:
    try:
        reader = tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError) as error:
        raise ValueError(f"{prefix}: must be a TensorFlow checkpoint; {error}") from error
    stored = reader.get_variable_to_shape_map()
    return {
        key: reader.get_tensor(name) for key, name in deeplab_names(model).items() if name in stored
    }


def _table(
    source: str,
    own: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    fitting: Mapping[str, np.ndarray],
) -> list[str]:
    lines = [f"started from {source}: {len(fitting)} of {len(own)} weights matched"]
    for key, value in own.items():
        if key not in fitting:
            there = f"there {list(found[key].shape)}" if key in found else "not there"
            lines.append(f"  new: {key} {list(value.shape)} ({there})")
    return lines

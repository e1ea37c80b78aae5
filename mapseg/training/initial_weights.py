"""Initial weights of a training run: from another run, a weights file or TF DeepLab."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from mapseg.labels import LabelSet
from mapseg.model.weights import (
    assign_weight_arrays,
    first_names,
    named_weights,
    read_deeplab,
    read_weights,
    weight_arrays,
)
from mapseg.runs.folder import open_run
from mapseg.runs.start import find_start

_LAST_LAYER = "logits-semantic/"


def init_weights(model: keras.Model, source: str, label_set: LabelSet) -> list[str]:
    """Copies all weights whose name and shape match; the other weights keep their values.

    The whole encoder must match: with a random encoder the other weights are useless. The last
    layer is copied only if the source is known to have been trained on the same classes.

    Args:
      model: from `build_model`; changed in place.
      source: a run folder (its best checkpoint), a checkpoint folder or `weights.npz` of mapseg,
        or the prefix of a TF DeepLab checkpoint.
      label_set: the classes of the model's logits.

    Returns:
      Lines that report which weights matched and which did not.

    Raises:
      FileNotFoundError: the source does not exist.
      ValueError: the source cannot be read, or does not contain the encoder.
    """
    path = find_start(source)
    stored = read_weights(path) if path.exists() else read_deeplab(model, source)
    current = weight_arrays(model)
    same_classes = _class_names(source) == label_set.names
    matching = {
        k: v
        for k, v in stored.items()
        if k in current
        and current[k].shape == v.shape
        and (same_classes or not k.startswith(_LAST_LAYER))
    }
    (encoder,) = (named_weights(x) for x in model.layers if isinstance(x, keras.Model))
    missing = [key for key in encoder if key not in matching]
    if missing:
        raise ValueError(
            f"{source}: init_from must contain the whole encoder; {len(missing)} of its "
            f"{len(encoder)} weights are missing or differ in shape: {first_names(missing)}. "
            "Remedy: the same --encoder as there"
        )
    assign_weight_arrays(model, {**current, **matching})
    return _report(path, current, stored, matching)


def _class_names(source: str) -> tuple[str, ...]:
    """Returns the class names of the run that a source belongs to; empty if unknown."""
    path = Path(source).resolve()  # a link may lead from elsewhere into a run
    for folder in (path, *path.parents[:3]):
        if (folder / "labels.json").is_file() and (folder / "config.json").is_file():
            return open_run(folder).label_set.names
    return ()


def _report(
    source: Path,
    current: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    matching: Mapping[str, np.ndarray],
) -> list[str]:
    lines = [f"started from {source}: {len(matching)} of {len(current)} weights matched"]
    for key, value in current.items():
        if key not in matching:
            reason = f"stored {list(stored[key].shape)}" if key in stored else "not stored"
            if key in stored and stored[key].shape == value.shape:
                reason = "stored for other or unknown classes"
            lines.append(f"  new: {key} {list(value.shape)} ({reason})")
    return lines

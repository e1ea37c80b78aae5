"""Weights that a training run starts from: another run's, a file's or TF DeepLab's."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from mapseg.labels import LabelSet
from mapseg.model.pretrained import find_initial
from mapseg.model.weights import (
    assign_weight_arrays,
    first_names,
    named_weights,
    read_deeplab,
    read_weights,
    weight_arrays,
)
from mapseg.runs.checkpoints import find_checkpoint
from mapseg.runs.folder import open_run

_LAST_LAYER = "logits-semantic/"


def init_weights(model: keras.Model, source: str, label_set: LabelSet) -> list[str]:
    """Copies every weight whose name and shape fit; the others keep their values.

    The encoder must fit as a whole: beside a random one the rest would be worth nothing. The last
    layer fits only if the source is known to have been trained on the same classes.

    Args:
      model: from `build_model`; it is changed.
      source: a run folder (its best checkpoint), a checkpoint's folder or `weights.npz` of mapseg,
        or the prefix of a TF DeepLab checkpoint.
      label_set: what the model's logits mean.

    Returns:
      Lines that say what matched and what did not.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: it cannot be read, or does not hold the encoder.
    """
    found = _read_source(model, source)
    own = weight_arrays(model)
    same_classes = _names_of(source) == label_set.names
    fitting = {
        k: v
        for k, v in found.items()
        if k in own and own[k].shape == v.shape and (same_classes or not k.startswith(_LAST_LAYER))
    }
    (encoder,) = (named_weights(x) for x in model.layers if isinstance(x, keras.Model))
    lacking = [key for key in encoder if key not in fitting]
    if lacking:
        raise ValueError(
            f"{source}: init_from must hold the whole encoder; of its {len(encoder)} weights "
            f"{len(lacking)} are missing or of another shape: {first_names(lacking)}. Remedy: the "
            "same --encoder as there"
        )
    assign_weight_arrays(model, {**own, **fitting})
    return _table(source, own, found, fitting)


def _read_source(model: keras.Model, source: str) -> dict[str, np.ndarray]:
    path = find_initial(source)
    if (path / "config.json").is_file():
        return read_weights(find_checkpoint(path))
    return read_weights(path) if path.exists() else read_deeplab(model, source)


def _names_of(source: str) -> tuple[str, ...]:
    """Returns the classes of the run that a source belongs to; empty where that is unknown."""
    for folder in (Path(source), *Path(source).absolute().parents[:3]):
        if (folder / "labels.json").is_file() and (folder / "config.json").is_file():
            return open_run(folder).label_set.names
    return ()


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

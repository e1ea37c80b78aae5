"""A network's weights by name: reading, assigning, and their names in TF DeepLab.

The names do not depend on the version of Keras, so weights files work across versions.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_NAMED = 3  # how many missing weights a message names


def named_weights(model: keras.Model) -> dict[str, Any]:
    """Returns a model's weights by names that are the same in every version of Keras.

    Args:
      model: its layers' names must be unique, those in nested models included.

    Returns:
      The variables by `layer/weight`, e.g. `aspp0-BatchNorm/gamma`, in the order of the layers.
    """
    weights: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            weights |= named_weights(layer)
        else:
            weights |= {f"{layer.name}/{n}": w for n, w in layer_weights(layer).items()}
    return weights


def layer_weights(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns a layer's weights by names that are the same in every version of Keras."""
    # Keras 2 writes depthwise/depthwise_kernel:0 where Keras 3 writes kernel.
    names = (w.name.rpartition("/")[2].partition(":")[0] for w in layer.weights)
    names = (name.removeprefix("depthwise_") for name in names)
    return dict(zip(names, layer.weights, strict=True))


def weight_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns copies of a model's weights by name; see `named_weights`."""
    return {name: np.array(weight) for name, weight in named_weights(model).items()}


def assign_weight_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets all weights of a model.

    Args:
      model: changed only if all weights fit.
      arrays: as returned by `weight_arrays`.

    Raises:
      ValueError: weights are missing, unknown or differ in shape; the message lists all of them.
    """
    weights = named_weights(model)
    expected = {name: tuple(weight.shape) for name, weight in weights.items()}
    actual = {name: np.shape(array) for name, array in arrays.items()}
    differing = [
        f"{name}: {expected.get(name, 'none')} expected, {actual.get(name, 'none')} found"
        for name in sorted(expected.keys() | actual.keys())
        if expected.get(name) != actual.get(name)
    ]
    if differing:
        raise ValueError(
            f"weights must fit the model; {len(differing)} differ: "
            + "; ".join(differing)
            + ". Remedy: give weights of a network with the same options and classes"
        )
    for name, weight in weights.items():
        weight.assign(arrays[name])


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads weights from a checkpoint folder or an `.npz` file.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is damaged or not a weights file.
    """
    path = path / "weights.npz" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file. Remedy: give a run that has one")
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: must be a complete weights file of mapseg (.npz); {error}. Remedy: give "
            "another checkpoint, or copy it again"
        ) from error


def load_weight_arrays(model: keras.Model, path: Path) -> None:
    """Sets all weights of a model from a checkpoint folder or an `.npz` file.

    Args:
      model: changed only if all weights fit.
      path: as for `read_weights`.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is damaged, or its weights do not fit; the message names the file.
    """
    arrays = read_weights(path)
    try:
        assign_weight_arrays(model, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def deeplab_names(model: keras.Model) -> dict[str, str]:
    """Returns the names of a network's weights in TF DeepLab's checkpoints, for `xception65`.

    Args:
      model: from `build_model`, or an encoder.

    Returns:
      Names of checkpoint variables by weight name, e.g. `aspp1_depthwise/depthwise_weights` for
      `aspp1_depthwise/kernel`. The shapes are equal, except for `logits/semantic` if the number of
      classes differs.

    Raises:
      ValueError: the model has another encoder.
    """
    names = list(named_weights(model))
    if not any(name.startswith("xception_65-") for name in names):
        raise ValueError(
            "a TF DeepLab checkpoint must be loaded into a network with encoder xception65; got "
            f"one whose first weight is {names[0]}. Remedy: --encoder=xception65"
        )
    return {name: _deeplab_name(name) for name in names}


def _deeplab_name(name: str) -> str:
    layer, weight = name.split("/")
    kernel = "depthwise_weights" if layer.endswith("_depthwise") else "weights"
    renamed = {"kernel": kernel, "bias": "biases"}
    return f"{layer.replace('-', '/')}/{renamed.get(weight, weight)}"


def deeplab_shapes(prefix: str) -> dict[str, list[int]]:
    """Reads the shapes of a TensorFlow checkpoint's variables by name.

    Raises:
      ValueError: the checkpoint is damaged.
    """
    with _checkpoint_errors(prefix):
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


def read_deeplab(model: keras.Model, prefix: str) -> dict[str, np.ndarray]:
    """Reads a network's weights from a TF DeepLab checkpoint.

    Args:
      model: a network with encoder `xception65`, or its encoder.
      prefix: prefix of the checkpoint.

    Returns:
      Arrays by weight name, for the weights in the checkpoint; shapes may differ.

    Raises:
      ValueError: the checkpoint is damaged, or the network has another encoder.
    """
    stored = deeplab_shapes(prefix)
    try:
        all_names = deeplab_names(model)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    names = {key: name for key, name in all_names.items() if name in stored}
    with _checkpoint_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        return {key: reader.get_tensor(name) for key, name in names.items()}


@contextmanager
def _checkpoint_errors(prefix: str) -> Iterator[None]:
    """Converts errors in reading a checkpoint to ValueError."""
    try:
        yield
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{prefix}: must be a complete TensorFlow checkpoint; {error}. Remedy: unpack or copy "
            "it again"
        ) from error


def first_names(names: Sequence[str]) -> str:
    """Joins the first few names of weights for a message."""
    return ", ".join([*names[:_NAMED], *["..."] * (len(names) > _NAMED)])

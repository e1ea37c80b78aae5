"""Weights of others: a network starts from them, or is a published one as it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mapseg.config import ModelConfig
from mapseg.labels import VOID, LabelClass, LabelSet
from mapseg.model.deeplab import assign_weight_arrays, build_model, weight_arrays
from mapseg.model.encoders import deeplab_names, named_weights
from mapseg.runs.checkpoints import find_checkpoint, open_run, read_weights

_LAST_LAYER = "logits-semantic/"
_DEEPLAB_LOGITS = "logits/semantic/weights"
_NAMED = 3  # of the weights that are missing, so many are told by name

# Cityscapes by train id, with the colours of its authors.
_CITYSCAPES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
CITYSCAPES_LONG_SIDE_PX = 2048


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
            f"{len(lacking)} are missing or of another shape: {_some(lacking)}. Remedy: the same "
            "--encoder as there"
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


def load_deeplab(prefix: str) -> tuple[keras.Model, LabelSet]:
    """Builds DeepLabv3+ as TF DeepLab published it, trained on Cityscapes.

    Args:
      prefix: of a checkpoint of `xception_65` with decoder, 19 classes by Cityscapes' train ids.

    Returns:
      (model at output stride 16, all of whose weights are the checkpoint's; its classes).

    Raises:
      FileNotFoundError: nothing there.
      ValueError: it cannot be read, has other classes, or lacks weights of this network.
    """
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(
            f"{prefix}: init_checkpoint must be the prefix of a TF DeepLab checkpoint "
            "(PREFIX.index and PREFIX.data-* exist); nothing of the kind is there. Remedy: unpack "
            "the archive, and give DIR/model.ckpt"
        )
    count = _shapes_in(prefix).get(_DEEPLAB_LOGITS, [0])[-1]
    if count != len(_CITYSCAPES):
        raise ValueError(
            f"{prefix}: init_checkpoint must have the {len(_CITYSCAPES)} classes of Cityscapes in "
            f"{_DEEPLAB_LOGITS}; it has {count or 'none'}. Remedy: TF DeepLab's "
            "xception_cityscapes_trainfine; train_main.py --init_from can start from others"
        )
    model = build_model(ModelConfig(encoder="xception65", encoder_weights="none"), len(_CITYSCAPES))
    names, own = deeplab_names(model), weight_arrays(model)
    found = _read_deeplab(model, prefix)
    lacking = [
        f"{names[key]} {list(value.shape)}"
        for key, value in own.items()
        if key not in found or found[key].shape != value.shape
    ]
    if lacking:
        raise ValueError(
            f"{prefix}: init_checkpoint must hold xception_65 with ASPP and decoder; of "
            f"{len(own)} weights {len(lacking)} are missing or of another shape: {_some(lacking)}"
        )
    assign_weight_arrays(model, found)
    classes = (LabelClass(i, name, color) for i, (name, color) in enumerate(_CITYSCAPES))
    to_train = (i if i < len(_CITYSCAPES) else VOID for i in range(256))
    return model, LabelSet("cityscapes", tuple(classes), tuple(to_train))


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_NAMED], *["..."] * (len(names) > _NAMED)])


def _shapes_in(prefix: str) -> dict[str, list[int]]:
    with _telling(prefix):
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


def _read_deeplab(model: keras.Model, prefix: str) -> dict[str, np.ndarray]:
    stored = _shapes_in(prefix)
    try:
        known = deeplab_names(model)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    names = {key: name for key, name in known.items() if name in stored}
    with _telling(prefix):
        reader = tf.train.load_checkpoint(prefix)
        return {key: reader.get_tensor(name) for key, name in names.items()}


@contextmanager
def _telling(prefix: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{prefix}: must be a whole TensorFlow checkpoint; {error}") from error


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

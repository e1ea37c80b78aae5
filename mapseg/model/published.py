"""Networks as others published them, used without training: TF DeepLab on Cityscapes."""

import keras

from mapseg.config import ModelConfig
from mapseg.labels import VOID, LabelClass, LabelSet
from mapseg.model.deeplab import build_model
from mapseg.model.pretrained import find_deeplab
from mapseg.model.weights import (
    assign_weight_arrays,
    deeplab_names,
    deeplab_shapes,
    first_names,
    read_deeplab,
    weight_arrays,
)

_DEEPLAB_LOGITS = "logits/semantic/weights"

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
    find_deeplab(prefix)
    count = deeplab_shapes(prefix).get(_DEEPLAB_LOGITS, [0])[-1]
    if count != len(_CITYSCAPES):
        raise ValueError(
            f"{prefix}: init_checkpoint must have the {len(_CITYSCAPES)} classes of Cityscapes in "
            f"{_DEEPLAB_LOGITS}; it has {count or 'none'}. Remedy: TF DeepLab's "
            "xception_cityscapes_trainfine; train_main.py --init_from can start from others"
        )
    model = build_model(ModelConfig(encoder="xception65", encoder_weights="none"), len(_CITYSCAPES))
    names, own = deeplab_names(model), weight_arrays(model)
    found = read_deeplab(model, prefix)
    lacking = [
        f"{names[key]} {list(value.shape)}"
        for key, value in own.items()
        if key not in found or found[key].shape != value.shape
    ]
    if lacking:
        raise ValueError(
            f"{prefix}: init_checkpoint must hold xception_65 with ASPP and decoder; of "
            f"{len(own)} weights {len(lacking)} are missing or of another shape: "
            f"{first_names(lacking)}"
        )
    assign_weight_arrays(model, found)
    classes = (LabelClass(i, name, color) for i, (name, color) in enumerate(_CITYSCAPES))
    to_train = (i if i < len(_CITYSCAPES) else VOID for i in range(256))
    return model, LabelSet("cityscapes", tuple(classes), tuple(to_train))

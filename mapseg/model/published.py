"""Published networks, used without training: TF DeepLab on Cityscapes."""

from dataclasses import replace

import keras

from mapseg.config import ModelConfig
from mapseg.labels import LabelClass, LabelSet, make_label_set
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

# The classes of Cityscapes by train id, with their label ids and official colours.
_CITYSCAPES = (
    LabelClass(7, "road", (128, 64, 128)),
    LabelClass(8, "sidewalk", (244, 35, 232)),
    LabelClass(11, "building", (70, 70, 70)),
    LabelClass(12, "wall", (102, 102, 156)),
    LabelClass(13, "fence", (190, 153, 153)),
    LabelClass(17, "pole", (153, 153, 153)),
    LabelClass(19, "traffic light", (250, 170, 30)),
    LabelClass(20, "traffic sign", (220, 220, 0)),
    LabelClass(21, "vegetation", (107, 142, 35)),
    LabelClass(22, "terrain", (152, 251, 152)),
    LabelClass(23, "sky", (70, 130, 180)),
    LabelClass(24, "person", (220, 20, 60)),
    LabelClass(25, "rider", (255, 0, 0)),
    LabelClass(26, "car", (0, 0, 142)),
    LabelClass(27, "truck", (0, 0, 70)),
    LabelClass(28, "bus", (0, 60, 100)),
    LabelClass(31, "train", (0, 80, 100)),
    LabelClass(32, "motorcycle", (0, 0, 230)),
    LabelClass(33, "bicycle", (119, 11, 32)),
)
CITYSCAPES_LONG_SIDE_PX = 2048


def load_deeplab(prefix: str) -> tuple[keras.Model, LabelSet]:
    """Builds DeepLabv3+ as TF DeepLab published it, trained on Cityscapes.

    Args:
      prefix: prefix of a checkpoint of `xception_65` with decoder and the 19 train ids of
        Cityscapes.

    Returns:
      (model at output stride 16 with all weights from the checkpoint; its classes, whose source
      ids are Cityscapes' label ids).

    Raises:
      FileNotFoundError: the checkpoint does not exist.
      ValueError: it cannot be read, has other classes, or lacks weights of this network.
    """
    find_deeplab(prefix)
    count = deeplab_shapes(prefix).get(_DEEPLAB_LOGITS, [0])[-1]
    if count != len(_CITYSCAPES):
        raise ValueError(
            f"{prefix}: init_checkpoint must have the {len(_CITYSCAPES)} classes of Cityscapes in "
            f"{_DEEPLAB_LOGITS}; it has {count or 'none'}. Remedy: TF DeepLab's "
            "xception_cityscapes_trainfine; train_main.py --init_from accepts other checkpoints"
        )
    model = build_model(ModelConfig(encoder="xception65", encoder_weights="none"), len(_CITYSCAPES))
    names, current = deeplab_names(model), weight_arrays(model)
    stored = read_deeplab(model, prefix)
    missing = [
        f"{names[key]} {list(value.shape)}"
        for key, value in current.items()
        if key not in stored or stored[key].shape != value.shape
    ]
    if missing:
        raise ValueError(
            f"{prefix}: init_checkpoint must contain xception_65 with ASPP and decoder; "
            f"{len(missing)} of its {len(current)} weights are missing or differ in shape: "
            f"{first_names(missing)}. Remedy: TF DeepLab's xception_cityscapes_trainfine"
        )
    assign_weight_arrays(model, stored)
    return model, replace(make_label_set(_CITYSCAPES, "all"), name="cityscapes")

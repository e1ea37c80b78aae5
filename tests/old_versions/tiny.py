"""What the makers of old runs and their test have in common; it must stay as it is.

A committed run was trained with `tiny_backbone` in place of its encoder, so it opens only with the
very same layers and names. What this needs of mapseg is handed in: its modules move.
"""

import os
import platform
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_ROUNDING = ("sse", "avx", "fma", "f16c", "amx")  # flags of a processor


def tiny_backbone(config, conv):
    """Three convolutions in place of MobileNetV2, with features at strides 4 and 16.

    Args:
      config: a ModelConfig.
      conv: mapseg's convolution with batch norm and ReLU.
    """
    assert (config.encoder, config.encoder_weights) == ("mobilenet_v2", "none")
    assert config.output_stride == 16
    norm = {"momentum": config.batch_norm_momentum, "epsilon": 1e-3}
    image = keras.Input((None, None, 3), name="encoder_input")
    x = conv(image, "tiny-conv1", 4, 3, norm=norm, stride=2)
    low_level = conv(x, "tiny-conv2", 6, 3, norm=norm, stride=2)
    x = conv(low_level, "tiny-conv3", 8, 5, norm=norm, stride=4)
    return keras.Model(image, [low_level, x], name="mobilenet_v2")


def state_arrays(path):
    """Reads all variables of a checkpoint's folder, by their names in TensorFlow's file."""
    reader = tf.train.load_checkpoint(str(path / "state"))
    names = set(reader.get_variable_to_shape_map()) - {_OBJECT_GRAPH}
    return {name: np.asarray(reader.get_tensor(name)) for name in names}


def pack(arrays):
    """Turns named arrays into two: names with kinds and shapes, and all values as float32."""
    ordered = sorted(arrays.items())
    values = [array.astype(np.float32) for _, array in ordered]
    assert all(np.array_equal(v, array) for v, (_, array) in zip(values, ordered, strict=True))
    names = np.array([f"{name} {array.dtype} {array.shape}" for name, array in ordered])
    return names, np.concatenate([v.ravel() for v in values])


def machine():
    """Says what decides the last bits of a training run: versions, processor, its cores."""
    versions = {"tensorflow": tf, "keras": keras, "opencv": cv2}
    facts = [f"{name} {module.__version__}" for name, module in versions.items()]
    facts.append(platform.machine())
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.is_file() else []:
        kind, _, value = (part.strip() for part in line.partition(":"))
        if kind in ("vendor_id", "cpu family", "model"):
            facts.append(value)
        elif kind == "flags":
            facts += [flag for flag in value.split() if flag.startswith(_ROUNDING)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    switches = [f"{key}={os.environ[key]}" for key in sorted(os.environ) if "ONEDNN" in key]
    return " ".join([*facts, f"{cores} cores", *switches])

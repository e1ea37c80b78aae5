"""The ONNX file of a run: uint8 images of any batch and size in, ids out."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from mapseg.inference.export.source import Source

_OPSET = 18  # of 2022: ONNX Runtime 1.14, OpenVINO 2023
_SIDES = ("batch", "height", "width")


def write_onnx(source: Source, path: Path) -> None:
    """Writes an ONNX file with the input `images` and the output `ids`.

    `images` is [batch, height, width, 3] uint8 RGB of any size, `ids` [batch, height, width] uint8.
    The metadata are the texts of `Source.facts`; `classes` is JSON.

    Args:
      source: of one scale, without flip.
      path: the file.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    segment = source.segment  # built here: a traced function cannot read weights
    function = tf.function(lambda images: {"ids": segment(images)})
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    model, _ = tf2onnx.convert.from_function(function, [spec], opset=_OPSET)
    for value in (*model.graph.input, *model.graph.output):
        for side, name in zip(value.type.tensor_type.shape.dim, _SIDES, strict=False):
            side.dim_param = name  # instead of arbitrary ones
    texts = {name: str(value) for name, value in source.facts.items()}
    texts["classes"] = json.dumps(source.facts["classes"])
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from images [B, H, W, 3] to ids [B, H, W] that an ONNX file computes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["ids"], {"images": images})[0]

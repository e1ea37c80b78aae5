"""The LiteRT (TensorFlow Lite) files of a run: images of any size in, ids out.

There are three: in float32; with weights stored in 8 bits ("dynamic range"); and in 8-bit integers
throughout. Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference".
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from mapseg.inference.export.source import Source
from mapseg.model.network import Network

_METADATA = "mapseg"

Graph = Callable[[tf.Tensor], tf.Tensor]


def write_litert(source: Source, path: Path, *, dynamic_int8: bool = False) -> None:
    """Writes a file whose input is `images` [B, H, W, 3] uint8 RGB, its output `ids` [B, H, W].

    It has built-in operations only. Its metadata `mapseg` is the JSON of `Source.facts`.

    Args:
      source: of one scale, without flip.
      path: the file.
      dynamic_int8: store the weights of the convolutions as 8-bit integers.
    """
    optimizations = [tf.lite.Optimize.DEFAULT] if dynamic_int8 else []
    content = _convert(source.segment, tf.uint8, path.parent, optimizations=optimizations)
    path.write_bytes(_with_metadata(content, source))


def write_litert_int8(source: Source, images: Iterable[np.ndarray], path: Path) -> None:
    """Writes a file like `write_litert`, which computes in 8-bit integers throughout.

    Args:
      source: of scale 1, without flip: 8-bit integers cannot hold the weights and positions by
        which images would be resized.
      images: [H, W, 3] uint8 each, from which the range of every tensor is measured.
      path: the file.
    """
    content = _convert(
        _integer_graph(source.network),
        tf.float32,
        path.parent,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([_full_range(image)] for image in images),
        supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
        inference_input_type=tf.uint8,
        inference_output_type=tf.uint8,
    )
    path.write_bytes(_with_metadata(content, source))


def open_litert(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from images [B, H, W, 3] to ids [B, H, W] that a file computes."""
    run = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda images: run(images=images)["ids"]


def _integer_graph(network: Network) -> Graph:
    """Returns the graph for integers: images [B, H, W, 3] float32 of 0 to 255 -> ids [B, H, W].

    It interpolates with one operation, which integers support; positions would be rounded to 8
    bits.
    """

    def segment(images: tf.Tensor) -> tf.Tensor:
        logits = network.logits(images)
        size, samples = tf.shape(images)[1:3], tf.shape(logits)[1:3]
        padded = (samples - 1) * network.stride + 1
        pixels = tf.raw_ops.ResizeBilinear(images=logits, size=padded, align_corners=True)
        pixels = pixels[:, : size[0], : size[1]]
        return tf.cast(tf.argmax(pixels, -1, tf.int32), tf.uint8)

    return segment


def _full_range(image: np.ndarray) -> np.ndarray:
    """Returns an image as a batch, with a black and a white pixel.

    Integers of the file's input then have scale 1 and zero point 0: they are the pixels' values.
    """
    images = image[np.newaxis].astype(np.float32)
    images[0, 0, 0], images[0, -1, -1] = 0, 255
    return images


def _convert(
    graph: Graph,
    dtype: tf.DType,
    folder: Path,
    *,
    supported_ops: Sequence[tf.lite.OpsSet] = (tf.lite.OpsSet.TFLITE_BUILTINS,),
    **options: Any,
) -> bytes:
    """Converts a graph for images of any batch and size.

    Args:
      graph: maps `images` to `ids`.
      dtype: of the images.
      folder: for temporary files.
      supported_ops: the operations that the file may have.
      **options: attributes of TensorFlow's converter.
    """
    module = tf.Module()
    spec = tf.TensorSpec([None, None, None, 3], dtype, name="images")
    module.segment = tf.function(lambda images: {"ids": graph(images)}, input_signature=[spec])
    # Through a SavedModel: from a function, the converter wrote a file without weights.
    with tempfile.TemporaryDirectory(dir=folder) as saved_dir:
        tf.saved_model.save(module, saved_dir, signatures=module.segment)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_dir)
        converter.target_spec.supported_ops = [*supported_ops]
        for name, value in options.items():
            setattr(converter, name, value)
        return bytes(converter.convert())


def _with_metadata(content: bytes, source: Source) -> bytes:
    """Adds what the ids mean to a file's metadata."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(source.facts).encode(), np.uint8)
    entry.name, entry.buffer = _METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

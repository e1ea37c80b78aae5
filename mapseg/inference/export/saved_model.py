"""The SavedModel of a run: images or encoded files in, ids out."""

import json
from pathlib import Path

import tensorflow as tf

from mapseg.config import to_json
from mapseg.inference.export.decoding import decode
from mapseg.inference.export.source import Source
from mapseg.labels import VOID

_Tensors = dict[str, tf.Tensor]

_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
_FILES = tf.TensorSpec([None], tf.string, name="image_bytes")
_FILE = tf.TensorSpec([], tf.string, name="image_bytes")
_QUERY = tf.TensorSpec([None], tf.string, name="query")
_IDS = tf.TensorSpec([None, None], tf.uint8)
_PER_IMAGE = {
    "png_bytes": tf.TensorSpec([], tf.string),
    "confidence": tf.TensorSpec([], tf.float32),
    "scale": tf.TensorSpec([], tf.float32),
}


class _Exported(tf.Module):
    """The content of a SavedModel; it needs only TensorFlow to run.

    It holds the network's variables but not the Keras model: Keras 2 would also save its layers,
    in training mode.
    """

    def __init__(self, source: Source):
        super().__init__()
        predictor = source.predictor
        variables = predictor.network.variables
        self.weights = [v if isinstance(v, tf.Variable) else v.value for v in variables]

        def segment_one(image: tf.Tensor) -> _Tensors:
            result = {name: one[0] for name, one in predictor.graph(image[tf.newaxis]).items()}
            return {**result, "png_bytes": tf.io.encode_png(result["ids"][..., tf.newaxis])}

        def segment_file(item: tuple[tf.Tensor, tf.Tensor]) -> _Tensors:
            encoded, number = item
            name = tf.strings.join(["image_bytes[", tf.strings.as_string(number), "]"])
            result = segment_one(decode(encoded, name))
            return {"sizes": tf.shape(result.pop("ids")), **result}

        # One image at a time: the predictor bounds its memory per image.
        @tf.function(input_signature=[_IMAGES])
        def segment(images: tf.Tensor) -> _Tensors:
            message = "images must be [B, H, W, 3] with B, H and W at least 1; got {}"
            images = _require(
                tf.size(images) > 0, tf.strings.format(message, tf.shape(images)), images
            )
            outputs = {"ids": _IDS, **_PER_IMAGE}
            return tf.map_fn(
                segment_one, images, fn_output_signature=outputs, parallel_iterations=1
            )

        @tf.function(input_signature=[_FILES])
        def segment_to_png(image_bytes: tf.Tensor) -> _Tensors:
            count = tf.size(image_bytes)
            message = "image_bytes must hold at least one file; got none"
            image_bytes = _require(count > 0, tf.constant(message), image_bytes)
            outputs = {"sizes": tf.TensorSpec([2], tf.int32), **_PER_IMAGE}
            items = (image_bytes, tf.range(count))
            return tf.map_fn(
                segment_file, items, fn_output_signature=outputs, parallel_iterations=1
            )

        @tf.function(input_signature=[_FILES])
        def segment_batch(image_bytes: tf.Tensor) -> _Tensors:
            result = segment_to_png(image_bytes)
            size = tf.reduce_max(result["sizes"], 0)
            ids = tf.map_fn(
                lambda png: _read_padded(png, size), result["png_bytes"], fn_output_signature=_IDS
            )
            return {"ids": ids, **result}

        @tf.function
        def segment_encoded(image_bytes: tf.Tensor) -> _Tensors:
            if image_bytes.shape.rank:
                return segment_batch(image_bytes)
            result = segment_batch(image_bytes[tf.newaxis])
            return {name: values[0] for name, values in result.items()}

        for spec in (_FILE, _FILES):
            segment_encoded.get_concrete_function(spec)
        self.segment, self.segment_encoded = segment, segment_encoded
        self.segment_batch, self.segment_to_png = segment_batch, segment_to_png
        self.about, self.about_each = _make_about(_facts_json(source))


def _make_about(facts: str) -> tuple[tf.types.experimental.PolymorphicFunction, ...]:
    """Returns the method `about` and the function of the signature."""

    @tf.function(input_signature=[])
    def about() -> tf.Tensor:
        return tf.constant(facts)

    # TensorFlow Serving's REST interface needs an input, and answers for each of its items.
    @tf.function(input_signature=[_QUERY])
    def about_each(query: tf.Tensor) -> _Tensors:
        return {"json": tf.fill(tf.shape(query), facts)}

    return about, about_each


def write_saved_model(source: Source, saved_dir: Path) -> None:
    """Writes a SavedModel.

    | signature         | method            | input                                   |
    | ----------------- | ----------------- | --------------------------------------- |
    | `serving_default` | `segment`         | `images` [B, H, W, 3] uint8 RGB         |
    | `encoded`         | `segment_encoded` | `image_bytes` [B], JPEG or PNG files;   |
    |                   |                   | the method also accepts one file []     |
    | `png`             | `segment_to_png`  | `image_bytes` [B]                       |
    | `about`           | `about`           | `query` [B], any text; the method: none |

    The first three return for each image `png_bytes` [B], an 8-bit grey PNG of its ids,
    `confidence` [B] and `scale` [B]. `serving_default` and `encoded` return `ids` [B, H, W] uint8
    too. Files may have different sizes: `encoded` and `png` return `sizes` [B, 2] int32 (height,
    width), and `ids` is padded with VOID at the bottom and right to the largest. `about` returns
    JSON, as `json` [B]: `Source.facts`, `void_id` and the options of prediction.

    As in inference, images are rotated according to their EXIF data, and files are rejected that
    are truncated, animated, too large, or have 16 bits and no value of at least 2^14. CMYK is
    rejected too. Unlike in inference, a JPEG with corrupt data inside is decoded, wrongly from
    there on. One file that is rejected fails its request; the error names it.

    Args:
      source: what to export; its scales, flip and tile size are fixed in the export.
      saved_dir: an existing empty folder.
    """
    module = _Exported(source)
    signatures = {
        "serving_default": module.segment,
        "encoded": module.segment_batch,
        "png": module.segment_to_png,
        "about": module.about_each,
    }
    tf.saved_model.save(module, str(saved_dir), signatures=signatures)


def _facts_json(source: Source) -> str:
    prediction = {**to_json(source.config), "long_side_px": source.run.long_side_px}
    return json.dumps({**source.facts, "void_id": VOID, "prediction": prediction})


def _require(passed: tf.Tensor, message: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Returns a value whose use fails, when the graph is executed, unless the check passed."""
    with tf.control_dependencies([tf.debugging.Assert(passed, [message])]):
        return tf.identity(value)


def _read_padded(png: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG of ids and pads it with VOID to `size`: [height, width] uint8."""
    ids = tf.io.decode_png(png, channels=1)[..., 0]
    bottom, right = tf.unstack(size - tf.shape(ids))
    return tf.pad(ids, [[0, bottom], [0, right]], constant_values=VOID)

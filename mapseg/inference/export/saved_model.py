"""The SavedModel of a run: images or encoded files in, ids out."""

from pathlib import Path

import tensorflow as tf

from mapseg.data.encoded import JPEG
from mapseg.data.samples import decode_image
from mapseg.inference.headers import is_animated, read_jpeg_channels
from mapseg.inference.orientation import upright
from mapseg.inference.predictor import Predictor
from mapseg.inference.reading import DEPTH_MESSAGE, SMALLEST_16_BIT_PEAK

_CMYK_MESSAGE = (
    "a JPEG must be grey or RGB; got CMYK, which TensorFlow and inference convert differently. "
    "Remedy: save it as RGB"
)
_KIND_MESSAGE = "a file must be a JPEG or PNG; got another kind. Remedy: save it as one of these"
_ANIMATED_MESSAGE = (
    "a PNG must hold one picture; got an animated one. Remedy: save each frame as a file"
)


class _Exported(tf.Module):
    """The content of a SavedModel; it needs only TensorFlow to run.

    It holds the network's variables but not the Keras model: Keras 2 would also save its layers,
    in training mode.
    """

    def __init__(self, predictor: Predictor):
        super().__init__()
        variables = predictor.network.variables
        self.weights = [v if isinstance(v, tf.Variable) else v.value for v in variables]
        signature = {
            "ids": tf.TensorSpec([None, None], tf.uint8),
            "confidence": tf.TensorSpec([], tf.float32),
            "scale": tf.TensorSpec([], tf.float32),
        }
        batch = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        files = tf.TensorSpec(None, tf.string, name="encoded")

        def segment_one(image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {name: values[0] for name, values in predictor.graph(image[tf.newaxis]).items()}

        # One image at a time: the predictor bounds its memory per image.
        @tf.function(input_signature=[batch])
        def segment(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return tf.map_fn(
                segment_one, images, fn_output_signature=signature, parallel_iterations=1
            )

        @tf.function(input_signature=[files])
        def segment_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            results = tf.map_fn(
                lambda file: segment_one(_decode(file)),
                tf.reshape(encoded, [-1]),
                fn_output_signature=signature,
                parallel_iterations=1,
            )
            shape = tf.shape(encoded)  # of one file, or of several
            return {
                name: tf.reshape(values, tf.concat([shape, tf.shape(values)[1:]], 0))
                for name, values in results.items()
            }

        self.segment = segment
        self.segment_encoded = segment_encoded


def write_saved_model(predictor: Predictor, saved_dir: Path) -> None:
    """Writes a SavedModel.

    The signature `serving_default`, also the method `segment`, accepts `images` [B, H, W, 3] uint8
    RGB of any batch and image size and returns ids [B, H, W] uint8, confidence [B] and scale [B].

    The signature `encoded`, also the method `segment_encoded`, accepts `encoded`: the bytes of one
    JPEG or PNG file, or of [B] files whose images have the same size. TensorFlow Serving receives
    them as `{"signature_name": "encoded", "instances": [{"b64": "..."}]}`. It returns the same,
    without the batch dimension for one file.

    As in inference, images are rotated according to their EXIF data; and 16-bit images whose values
    are all below 2^14, animated PNGs and truncated JPEGs are rejected. CMYK is rejected too. Unlike
    in inference, a JPEG with corrupt data inside is decoded, wrongly from there on.

    Args:
      predictor: what to export; its scales, flip and tile size are fixed in the export.
      saved_dir: an existing empty folder.
    """
    module = _Exported(predictor)
    signatures = {"serving_default": module.segment, "encoded": module.segment_encoded}
    tf.saved_model.save(module, str(saved_dir), signatures=signatures)


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG as `read_image` does: [H, W, 3] uint8."""
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    is_jpeg = tf.strings.substr(encoded, 0, 3) == JPEG
    checks = [
        tf.debugging.Assert(is_png or is_jpeg, [_KIND_MESSAGE]),
        tf.debugging.Assert(read_jpeg_channels(encoded) < 4, [_CMYK_MESSAGE]),
        tf.debugging.Assert(not is_animated(encoded), [_ANIMATED_MESSAGE]),
    ]
    with tf.control_dependencies(checks):  # else the decoder may fail first
        encoded = tf.identity(encoded)
    if is_png and tf.strings.substr(encoded, 24, 1) == b"\x10":  # bits per channel
        deep = tf.io.decode_png(encoded, channels=3, dtype=tf.uint16)
        peak = tf.reduce_max(tf.cast(deep, tf.int32))
        tf.debugging.assert_greater_equal(peak, SMALLEST_16_BIT_PEAK, DEPTH_MESSAGE)
    return upright(decode_image(encoded), encoded)

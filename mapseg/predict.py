"""One image of any size -> ids: scale, tile, flip, and the way back to the image's own size.

Everything is TensorFlow operations in one graph, so evaluation, inference and the exported model
run the very same code.
"""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mapseg.checkpoints import Run, find_checkpoint, read_weights
from mapseg.config import PredictConfig
from mapseg.model import assign_weight_arrays, build_model

# Logits that exist at once at the image's own size, in values; more would not be faster.
_BAND_VALUES = 2**24
# The share of a tile on each side that only gives context.
_MARGIN = 1 / 8


class Predictor(tf.Module):
    """A network and how it is applied to whole images."""

    def __init__(self, model: keras.Model, config: PredictConfig, long_side_px: int):
        """Binds a network to a scale.

        Args:
          model: [B, H, W, 3] uint8 -> [B, H, W, C] float32 logits.
          config: scale, flip and tile size.
          long_side_px: long side of the images that it was trained on, for `scale=auto`.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.long_side_px = long_side_px

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def segment(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Segments one image in bounded memory.

        The image is resized by the scale, cut into overlapping tiles no larger than
        `config.tile_px`, and each pixel takes the logits of the tile that it lies deepest in,
        interpolated at the pixel's centre.

        Args:
          image: [H, W, 3] uint8 RGB.

        Returns:
          `ids` [H, W] uint8 train ids, `confidence` [] float32 mean over pixels of the highest
          softmax, `scale` [] float32 that the input was resized by.
        """
        size = tf.shape(image)[:2]
        scale = self._scale(size)
        scaled_size = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32), 1)
        scaled = _resize(image, scaled_size)
        tops, row_edges = _tiles(scaled_size[0], self.config.tile_px)
        lefts, column_edges = _tiles(scaled_size[1], self.config.tile_px)
        ids = tf.zeros([0, size[1]], tf.uint8)
        confidence = tf.zeros([])
        for i in tf.range(tf.size(tops)):
            tf.autograph.experimental.set_loop_options(
                parallel_iterations=1, shape_invariants=[(ids, tf.TensorShape([None, None]))]
            )
            rows = _positions(row_edges[i], row_edges[i + 1], size[0], scaled_size[0])
            strip = tf.zeros([tf.size(rows), 0], tf.uint8)
            for j in tf.range(tf.size(lefts)):
                tf.autograph.experimental.set_loop_options(
                    parallel_iterations=1, shape_invariants=[(strip, tf.TensorShape([None, None]))]
                )
                columns = _positions(column_edges[j], column_edges[j + 1], size[1], scaled_size[1])
                tile = scaled[tops[i] :, lefts[j] :][: self.config.tile_px, : self.config.tile_px]
                logits = self._logits(tile)
                at = rows - tf.cast(tops[i], tf.float32), columns - tf.cast(lefts[j], tf.float32)
                tile_ids, tile_confidence = _best_class(logits, *at)
                strip = tf.concat([strip, tile_ids], axis=1)
                confidence += tile_confidence
            ids = tf.concat([ids, strip], axis=0)
        pixels = tf.cast(tf.reduce_prod(size), tf.float32)
        return {
            "ids": tf.reshape(ids, size),
            "confidence": confidence / pixels,
            "scale": scale,
        }

    def _scale(self, size: tf.Tensor) -> tf.Tensor:
        if self.config.scale == "auto":
            return self.long_side_px / tf.cast(tf.reduce_max(size), tf.float32)
        return tf.constant(float(self.config.scale), tf.float32)

    def _logits(self, tile: tf.Tensor) -> tf.Tensor:
        """Averages the network's logits [h, w, C] over the tile and, if asked, its mirror image."""
        logits = self.model(tile[tf.newaxis], training=False)[0]
        if self.config.flip_average:
            mirrored = self.model(tile[tf.newaxis, :, ::-1], training=False)[0]
            logits = (logits + mirrored[:, ::-1]) / 2
        return logits


def load_predictor(run: Run, config: PredictConfig, checkpoint: str = "best") -> Predictor:
    """Builds a run's network with the weights of a checkpoint.

    Args:
      run: from `open_run`.
      config: scale, flip and tile size.
      checkpoint: `best`, `latest` or a step.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: its weights do not fit.
    """
    return load_weights(run, config, find_checkpoint(run.run_dir, checkpoint))


def load_weights(run: Run, config: PredictConfig, weights_path: Path) -> Predictor:
    """Builds a run's network with the weights of a checkpoint's folder or file."""
    model = build_model(
        replace(run.model, encoder_weights="none"),
        len(run.label_set.classes),
        precision=device_precision(run.train.precision),
    )
    assign_weight_arrays(model, read_weights(weights_path))
    return Predictor(model, config, run.long_side_px)


def device_precision(trained: str) -> str:
    """Chooses the precision to predict in: as trained on a GPU, float32 on a CPU."""
    return trained if tf.config.list_physical_devices("GPU") else "float32"


def _resize(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes [H, W, 3] uint8 bilinearly, averaging where it shrinks."""
    if tf.reduce_all(tf.equal(tf.shape(image)[:2], size)):
        resized = image
    else:
        pixels = tf.round(tf.image.resize(image, size, antialias=True))
        resized = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
    return tf.ensure_shape(resized, [None, None, 3])


def _tiles(size: tf.Tensor, tile_px: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Spreads tiles evenly over a side.

    Returns:
      (starts [n] int32, edges [n + 1] int32): tile i begins at starts[i] and owns the pixels from
      edges[i] to edges[i + 1], which keep away from its ends but for the image's own.
    """
    step = tile_px - 2 * int(tile_px * _MARGIN)
    over = tf.maximum(size - tile_px, 0)
    count = 1 + (over + step - 1) // step
    starts = tf.range(count) * over // tf.maximum(count - 1, 1)
    inner = (starts[1:] + starts[:-1] + tile_px) // 2
    return starts, tf.concat([[0], inner, [size]], 0)


def _positions(
    first_edge: tf.Tensor, last_edge: tf.Tensor, size: tf.Tensor, scaled_size: tf.Tensor
) -> tf.Tensor:
    """Lists the image's pixels between two edges of the scaled image, as scaled coordinates.

    Pixel centres lie at half-integers in both, so pixel p is at (p + 0.5) * ratio - 0.5.
    """
    ratio = tf.cast(scaled_size, tf.float32) / tf.cast(size, tf.float32)
    edges = tf.cast(tf.stack([first_edge, last_edge]), tf.float32)
    edges = tf.cast(tf.math.ceil(edges / ratio - 0.5), tf.int32)
    last = tf.where(last_edge == scaled_size, size, edges[1])
    pixels = tf.cast(tf.range(tf.maximum(edges[0], 0), last), tf.float32)
    return (pixels + 0.5) * ratio - 0.5


def _best_class(
    logits: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Interpolates logits and takes the arg-max, band by band to bound the memory.

    Args:
      logits: [h, w, C] float32.
      rows: [n] float32 coordinates in the tile.
      columns: [m] float32.

    Returns:
      ([n, m] uint8 ids, [] float32 sum of the highest softmax).
    """
    classes = logits.shape[-1]
    band = tf.maximum(_BAND_VALUES // (classes * tf.maximum(tf.size(columns), 1)), 1)
    ids = tf.zeros([0, tf.size(columns)], tf.uint8)
    confidence = tf.zeros([])
    for first in tf.range(0, tf.size(rows), band):
        tf.autograph.experimental.set_loop_options(
            parallel_iterations=1, shape_invariants=[(ids, tf.TensorShape([None, None]))]
        )
        block = _interpolate(_interpolate(logits, rows[first : first + band], 0), columns, 1)
        best = tf.cast(tf.argmax(block, -1, tf.int32), tf.uint8)
        highest = tf.exp(tf.reduce_max(block, -1) - tf.reduce_logsumexp(block, -1))
        ids = tf.concat([ids, best], axis=0)
        confidence += tf.reduce_sum(highest)
    return ids, confidence


def _interpolate(values: tf.Tensor, positions: tf.Tensor, axis: int) -> tf.Tensor:
    """Reads values linearly between the samples of an axis, clamped at its ends."""
    last = tf.shape(values)[axis] - 1
    positions = tf.clip_by_value(positions, 0.0, tf.cast(last, tf.float32))
    low = tf.cast(positions, tf.int32)
    share = positions - tf.cast(low, tf.float32)
    share = tf.reshape(share, [-1, 1, 1] if axis == 0 else [1, -1, 1])
    below = tf.gather(values, low, axis=axis)
    above = tf.gather(values, tf.minimum(low + 1, last), axis=axis)
    return below + (above - below) * share


def segment_array(predictor: Predictor, image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Runs the predictor on an array: (ids [H, W] uint8, confidence, scale)."""
    result = predictor.segment(tf.convert_to_tensor(image, tf.uint8))
    return result["ids"].numpy(), float(result["confidence"]), float(result["scale"])

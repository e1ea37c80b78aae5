"""One image of any size -> ids: scales, tiles, flip, and the way back to the image's own size.

Everything is TensorFlow operations in one graph, so evaluation, inference and the exported model
run the very same code.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.model.deeplab import build_model
from mapseg.model.weights import assign_weight_arrays, read_weights
from mapseg.runs.folder import Run

# Values that exist at once at the image's own size; more would not be faster.
_BAND_VALUES = 2**24
# The share of a tile on each side that only gives context.
_MARGIN = 1 / 8


class Segmentation(NamedTuple):
    """What a network predicts for one frame.

    Attributes:
      ids: [H, W] uint8 train ids, at the frame's own size.
      confidence: mean over the pixels of the highest softmax probability.
      scale: the factor by which the frame was resized for the network.
    """

    ids: np.ndarray
    confidence: float
    scale: float


class _View(NamedTuple):
    """What the network says of a region, once: at one scale, mirrored or not.

    Attributes:
      logits: [h, w, C] float32, at that scale.
      rows: [n] float32 where in them the region's rows of pixels lie.
      columns: [m] float32.
    """

    logits: tf.Tensor
    rows: tf.Tensor
    columns: tf.Tensor


class Predictor(tf.Module):
    """A network and how it is applied to whole images."""

    def __init__(self, model: keras.Model, config: PredictConfig, long_side_px: int):
        """Binds a network to its scales.

        Args:
          model: [B, H, W, 3] uint8 -> [B, H, W, C] float32 logits.
          config: scales, flip and tile size.
          long_side_px: long side of the images that it was trained on, for `scale=auto`.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.long_side_px = long_side_px

    def segment(self, frame: np.ndarray) -> Segmentation:
        """Segments one frame [H, W, 3] uint8 RGB of any size; see `graph`."""
        result = self.graph(tf.convert_to_tensor(frame, tf.uint8))
        confidence, scale = float(result["confidence"]), float(result["scale"])
        return Segmentation(result["ids"].numpy(), confidence, scale)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def graph(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `segment` runs, for other graphs; its memory is bounded but for the resized images.

        The image is resized by each scale, one after the other, and segmented region by region:
        what lies deep within a tile of the largest scale. The network sees that tile and those of
        the other scales around the same place, none larger than `config.tile_px`, and their mirror
        images if asked. Their logits are interpolated at each pixel's centre and their softmax
        averaged, as in TF DeepLab.

        Args:
          image: [H, W, 3] uint8 RGB.

        Returns:
          `ids` [H, W] uint8 train ids, `confidence` [] float32 mean over pixels of the highest
          probability, `scale` [] float32 that `config.scales` are multiples of.
        """
        size = tf.shape(image)[:2]
        scale = self._scale(size)
        copies: list[tf.Tensor] = []
        for factor in self.config.factors:
            # One after the other: while it resizes, TensorFlow holds an image as float32.
            with tf.control_dependencies(copies[-1:]):
                copies.append(_resize(image, scale * factor))
        largest = tf.shape(copies[-1])
        row_centres, row_edges = _regions(size[0], largest[0], self.config.tile_px)
        column_centres, column_edges = _regions(size[1], largest[1], self.config.tile_px)
        ids = tf.zeros([0, size[1]], tf.uint8)
        confidence = tf.zeros([])
        for i in tf.range(tf.size(row_centres)):
            tf.autograph.experimental.set_loop_options(
                parallel_iterations=1, shape_invariants=[(ids, tf.TensorShape([None, None]))]
            )
            rows = tf.range(row_edges[i], row_edges[i + 1])
            strip = tf.zeros([tf.size(rows), 0], tf.uint8)
            for j in tf.range(tf.size(column_centres)):
                tf.autograph.experimental.set_loop_options(
                    parallel_iterations=1, shape_invariants=[(strip, tf.TensorShape([None, None]))]
                )
                columns = tf.range(column_edges[j], column_edges[j + 1])
                centre = tf.stack([row_centres[i], column_centres[j]])
                views = self._look(copies, size, rows, columns, centre)
                region_ids, region_confidence = _best_class(views)
                strip = tf.concat([strip, region_ids], axis=1)
                confidence += region_confidence
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

    def _look(
        self,
        copies: list[tf.Tensor],
        size: tf.Tensor,
        rows: tf.Tensor,
        columns: tf.Tensor,
        centre: tf.Tensor,
    ) -> list[_View]:
        """Runs the network around a region: over a tile of each copy, and its mirror image.

        Args:
          copies: the image, [h, w, 3] uint8, at each scale.
          size: [2] int32 of the image.
          rows: [n] int32, the region's rows of pixels.
          columns: [m] int32.
          centre: [2] float32, in the image, that the tiles keep to where its borders let them.
        """
        views: list[_View] = []
        tile_px = self.config.tile_px
        for copy in copies:
            copy_size = tf.shape(copy)[:2]
            ratio = tf.cast(copy_size, tf.float32) / tf.cast(size, tf.float32)
            start = tf.cast(tf.round(centre * ratio - tile_px / 2), tf.int32)
            start = tf.clip_by_value(start, 0, tf.maximum(copy_size - tile_px, 0))
            tile = copy[start[0] :, start[1] :][:tile_px, :tile_px]
            # Pixel centres lie at half-integers at every scale.
            inside = [
                (tf.cast(pixels, tf.float32) + 0.5) * ratio[axis]
                - (0.5 + tf.cast(start[axis], tf.float32))
                for axis, pixels in enumerate((rows, columns))
            ]
            for mirrored in (False, True) if self.config.flip_average else (False,):
                # One after the other: together, the network's features would need the memory of
                # all views.
                with tf.control_dependencies([view.logits for view in views[-1:]]):
                    logits = (
                        self._logits(tile[:, ::-1])[:, ::-1] if mirrored else self._logits(tile)
                    )
                    views.append(_cut(logits, *inside))
        return views

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def _logits(self, tile: tf.Tensor) -> tf.Tensor:
        """Runs the network over [h, w, 3]; a function of its own is in the graph only once."""
        return self.model(tile[tf.newaxis], training=False)[0]


def load_predictor(run: Run, config: PredictConfig, checkpoint_path: Path) -> Predictor:
    """Builds a run's network with the weights of a checkpoint.

    Args:
      run: from `open_run`.
      config: scales, flip and tile size.
      checkpoint_path: from `find_checkpoint`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: its weights do not fit.
    """
    model = build_model(
        replace(run.model, encoder_weights="none"),
        len(run.label_set.classes),
        precision=device_precision(run.train.precision),
    )
    assign_weight_arrays(model, read_weights(checkpoint_path))
    return Predictor(model, config, run.long_side_px)


def device_precision(trained: str) -> str:
    """Chooses the precision to predict in: as trained on a GPU, float32 on a CPU."""
    return trained if tf.config.list_physical_devices("GPU") else "float32"


def _resize(image: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Resizes [H, W, 3] uint8 bilinearly, averaging where it shrinks."""
    size = tf.shape(image)[:2]
    scaled = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32), 1)
    if tf.reduce_all(tf.equal(size, scaled)):
        resized = image
    else:
        pixels = tf.round(tf.image.resize(image, scaled, antialias=True))
        resized = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
    return tf.ensure_shape(resized, [None, None, 3])


def _regions(size: tf.Tensor, scaled_size: tf.Tensor, tile_px: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Spreads tiles evenly over a side of the scaled image and shares out the image's pixels.

    Returns:
      (centres [n] float32, edges [n + 1] int32), both in the image: around centres[i] is a tile
      that owns the pixels from edges[i] to edges[i + 1], which keep away from its ends but for the
      image's own. Tiles that would own none are left out.
    """
    step = tile_px - 2 * int(tile_px * _MARGIN)
    over = tf.maximum(scaled_size - tile_px, 0)
    count = 1 + (over + step - 1) // step
    starts = tf.range(count) * over // tf.maximum(count - 1, 1)
    inner = (starts[1:] + starts[:-1] + tile_px) // 2
    ratio = tf.cast(scaled_size, tf.float32) / tf.cast(size, tf.float32)
    # Pixel p is at (p + 0.5) * ratio - 0.5 of the scaled image.
    inner = tf.cast(tf.math.ceil(tf.cast(inner, tf.float32) / ratio - 0.5), tf.int32)
    edges = tf.concat([[0], tf.clip_by_value(inner, 0, size), [size]], 0)
    owning = edges[1:] > edges[:-1]
    centres = (tf.cast(starts, tf.float32) + tile_px / 2) / ratio
    edges = tf.concat([[0], tf.boolean_mask(edges[1:], owning)], 0)
    return tf.boolean_mask(centres, owning), edges


def _cut(logits: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> _View:
    """Keeps of a tile's logits [h, w, C] what lies around some positions in it."""
    (top, bottom), (left, right) = (
        (tf.cast(tf.maximum(at[0], 0.0), tf.int32), tf.cast(at[-1], tf.int32) + 2)
        for at in (rows, columns)
    )
    rows, columns = rows - tf.cast(top, tf.float32), columns - tf.cast(left, tf.float32)
    return _View(logits[top:bottom, left:right], rows, columns)


def _best_class(views: list[_View]) -> tuple[tf.Tensor, tf.Tensor]:
    """Averages the probabilities of a region's pixels and takes the arg-max.

    It goes band by band, to bound the memory.

    Args:
      views: of the same n x m pixels.

    Returns:
      ([n, m] uint8 ids, [] float32 sum of the highest probabilities).
    """
    height, width = tf.size(views[0].rows), tf.size(views[0].columns)
    band = tf.maximum(_BAND_VALUES // (views[0].logits.shape[-1] * len(views) * width), 1)
    ids = tf.zeros([0, width], tf.uint8)
    confidence = tf.zeros([])
    for first in tf.range(0, height, band):
        tf.autograph.experimental.set_loop_options(
            parallel_iterations=1, shape_invariants=[(ids, tf.TensorShape([None, None]))]
        )
        probabilities = [_probabilities(view, first, first + band) for view in views]
        total = tf.add_n(probabilities)
        ids = tf.concat([ids, tf.cast(tf.argmax(total, -1, tf.int32), tf.uint8)], axis=0)
        confidence += tf.reduce_sum(tf.reduce_max(total, -1))
    return ids, confidence / len(views)


def _probabilities(view: _View, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Interpolates the logits of some of a view's rows: [last - first, m, C] softmax."""
    band = _interpolate(view.logits, view.rows[first:last], 0)
    return tf.nn.softmax(_interpolate(band, view.columns, 1))


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

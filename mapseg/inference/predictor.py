"""Images of any size -> ids of the same size, using scales, tiles and mirror images.

Everything is one graph of TensorFlow operations, so evaluation, inference and the exported model
run the same code.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import keras
import numpy as np
import tensorflow as tf

from mapseg.config import PredictConfig
from mapseg.inference.classes import (
    Classes,
    View,
    average_classes,
    classes_between,
    cut_view,
)
from mapseg.inference.scaling import base_scale, scaled_size
from mapseg.inference.tiling import regions, tile_start
from mapseg.machine import gpus
from mapseg.model.deeplab import build_model
from mapseg.model.network import Network, frozen_network
from mapseg.model.weights import load_weight_arrays
from mapseg.runs.folder import Run

_ANY = tf.TensorShape([None, None, None])


class Segmentation(NamedTuple):
    """What a network predicts for one frame.

    Attributes:
      ids: [H, W] uint8 train ids, at the size of the frame.
      confidence: mean of the highest softmax probability: over the network's samples, or over the
        pixels if scales or mirror images are averaged.
      scale: the factor by which the frame was resized for the network, before `scales` multiply it.
      probability: [H, W] float32 softmax probability of each pixel's class, if requested.
    """

    ids: np.ndarray
    confidence: float
    scale: float
    probability: np.ndarray | None = None


class Segmentations(Sequence[Segmentation]):
    """The network's predictions for a batch of frames; reading one waits for the device."""

    def __init__(self, result: dict[str, tf.Tensor]):
        self._result = result

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self._result.items()}

    def __len__(self) -> int:
        return int(self._result["ids"].shape[0])

    @overload
    def __getitem__(self, index: int) -> Segmentation: ...

    @overload
    def __getitem__(self, index: slice) -> list[Segmentation]: ...

    def __getitem__(self, index: int | slice) -> Segmentation | list[Segmentation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        arrays = self._arrays
        probability = arrays["probability"][index] if "probability" in arrays else None
        confidence, scale = float(arrays["confidence"][index]), float(arrays["scale"][index])
        return Segmentation(arrays["ids"][index], confidence, scale, probability)


class Predictor(tf.Module):
    """Applies a network to whole images."""

    def __init__(self, network: Network, config: PredictConfig, long_side_px: int):
        """Initialises the predictor.

        Args:
          network: the network to apply.
          config: scales, flip and tile size.
          long_side_px: long side of the images that it was trained on, for `scale=auto`.
        """
        super().__init__()
        self.network = network
        self.config = config
        self.long_side_px = long_side_px
        # Interpolating only some cells would make a GPU wait for their count.
        views = len(config.factors) * (1 + config.flip_average)
        self._by_cells = views == 1 and not gpus()

    def segment(self, frame: np.ndarray, *, probability: bool = False) -> Segmentation:
        """Segments one frame [H, W, 3] uint8 RGB of any size; see `graph`.

        Args:
          frame: the image.
          probability: also return the probability of each pixel's class.
        """
        return self.segment_batch(frame[np.newaxis], probability=probability)[0]

    def segment_batch(self, frames: np.ndarray, *, probability: bool = False) -> Segmentations:
        """Segments frames [B, H, W, 3] uint8 RGB, without waiting for a GPU; see `segment`."""
        graph = self.probability_graph if probability else self.graph
        return Segmentations(graph(tf.convert_to_tensor(frames, tf.uint8)))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def graph(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Segments images, also within other graphs; memory is bounded except for resized images.

        The images are resized to each scale in turn and segmented region by region. A region is
        the inner part of a tile of the largest scale. The network runs on that tile, on the tiles
        of the other scales around the same centre, and on their mirror images if requested; no
        tile is larger than `config.tile_px`. The logits are interpolated at each pixel's centre.
        If there are several, their softmax is averaged, as in TF DeepLab.

        Args:
          images: [B, H, W, 3] uint8 RGB.

        Returns:
          `ids` [B, H, W] uint8 train ids, `confidence` [B] float32 mean of the highest
          probability, `scale` [B] float32, the base factor that `config.scales` multiply.
        """
        classes, scale = self._classes(images, probability=False)
        return {"ids": classes.ids, "confidence": classes.confidence, "scale": scale}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def probability_graph(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Like `graph`; also returns `probability` [B, H, W] float32 of each pixel's class."""
        classes, scale = self._classes(images, probability=True)
        return {**classes._asdict(), "scale": scale}

    def _classes(self, images: tf.Tensor, *, probability: bool) -> tuple[Classes, tf.Tensor]:
        """Segments images; see `graph`. Also returns the scale of each."""
        batch, size = tf.shape(images)[0], tf.shape(images)[1:3]
        scale = base_scale(self.config, size, self.long_side_px)
        copies: list[tf.Tensor] = []
        for factor in self.config.factors:
            # One at a time: TensorFlow holds images as float32 while it resizes them.
            with tf.control_dependencies(copies[-1:]):
                copies.append(_resize(images, scale * factor))
        largest = tf.shape(copies[-1])[1:3]
        row_centres, row_edges = regions(size[0], largest[0], self.config.tile_px)
        column_centres, column_edges = regions(size[1], largest[1], self.config.tile_px)
        ids = tf.zeros([batch, 0, size[1]], tf.uint8)
        highest = tf.zeros([batch, 0, size[1] if probability else 0])
        confidence = tf.zeros([batch])
        for i in tf.range(tf.size(row_centres)):
            tf.autograph.experimental.set_loop_options(
                parallel_iterations=1, shape_invariants=[(ids, _ANY), (highest, _ANY)]
            )
            rows = tf.range(row_edges[i], row_edges[i + 1])
            strip = tf.zeros([batch, tf.size(rows), 0], tf.uint8)
            strip_highest = tf.zeros([batch, tf.size(rows), 0])
            for j in tf.range(tf.size(column_centres)):
                tf.autograph.experimental.set_loop_options(
                    parallel_iterations=1, shape_invariants=[(strip, _ANY), (strip_highest, _ANY)]
                )
                columns = tf.range(column_edges[j], column_edges[j + 1])
                centre = tf.stack([row_centres[i], column_centres[j]])
                views = self._look(copies, size, rows, columns, centre)
                if self._by_cells and not probability:
                    region = classes_between(views[0])
                else:
                    region = average_classes(views, probability=probability)
                strip = tf.concat([strip, region.ids], axis=2)
                strip_highest = tf.concat([strip_highest, region.probability], axis=2)
                pixels = tf.cast(tf.size(rows) * tf.size(columns), tf.float32)
                confidence += region.confidence * pixels
            ids = tf.concat([ids, strip], axis=1)
            highest = tf.concat([highest, strip_highest], axis=1)
        confidence /= tf.cast(tf.reduce_prod(size), tf.float32)
        ids = tf.ensure_shape(tf.reshape(ids, tf.shape(images)[:3]), [None, None, None])
        return Classes(ids, confidence, highest), tf.fill([batch], scale)

    def _look(
        self,
        copies: list[tf.Tensor],
        size: tf.Tensor,
        rows: tf.Tensor,
        columns: tf.Tensor,
        centre: tf.Tensor,
    ) -> list[View]:
        """Runs the network on a tile of each copy around a region, and on its mirror image.

        Args:
          copies: the images at each scale, [B, h, w, 3] uint8.
          size: [2] int32, (height, width) of the images.
          rows: [n] int32, the region's rows of pixels.
          columns: [m] int32, its columns.
          centre: [2] float32, centre of the tiles in image pixels; see `tile_start`.
        """
        views: list[View] = []
        tile_px = self.config.tile_px
        for copy in copies:
            copy_size = tf.shape(copy)[1:3]
            ratio = tf.cast(copy_size, tf.float32) / tf.cast(size, tf.float32)
            start = tile_start(centre * ratio, copy_size, tile_px)
            tile = copy[:, start[0] :, start[1] :][:, :tile_px, :tile_px]
            # Pixel centres lie at half-integers at every scale.
            down, across = (
                (tf.cast(pixels, tf.float32) + 0.5) * ratio[axis]
                - (0.5 + tf.cast(start[axis], tf.float32))
                for axis, pixels in enumerate((rows, columns))
            )
            last = tf.cast(tf.shape(tile)[2] - 1, tf.float32)
            for mirrored in (False, True) if self.config.flip_average else (False,):
                # One view at a time, so that the features of only one are in memory.
                with tf.control_dependencies([view.logits for view in views[-1:]]):
                    logits = self._logits(tile[:, :, ::-1] if mirrored else tile)
                    # The mirror image is padded on the other side of the scene, so its samples
                    # are not the mirrored samples of the image: positions are mirrored instead.
                    at = last - across if mirrored else across
                    stride = self.network.stride
                    views.append(cut_view(logits, down / stride, at / stride))
        return views

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def _logits(self, tiles: tf.Tensor) -> tf.Tensor:
        """Runs the network; as a separate function it is in the graph only once."""
        return self.network.logits(tiles)


def load_predictor(run: Run, config: PredictConfig, checkpoint_path: Path) -> Predictor:
    """Builds a run's network with the weights of a checkpoint.

    Args:
      run: from `open_run`.
      config: scales, flip and tile size.
      checkpoint_path: from `find_checkpoint`.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: its weights do not match the model.
    """
    model = load_model(run, checkpoint_path, device_precision(run.train.precision))
    return Predictor(frozen_network(model), config, run.long_side_px)


def load_model(run: Run, checkpoint_path: Path, precision: str) -> keras.Model:
    """Builds a run's model with the weights of a checkpoint.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: its weights do not match the model.
    """
    config = replace(run.model, encoder_weights="none")
    model = build_model(config, len(run.label_set.classes), precision=precision)
    load_weight_arrays(model, checkpoint_path)
    return model


def device_precision(trained: str) -> str:
    """Returns the precision for prediction: that of training on a GPU, float32 on a CPU."""
    return trained if gpus() else "float32"


def _resize(images: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Resizes [B, H, W, 3] uint8 bilinearly, with antialiasing."""
    size = tf.shape(images)[1:3]
    scaled = scaled_size(size, scale)
    if tf.reduce_all(tf.equal(size, scaled)):
        resized = images
    else:
        pixels = tf.round(tf.image.resize(images, scaled, antialias=True))
        resized = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
    return tf.ensure_shape(resized, [None, None, None, 3])

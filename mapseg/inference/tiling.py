"""Where tiles lie in an image, and which pixels come from which tile."""

import math

import tensorflow as tf

# The fraction of a tile on each side that is only context.
_MARGIN = 1 / 8
# Encoders sample every 8th to 32nd pixel. Tiles that start on multiples of it are sampled like the
# whole image; otherwise other features are computed, and several percent of the ids differ.
_GRID_PX = 32


def regions(size: tf.Tensor, scaled_size: tf.Tensor, tile_px: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Spaces tiles evenly along a side of the scaled image and assigns them the image's pixels.

    Args:
      size: [] int32 length of the side in the image.
      scaled_size: [] int32 its length in the scaled image.
      tile_px: side of a tile in the scaled image.

    Returns:
      (centres [n] float32, edges [n + 1] int32), in pixels of the unscaled image: the tile around
      centres[i] covers the pixels edges[i] to edges[i + 1], which lie in its inner part except at
      the image border. Tiles without pixels are omitted.
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


def tile_start(centre: tf.Tensor, size: tf.Tensor, tile_px: int) -> tf.Tensor:
    """Returns where a tile starts, on the grid on which encoders sample.

    Args:
      centre: [2] float32 centre of the tile in pixels of the scaled image.
      size: [2] int32 (height, width) of the scaled image.
      tile_px: side of the tile.

    Returns:
      [2] int32 first row and column. The tile starts inside the image; it may end beyond it by less
      than the margin, so that its inner part still reaches the border.
    """
    grid = min(_GRID_PX, 2 ** int(math.log2(tile_px * _MARGIN)))
    start = grid * tf.cast(tf.round((centre - tile_px / 2) / grid), tf.int32)
    last = tf.maximum(size - tile_px, 0)
    return tf.clip_by_value(start, 0, -(-last // grid) * grid)

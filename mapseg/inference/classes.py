"""Logits at a coarse stride -> the class of each pixel, without full-resolution logits.

If four neighbouring samples have the same arg-max, every pixel between them has it too: the logit
that is highest at all four is highest in every weighted average of them. A CPU therefore
interpolates only cells whose corners disagree. A GPU interpolates all pixels, because otherwise it
would have to wait for the count of such cells. Averaging several views also needs all pixels. Both
work in bands of rows, to bound memory.
"""

from typing import NamedTuple

import tensorflow as tf

# Interpolated values held in memory at a time; more would not be faster.
_BAND_VALUES = 2**24
_ANY = tf.TensorShape([None, None, None])


class View(NamedTuple):
    """The network's output for a region, at one scale, mirrored or not.

    Attributes:
      logits: [B, h, w, C] float32, h and w at least 2.
      rows: [n] float32, the position of each row of pixels, in samples.
      columns: [m] float32, of each column; descending in a mirrored view.
    """

    logits: tf.Tensor
    rows: tf.Tensor
    columns: tf.Tensor


class Classes(NamedTuple):
    """The classes of a region's pixels.

    Attributes:
      ids: [B, n, m] uint8.
      confidence: [B] float32 mean of the highest probability: over the samples of a single view,
        over the pixels if several views are averaged.
      probability: [B, n, m] float32 highest probability of each pixel; [B, n, 0] if not requested.
    """

    ids: tf.Tensor
    confidence: tf.Tensor
    probability: tf.Tensor


def cut_view(logits: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> View:
    """Crops a tile's logits [B, h, w, C] to the samples around the given positions."""
    bounds, positions = [], []
    for axis, at in ((1, rows), (2, columns)):
        first, last = tf.minimum(at[0], at[-1]), tf.maximum(at[0], at[-1])
        start = tf.cast(tf.maximum(first, 0.0), tf.int32)
        start = tf.maximum(tf.minimum(start, tf.shape(logits)[axis] - 2), 0)
        bounds.append((start, tf.cast(last, tf.int32) + 2))
        positions.append(at - tf.cast(start, tf.float32))
    (top, bottom), (left, right) = bounds
    logits = logits[:, top:bottom, left:right]
    # A single sample is repeated: all pixels have its logits.
    border = [tf.maximum(2 - tf.shape(logits)[axis], 0) for axis in (1, 2)]
    logits = tf.pad(logits, [[0, 0], [0, border[0]], [0, border[1]], [0, 0]], "SYMMETRIC")
    return View(logits, *positions)


def classes_between(view: View) -> Classes:
    """Returns the arg-max of the interpolated logits; interpolates only where samples disagree."""
    logits = view.logits
    batch, height, width = tf.unstack(tf.shape(logits)[:3])
    row_cells = _cells(view.rows, height)
    column_cells = _cells(view.columns, width)
    block = tf.shape(row_cells.weights)[1] * tf.shape(column_cells.weights)[1]
    # Twice the limit: in most frames a third of the cells are interpolated.
    band = tf.maximum(2 * _BAND_VALUES // logits.shape[-1] // block // (width - 1) // batch, 1)
    blocks = tf.zeros([batch, 0, block * (width - 1)], tf.uint8)
    for first in tf.range(0, height - 1, band):
        tf.autograph.experimental.set_loop_options(
            parallel_iterations=1, shape_invariants=[(blocks, _ANY)]
        )
        last = tf.minimum(first + band, height - 1)
        band_blocks = _blocks(
            logits[:, first : last + 1], row_cells.weights[first:last], column_cells.weights
        )
        blocks = tf.concat([blocks, band_blocks], axis=1)
    side = tf.shape(column_cells.weights)[1]
    down = (row_cells.numbers * (width - 1)) * block + row_cells.places * side
    across = column_cells.numbers * block + column_cells.places
    ids = tf.gather(tf.reshape(blocks, [batch, -1]), down[:, tf.newaxis] + across, axis=1)
    return Classes(ids, _confidence(logits), tf.zeros([batch, tf.size(view.rows), 0]))


def _confidence(logits: tf.Tensor) -> tf.Tensor:
    """Returns the mean over samples [B, h, w, C] of the highest probability: [B]."""
    highest = tf.reduce_max(logits, -1, keepdims=True)
    return tf.reduce_mean(1 / tf.reduce_sum(tf.exp(logits - highest), -1), [1, 2])


class _Cells(NamedTuple):
    """Positions of pixels in the cells between neighbouring samples, along one axis.

    Attributes:
      weights: [cells, k, 2] float32 interpolation weights of the samples before and after, for up
        to k pixels per cell; unused entries are arbitrary.
      numbers: [n] int32, the cell of each pixel.
      places: [n] int32, the pixel's index within its cell.
    """

    weights: tf.Tensor
    numbers: tf.Tensor
    places: tf.Tensor


def _cells(positions: tf.Tensor, samples: tf.Tensor) -> _Cells:
    positions = tf.clip_by_value(positions, 0.0, tf.cast(samples - 1, tf.float32))
    cells = tf.minimum(tf.cast(positions, tf.int32), samples - 2)
    firsts = tf.searchsorted(cells, tf.range(samples - 1))
    count = tf.size(positions)
    places = tf.range(count) - tf.gather(firsts, cells)
    most = tf.reduce_max(places) + 1
    shares = tf.gather(
        positions - tf.cast(cells, tf.float32),
        tf.minimum(firsts[:, tf.newaxis] + tf.range(most), count - 1),
    )
    return _Cells(tf.stack([1 - shares, shares], -1), cells, places)


def _blocks(logits: tf.Tensor, row_weights: tf.Tensor, column_weights: tf.Tensor) -> tf.Tensor:
    """Computes the classes of the pixels within cells.

    Args:
      logits: [B, h, w, C].
      row_weights: [h - 1, k, 2].
      column_weights: [w - 1, l, 2].

    Returns:
      [B, h - 1, (w - 1) * k * l] uint8.
    """
    batch, height, width = tf.unstack(tf.shape(logits)[:3])
    best = tf.cast(tf.argmax(logits, -1, tf.int32), tf.uint8)
    first = best[:, :-1, :-1]
    other_corners = (best[:, :-1, 1:], best[:, 1:, :-1], best[:, 1:, 1:])
    mixed = tf.where(tf.reduce_any([first != corner for corner in other_corners], 0))
    image, row, column = tf.unstack(tf.cast(mixed, tf.int32), axis=1)
    sample = (image * height + row) * width + column
    corners = tf.stack([sample, sample + 1, sample + width, sample + width + 1], 1)
    corners = tf.gather(tf.reshape(logits, [-1, logits.shape[-1]]), corners)
    down = tf.gather(row_weights, row)[:, :, tf.newaxis, :, tf.newaxis]
    across = tf.gather(column_weights, column)[:, tf.newaxis, :, tf.newaxis, :]
    block = tf.shape(row_weights)[1] * tf.shape(column_weights)[1]
    values = tf.matmul(tf.reshape(down * across, [-1, block, 4]), corners)
    mixed_classes = tf.cast(tf.argmax(values, -1, tf.int32), tf.uint8)
    classes = tf.repeat(tf.reshape(first, [-1, 1]), block, axis=1)
    cell = (image * (height - 1) + row) * (width - 1) + column
    classes = tf.tensor_scatter_nd_update(classes, cell[:, tf.newaxis], mixed_classes)
    return tf.reshape(classes, [batch, height - 1, (width - 1) * block])


def average_classes(views: list[View], *, probability: bool) -> Classes:
    """Averages the probabilities of a region's pixels over views and returns the arg-max.

    That of a single view is the arg-max of its logits, which needs no softmax.

    Args:
      views: views of the same n x m pixels.
      probability: whether to return the highest probability of each pixel.
    """
    batch, (height, width) = tf.shape(views[0].logits)[0], map(tf.size, views[0][1:])
    classes = views[0].logits.shape[-1]
    band = tf.maximum(_BAND_VALUES // (classes * len(views)) // width // batch, 1)
    ids = tf.zeros([batch, 0, width], tf.uint8)
    highest = tf.zeros([batch, 0, width])
    total = tf.zeros([batch])
    for first in tf.range(0, height, band):
        tf.autograph.experimental.set_loop_options(
            parallel_iterations=1, shape_invariants=[(ids, _ANY), (highest, _ANY)]
        )
        rows = [view._replace(rows=view.rows[first : first + band]) for view in views]
        scores = _scores(rows)
        ids = tf.concat([ids, tf.cast(tf.argmax(scores, -1, tf.int32), tf.uint8)], axis=1)
        if len(views) > 1:
            total += tf.reduce_sum(tf.reduce_max(scores, -1), [1, 2])
        if probability:
            probabilities = scores if len(views) > 1 else tf.nn.softmax(scores)
            highest = tf.concat([highest, tf.reduce_max(probabilities, -1)], axis=1)
    if not probability:
        highest = tf.zeros([batch, height, 0])
    confidence = total / tf.cast(height * width, tf.float32)
    return Classes(ids, confidence if len(views) > 1 else _confidence(views[0].logits), highest)


def _scores(views: list[View]) -> tf.Tensor:
    """Returns a single view's logits, or the mean probabilities of several: [B, n, m, C]."""
    logits = [interpolate(interpolate(v.logits, v.rows, 1), v.columns, 2) for v in views]
    if len(views) == 1:
        return logits[0]
    return tf.add_n([tf.nn.softmax(values) for values in logits]) / len(views)


def interpolate(values: tf.Tensor, positions: tf.Tensor, axis: int) -> tf.Tensor:
    """Interpolates linearly between the samples of an axis.

    Args:
      values: [B, h, w, C] float32.
      positions: [n] float32, in samples; clamped at both ends.
      axis: 1 for rows, 2 for columns.

    Returns:
      [B, n, w, C] or [B, h, n, C] float32.
    """
    last = tf.shape(values)[axis] - 1
    positions = tf.clip_by_value(positions, 0.0, tf.cast(last, tf.float32))
    low = tf.cast(positions, tf.int32)
    share = positions - tf.cast(low, tf.float32)
    share = tf.reshape(share, [-1, 1, 1] if axis == 1 else [-1, 1])
    below = tf.gather(values, low, axis=axis)
    above = tf.gather(values, tf.minimum(low + 1, last), axis=axis)
    return below + (above - below) * share

"""Losses over labelled pixels only."""

import tensorflow as tf

from mapseg.labels import VOID


def cross_entropy(
    logits: tf.Tensor, label: tf.Tensor, factor: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums the cross entropy of up-sampled logits over the labelled pixels.

    The logits of all pixels (1.1 GB for 16 crops of 513x513 and 66 classes) never exist together.
    Pixels at the same offset from the sample above and left of them, (y, x) below `factor`, are
    interpolated with the same four weights, so each of the factor^2 offsets is a map of the size
    of `logits`; one after the other gives its loss and its gradient, and only their sums are kept.

    The sum and the count are apart so that replicas can add both before they divide: the mean over
    a batch is then the same on one device and on many.

    Args:
      logits: [B, h, w, C] float32; pixel (y, x) reads them bilinearly at (y, x) / factor.
      label: [B, H, W] uint8 ids below C, or VOID; H <= factor * (h - 1) + 1, W likewise.
      factor: pixels from one of the logits to the next.

    Returns:
      (sum, number of labelled pixels), both [] float32; (0, 0) where all is VOID.
    """
    size = factor * tf.shape(logits)[1:3]
    border = size - tf.shape(label)[1:]
    label = tf.pad(label, [[0, 0], [0, border[0]], [0, border[1]]], constant_values=VOID)
    split = [-1, size[0] // factor, factor, size[1] // factor, factor]
    offsets = tf.transpose(tf.reshape(label, split), [2, 4, 0, 1, 3])
    ids = tf.reshape(offsets, [factor**2, -1, size[0] // factor, size[1] // factor])
    pixels = tf.reduce_sum(tf.cast(label != VOID, tf.float32))
    return _sum_over_offsets(logits, ids, factor), pixels


def _sum_over_offsets(logits: tf.Tensor, ids: tf.Tensor, factor: int) -> tf.Tensor:
    """The sum over [factor^2, B, h, w] ids; its gradient is found on the way, not afterwards."""

    def add(offset: tf.Tensor, found: tf.Tensor, slope: tf.Tensor) -> tuple[tf.Tensor, ...]:
        y, x = (tf.cast(i, tf.float32) / factor for i in (offset // factor, offset % factor))
        rows = logits + y * (_next(logits, 1) - logits)
        here = rows + x * (_next(rows, 2) - rows)
        more_found, more = _of_pixels(here, ids[offset])
        # Not a sum of three: TensorFlow would rewrite it, and fail where loops lie within loops.
        more -= x * more - _former(x * more, 2)
        more -= y * more - _former(y * more, 1)
        return offset + 1, found + more_found, slope + more

    @tf.custom_gradient
    def total(logits: tf.Tensor) -> tf.Tensor:
        _, found, slope = tf.while_loop(
            lambda offset, *_: offset < factor**2,
            add,
            (tf.constant(0), tf.zeros([]), tf.zeros_like(logits)),
            parallel_iterations=1,
            maximum_iterations=factor**2,
        )
        return found, lambda upstream: upstream * slope

    return total(logits)


def _of_pixels(logits: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of the cross entropy, and its gradient, with a logit vector for each id."""
    labelled = ids != VOID
    wanted = tf.where(labelled, tf.cast(ids, tf.int32), 0)
    losses, slopes = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=tf.reshape(logits, [-1, logits.shape[-1]]), labels=tf.reshape(wanted, [-1])
    )
    weight = tf.cast(labelled, tf.float32)
    total = tf.reduce_sum(tf.reshape(losses, tf.shape(weight)) * weight)
    return total, tf.reshape(slopes, tf.shape(logits)) * weight[..., tf.newaxis]


def _next(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves maps by one, so that each place holds its next neighbour; the last its own."""
    last = x[:, -1:] if axis == 1 else x[:, :, -1:]
    return tf.concat([x[:, 1:] if axis == 1 else x[:, :, 1:], last], axis)


def _former(x: tf.Tensor, axis: int) -> tf.Tensor:
    """The gradient of `_next`, where the last neighbour has no part in any pixel."""
    moved = x[:, :-1] if axis == 1 else x[:, :, :-1]
    before = [[0, 0], [int(axis == 1), 0], [int(axis == 2), 0], [0, 0]]
    return tf.pad(moved, before)

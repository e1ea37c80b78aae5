"""Losses over labelled pixels only, alone or added up."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID

# (logits [B, h, w, C] float32, label [B, H, W] uint8, factor) -> (sum, labelled pixels)
Loss = Callable[[tf.Tensor, tf.Tensor, int], tuple[tf.Tensor, tf.Tensor]]
# (logits [N, C] float32, ids [N] int32 below C, labelled [N] float32 0 or 1) -> [] float32 mean
_Mean = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

_PIXEL_TERMS = ("ce", "ohem", "focal")  # each a mean over pixels; lovasz ranks them by class
_FOCUS = 2.0  # gamma of the focal loss, as in its paper


def make_loss(config: TrainConfig, class_pixels: Sequence[int] | np.ndarray = ()) -> Loss:
    """Makes the loss that a config names: the sum of those that `+` joins.

    - `ce`: cross entropy; with `label_smoothing` against targets that share so much of their
      weight among all classes (Szegedy et al. 2016, section 7), with `class_weights` times the
      weight of the pixel's class.
    - `ohem`: the same of the hardest pixels alone, `ohem_share` of those at each offset (Wu et al.
      2016, "Bridging Category-level and Instance-level Semantic Image Segmentation").
    - `focal`: cross entropy times (1 - p)^2, p the probability of the right class (Lin et al. 2017,
      equation 4, gamma 2); with `class_weights` also times the class's weight.
    - `lovasz`: Lovasz-softmax, which extends 1 - mean IoU over the classes that are there (Berman
      et al. 2018, equations 8, 9 and 11). It ranks all pixels by each class, so it looks only at
      those that lie on a sample of the logits, one of factor^2.

    What it returns takes logits [B, h, w, C] float32, a label [B, H, W] uint8 of ids below C, or
    VOID, and a factor: pixel (y, x) reads the logits bilinearly at (y, x) / factor, and
    H <= factor * (h - 1) + 1, W likewise. It gives (sum, number of labelled pixels), both []
    float32 and (0, 0) where all is VOID: sum and count are apart so that replicas can add both
    before they divide. The mean of `ce` over a batch is then the same on one device and on many;
    what ranks pixels does so within the batch that it is given.

    The logits of all pixels (1.1 GB for 16 crops of 513x513 and 66 classes) never exist together.
    Pixels at the same offset from the sample above and left of them, (y, x) below `factor`, are
    interpolated with the same four weights, so each of the factor^2 offsets is a map of the size
    of `logits`; one after the other gives its loss and its gradient, and only their sums are kept.

    Args:
      config: `loss`, and the options named above.
      class_pixels: [C] how many pixels of each class there are, for `class_weights`.

    Raises:
      ValueError: class weights without pixels to count.
    """
    weights = class_weights(class_pixels) if config.class_weights else None
    chosen = config.loss.split("+")
    terms = [_make_term(name, config, weights) for name in _PIXEL_TERMS if name in chosen]

    def mean(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        return tf.add_n([term(logits, ids, labelled) for term in terms])

    def loss(logits: tf.Tensor, label: tf.Tensor, factor: int) -> tuple[tf.Tensor, tf.Tensor]:
        ids = _by_offset(logits, label, factor)
        pixels, total = tf.reduce_sum(tf.cast(label != VOID, tf.float32)), tf.zeros([])
        if terms:
            total += _sum_over_offsets(mean, logits, ids, factor)
        if "lovasz" in chosen:
            total += pixels * _lovasz_softmax(*_flat(logits, ids[0]))
        return total, pixels

    return loss


def _make_term(name: str, config: TrainConfig, weights: np.ndarray | None) -> _Mean:
    """Makes the mean over pixels that one of `_PIXEL_TERMS` takes."""

    def weigh(losses: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        return losses * (labelled if weights is None else labelled * tf.gather(weights, ids))

    def ce(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        losses = weigh(_cross_entropies(logits, ids, config.label_smoothing), ids, labelled)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(labelled))

    def ohem(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        losses = weigh(_cross_entropies(logits, ids, config.label_smoothing), ids, labelled)
        hardest_first = tf.sort(losses, direction="DESCENDING")
        count = tf.math.ceil(config.ohem_share * tf.reduce_sum(labelled))
        taken = tf.range(tf.cast(tf.size(ids), tf.float32)) < count
        return tf.math.divide_no_nan(tf.reduce_sum(tf.where(taken, hardest_first, 0)), count)

    def focal(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        found = _cross_entropies(logits, ids)
        losses = weigh(found * (1 - tf.exp(-found)) ** _FOCUS, ids, labelled)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(labelled))

    return {"ce": ce, "ohem": ohem, "focal": focal}[name]


def class_weights(pixels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Weighs classes by how rare they are: 1 / ln(1.02 + share) (Paszke et al. 2016, ENet).

    Args:
      pixels: [C] how many there are of each class.

    Returns:
      [C] float32, scaled so that the mean over the pixels is 1: the learning rate keeps its
      meaning. The rarest class weighs at most 36 times as much as one that is everything.

    Raises:
      ValueError: no pixels.
    """
    counts = np.asarray(pixels, np.float64)
    if not counts.sum():
        raise ValueError(
            "class_weights must have the pixels of every class, which the manifest counts; got "
            "none. Remedy: --noclass_weights"
        )
    shares = counts / counts.sum()
    weights = 1 / np.log(1.02 + shares)
    return (weights / (weights @ shares)).astype(np.float32)


def _cross_entropies(logits: tf.Tensor, ids: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """[N] float32 of [N, C] logits and [N] ids.

    The largest probability is 1 / sum(exp(logits - largest logit)), which gives log-sum-exp. On a
    CPU this and its gradient take half the time of TensorFlow's operation.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(ids, classes)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / classes

    @tf.custom_gradient
    def run(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        probabilities = tf.nn.softmax(logits)
        log_sum_exp = tf.reduce_max(logits, 1) - tf.math.log(tf.reduce_max(probabilities, 1))
        losses = log_sum_exp - tf.reduce_sum(targets * logits, 1)
        return losses, lambda upstream: (probabilities - targets) * upstream[:, tf.newaxis]

    return run(logits)


def _lovasz_softmax(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
    """The mean of the Lovasz extensions of the Jaccard losses of the classes that are there."""
    classes = logits.shape[-1]
    right = tf.transpose(tf.one_hot(ids, classes) * labelled[:, tf.newaxis])  # [C, N]
    errors = tf.abs(right - tf.transpose(tf.nn.softmax(logits)) * labelled)
    # Pixels without a label have no error: they come last, and count for nothing.
    errors, order = tf.math.top_k(errors, tf.size(ids))
    right_sorted = tf.gather(right, order, batch_dims=1)
    total = tf.reduce_sum(right, 1, keepdims=True)
    intersection = total - tf.cumsum(right_sorted, 1)
    union = total + tf.cumsum(1 - right_sorted, 1)
    jaccard = 1 - intersection / union  # loss when the errors up to here are made in full
    steps = tf.concat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    present = tf.cast(total[:, 0] > 0, tf.float32)
    of_classes = tf.reduce_sum(errors * tf.stop_gradient(steps), 1)
    return tf.math.divide_no_nan(tf.reduce_sum(of_classes * present), tf.reduce_sum(present))


def _by_offset(logits: tf.Tensor, label: tf.Tensor, factor: int) -> tf.Tensor:
    """Sorts the ids of pixels by their offset from the sample before: [factor^2, B * h * w]."""
    size = factor * tf.shape(logits)[1:3]
    border = size - tf.shape(label)[1:]
    label = tf.pad(label, [[0, 0], [0, border[0]], [0, border[1]]], constant_values=VOID)
    split = [-1, size[0] // factor, factor, size[1] // factor, factor]
    return tf.reshape(tf.transpose(tf.reshape(label, split), [2, 4, 0, 1, 3]), [factor**2, -1])


def _flat(logits: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Makes of logits [..., C] and as many ids what a `_Mean` takes."""
    labelled = ids != VOID
    wanted = tf.where(labelled, tf.cast(ids, tf.int32), 0)
    return tf.reshape(logits, [-1, logits.shape[-1]]), wanted, tf.cast(labelled, tf.float32)


def _sum_over_offsets(mean: _Mean, logits: tf.Tensor, ids: tf.Tensor, factor: int) -> tf.Tensor:
    """The sum over [factor^2, B * h * w] ids; its gradient is found on the way, not afterwards."""

    def add_row(y: tf.Tensor, found: tf.Tensor, slope: tf.Tensor) -> tuple[tf.Tensor, ...]:
        share = tf.cast(y, tf.float32) / factor
        row = logits + share * (_next(logits, 1) - logits)
        to_next = _next(row, 2) - row

        def add(x: tf.Tensor, found: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            share = tf.cast(x, tf.float32) / factor
            more_found, more = _with_gradient(mean, row + share * to_next, ids[y * factor + x])
            return x + 1, found + more_found, sums[0] + more, sums[1] + share * more

        found, of_row, of_next = _repeat(factor, add, found, zeros, zeros)
        of_row = _spread(of_row, of_next, 2)
        return y + 1, found, slope + _spread(of_row, share * of_row, 1)

    @tf.custom_gradient
    def total(logits: tf.Tensor) -> tf.Tensor:
        found, slope = _repeat(factor, add_row, tf.zeros([]), zeros)
        return found, lambda upstream: upstream * slope

    zeros = tf.zeros_like(logits)
    return total(logits)


def _repeat(
    count: int, body: Callable[..., tuple[tf.Tensor, ...]], *sums: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Calls (number, *sums) -> (number + 1, *sums) `count` times, one after the other."""
    _, *sums = tf.while_loop(
        lambda number, *_: number < count,
        body,
        (tf.constant(0), *sums),
        parallel_iterations=1,
        maximum_iterations=count,
    )
    return tuple(sums)


def _with_gradient(mean: _Mean, logits: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A loss times the labelled pixels, and its gradient, with a logit vector for each id."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        flat, wanted, labelled = _flat(logits, ids)
        found = mean(flat, wanted, labelled) * tf.reduce_sum(labelled)
    return found, tape.gradient(found, logits)


def _next(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves maps by one, so that each place holds its next neighbour; the last its own."""
    last = x[:, -1:] if axis == 1 else x[:, :, -1:]
    return tf.concat([x[:, 1:] if axis == 1 else x[:, :, 1:], last], axis)


def _spread(x: tf.Tensor, of_next: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves the part `of_next` of a gradient to the next neighbour: the inverse of `_next`.

    The last neighbour has no part in any pixel.
    """
    moved = of_next[:, :-1] if axis == 1 else of_next[:, :, :-1]
    moved = tf.pad(moved, [[0, 0], [int(axis == 1), 0], [int(axis == 2), 0], [0, 0]])
    # Not a sum of three: TensorFlow would rewrite it, and fail where loops lie within loops.
    return x - (of_next - moved)

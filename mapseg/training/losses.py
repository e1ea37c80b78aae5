"""Losses over the labelled pixels, alone or summed."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID

# (logits [B, h, w, C] float32, label [B, H, W] uint8, factor) -> (sum, labelled pixels)
Loss = Callable[[tf.Tensor, tf.Tensor, int], tuple[tf.Tensor, tf.Tensor]]
# (logits [N, C] float32, ids [N] int32 below C, labelled [N] float32 0 or 1) -> [] float32 mean
_Mean = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

_PIXEL_TERMS = ("ce", "ohem", "focal")  # each a mean over pixels; lovasz ranks pixels by class
_FOCUS = 2.0  # gamma of the focal loss, as in its paper


def make_loss(config: TrainConfig, class_pixels: Sequence[int] | np.ndarray = ()) -> Loss:
    """Makes the loss that a config names: the sum of the terms joined by `+`.

    - `ce`: cross entropy. `label_smoothing` is the share of the target spread over all classes
      (Szegedy et al. 2016, section 7); `class_weights` weighs each pixel by its class.
    - `ohem`: the same over the hardest share of the pixels, `ohem_share`, at each offset (Wu et al.
      2016, "Bridging Category-level and Instance-level Semantic Image Segmentation").
    - `focal`: cross entropy times (1 - p)^2, p the probability of the true class (Lin et al. 2017,
      equation 4, gamma 2); `class_weights` also applies.
    - `lovasz`: Lovasz-softmax, which extends 1 - mean IoU over the classes present (Berman et al.
      2018, equations 8, 9 and 11). It sorts the pixels once per class, so it uses only those that
      lie on a sample of the logits, one in factor^2.

    The loss accepts logits [B, h, w, C] float32, a label [B, H, W] uint8 of ids below C or VOID,
    and a factor: pixel (y, x) samples the logits bilinearly at (y, x) / factor, and
    H <= factor * (h - 1) + 1, W likewise. It returns (sum, number of labelled pixels), both []
    float32, and (0, 0) if all pixels are VOID. Sum and count are separate so that replicas can
    add up both before dividing: the mean of `ce` over a batch is then the same on one device and
    on many. `ohem` and `lovasz` rank pixels within the batch of one call.

    The logits of all pixels (1.1 GB for 16 crops of 513x513 and 66 classes) never exist at once.
    Pixels at the same offset from the sample above and left of them, (y, x) below `factor`, are
    interpolated with the same four weights, so each of the factor^2 offsets is a map of the size
    of `logits`. Loss and gradient are computed for one offset at a time, and only sums are kept.

    Args:
      config: `loss`, and the options named above.
      class_pixels: [C] number of pixels of each class, for `class_weights`.

    Raises:
      ValueError: `class_weights` without any pixels in `class_pixels`.
    """
    weights = class_weights(class_pixels) if config.class_weights else None
    names = config.loss.split("+")
    terms = [_make_term(name, config, weights) for name in _PIXEL_TERMS if name in names]

    def mean(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        return tf.add_n([term(logits, ids, labelled) for term in terms])

    def loss(logits: tf.Tensor, label: tf.Tensor, factor: int) -> tuple[tf.Tensor, tf.Tensor]:
        ids = _by_offset(logits, label, factor)
        pixels, total = tf.reduce_sum(tf.cast(label != VOID, tf.float32)), tf.zeros([])
        if terms:
            total += _sum_over_offsets(mean, logits, ids, factor)
        if "lovasz" in names:
            total += pixels * _lovasz_softmax(*_flat(logits, ids[0]))
        return total, pixels

    return loss


def _make_term(name: str, config: TrainConfig, weights: np.ndarray | None) -> _Mean:
    """Makes the mean of one of `_PIXEL_TERMS` over the pixels."""

    def weigh(losses: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        return losses * (labelled if weights is None else labelled * tf.gather(weights, ids))

    def ce(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        losses = weigh(_cross_entropies(logits, ids, config.label_smoothing), ids, labelled)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(labelled))

    def ohem(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        losses = weigh(_cross_entropies(logits, ids, config.label_smoothing), ids, labelled)
        hardest_first = tf.sort(losses, direction="DESCENDING")
        count = tf.math.ceil(config.ohem_share * tf.reduce_sum(labelled))
        is_hard = tf.range(tf.cast(tf.size(ids), tf.float32)) < count
        return tf.math.divide_no_nan(tf.reduce_sum(tf.where(is_hard, hardest_first, 0)), count)

    def focal(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
        entropies = _cross_entropies(logits, ids)
        losses = weigh(entropies * (1 - tf.exp(-entropies)) ** _FOCUS, ids, labelled)
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(labelled))

    return {"ce": ce, "ohem": ohem, "focal": focal}[name]


def class_weights(pixels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Weighs classes by how rare they are: 1 / ln(1.02 + share) (Paszke et al. 2016, ENet).

    Args:
      pixels: [C] number of pixels of each class.

    Returns:
      [C] float32, scaled so that the mean over the pixels is 1 and the learning rate keeps its
      meaning. The rarest class weighs at most 36 times as much as a class with all pixels.

    Raises:
      ValueError: there are no pixels.
    """
    counts = np.asarray(pixels, np.float64)
    if not counts.sum():
        raise ValueError(
            "class_weights must have the pixels of every class, as counted in the manifest; got "
            "none. Remedy: --noclass_weights"
        )
    shares = counts / counts.sum()
    weights = 1 / np.log(1.02 + shares)
    return (weights / (weights @ shares)).astype(np.float32)


def _cross_entropies(logits: tf.Tensor, ids: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Returns [N] float32 from [N, C] logits and [N] ids.

    log-sum-exp is computed from the largest probability, 1 / sum(exp(logits - largest logit)). On
    a CPU this and its gradient take half the time of TensorFlow's operation.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(ids, classes)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / classes

    @tf.custom_gradient
    def run(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        probabilities = tf.nn.softmax(logits)
        # Subtract logits first: their difference is exact, however large they are.
        losses = tf.reduce_max(logits, 1) - tf.reduce_sum(targets * logits, 1)
        losses -= tf.math.log(tf.reduce_max(probabilities, 1))
        return losses, lambda upstream: (probabilities - targets) * upstream[:, tf.newaxis]

    return run(logits)


def _lovasz_softmax(logits: tf.Tensor, ids: tf.Tensor, labelled: tf.Tensor) -> tf.Tensor:
    """Returns the Lovasz extension of the Jaccard loss, averaged over the classes present."""
    classes = logits.shape[-1]
    targets = tf.transpose(tf.one_hot(ids, classes) * labelled[:, tf.newaxis])  # [C, N]
    errors = tf.abs(targets - tf.transpose(tf.nn.softmax(logits)) * labelled)
    # Unlabelled pixels have no error: they are sorted last and contribute nothing.
    errors, order = tf.math.top_k(errors, tf.size(ids))
    sorted_targets = tf.gather(targets, order, batch_dims=1)
    total = tf.reduce_sum(targets, 1, keepdims=True)
    intersection = total - tf.cumsum(sorted_targets, 1)
    union = total + tf.cumsum(1 - sorted_targets, 1)
    jaccard = 1 - intersection / union  # loss if exactly the pixels up to here are wrong
    steps = tf.concat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    present = tf.cast(total[:, 0] > 0, tf.float32)
    class_losses = tf.reduce_sum(errors * tf.stop_gradient(steps), 1)
    return tf.math.divide_no_nan(tf.reduce_sum(class_losses * present), tf.reduce_sum(present))


def _by_offset(logits: tf.Tensor, label: tf.Tensor, factor: int) -> tf.Tensor:
    """Groups pixel ids by their offset from the sample above and left: [factor^2, B * h * w]."""
    size = factor * tf.shape(logits)[1:3]
    border = size - tf.shape(label)[1:]
    ids = tf.cast(label, tf.float32)  # oneDNN cannot transpose integers, and prints an error line
    ids = tf.pad(ids, [[0, 0], [0, border[0]], [0, border[1]]], constant_values=VOID)
    split = [-1, size[0] // factor, factor, size[1] // factor, factor]
    return tf.reshape(tf.transpose(tf.reshape(ids, split), [2, 4, 0, 1, 3]), [factor**2, -1])


def _flat(logits: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Converts logits [..., C] and their ids to the arguments of a `_Mean`."""
    labelled = ids != VOID
    class_ids = tf.where(labelled, tf.cast(ids, tf.int32), 0)
    return tf.reshape(logits, [-1, logits.shape[-1]]), class_ids, tf.cast(labelled, tf.float32)


def _sum_over_offsets(mean: _Mean, logits: tf.Tensor, ids: tf.Tensor, factor: int) -> tf.Tensor:
    """Sums the loss over [factor^2, B * h * w] ids; computes the gradient in the same pass."""
    zeros = tf.zeros_like(logits)

    def add_row(y: tf.Tensor, loss_sum: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, ...]:
        share = tf.cast(y, tf.float32) / factor
        row = logits + share * (_next(logits, 1) - logits)
        to_next = _next(row, 2) - row

        def add(x: tf.Tensor, loss_sum: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            share = tf.cast(x, tf.float32) / factor
            loss, slope = _with_gradient(mean, row + share * to_next, ids[y * factor + x])
            return x + 1, loss_sum + loss, sums[0] + slope, sums[1] + share * slope

        loss_sum, row_gradient, next_part = _repeat(factor, add, loss_sum, zeros, zeros)
        row_gradient = _move_to_next(row_gradient, next_part, 2)
        gradient += _move_to_next(row_gradient, share * row_gradient, 1)
        return y + 1, loss_sum, gradient

    @tf.custom_gradient
    def total(logits: tf.Tensor) -> tf.Tensor:
        loss_sum, gradient = _repeat(factor, add_row, tf.zeros([]), zeros)
        return loss_sum, lambda upstream: upstream * gradient

    return total(logits)


def _repeat(
    count: int, body: Callable[..., tuple[tf.Tensor, ...]], *sums: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Calls `body`, (number, *sums) -> (number + 1, *sums), `count` times in sequence."""
    _, *sums = tf.while_loop(
        lambda number, *_: number < count,
        body,
        (tf.constant(0), *sums),
        parallel_iterations=1,
        maximum_iterations=count,
    )
    return tuple(sums)


def _with_gradient(mean: _Mean, logits: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `mean` times the labelled pixel count, and its gradient; one logit vector per id."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        flat, class_ids, labelled = _flat(logits, ids)
        loss = mean(flat, class_ids, labelled) * tf.reduce_sum(labelled)
    return loss, tape.gradient(loss, logits)


def _next(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Shifts maps by one sample: each takes its next neighbour's value, the last keeps its own."""
    last = x[:, -1:] if axis == 1 else x[:, :, -1:]
    return tf.concat([x[:, 1:] if axis == 1 else x[:, :, 1:], last], axis)


def _move_to_next(gradient: tf.Tensor, next_part: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves a part of a gradient to the next neighbour: the transpose of `_next`.

    No pixel lies beyond the last sample, so its part is zero.
    """
    moved = next_part[:, :-1] if axis == 1 else next_part[:, :, :-1]
    moved = tf.pad(moved, [[0, 0], [int(axis == 1), 0], [int(axis == 2), 0], [0, 0]])
    # Not a sum of three: TensorFlow would rewrite it, and fails to do so in nested loops.
    return gradient - (next_part - moved)

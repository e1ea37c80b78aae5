"""Joint augmentations: (image, label, seed) -> (image, label), the same in a graph and eagerly.

All randomness comes from the seed that is passed in. An image is [H, W, 3] uint8 and a label
[H, W] uint8 of train ids or VOID; both come out so.
"""

import tensorflow as tf

from mapseg.config import TrainConfig
from mapseg.labels import VOID

# Luma of ITU-R BT.601, the weights of greyscale conversion in JPEG.
_LUMA = (0.299, 0.587, 0.114)


def random_crop(
    image: tf.Tensor, label: tf.Tensor, size: tuple[int, int] | tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts the same random window out of an image and its label map.

    A side shorter than the window is padded: the image black, the label VOID.

    Args:
      image: [H, W, 3] uint8.
      label: [H, W] uint8 train ids, or VOID.
      size: (height, width) of the window in pixels, both positive.
      seed: [2] int32; the same seed cuts the same window.

    Returns:
      The pair ([height, width, 3] uint8, [height, width] uint8).
    """
    if not tf.is_tensor(size) and min(size) <= 0:
        raise ValueError(f"size must be two positive pixel counts; got {size}")
    short = tf.maximum(size - tf.shape(label), 0)
    edges = [[0, short[0]], [0, short[1]]]
    image = tf.pad(image, [*edges, [0, 0]])
    label = tf.pad(label, edges, constant_values=VOID)
    both = tf.concat([image, label[..., tf.newaxis]], axis=-1)
    window = tf.image.stateless_random_crop(both, tf.concat([size, [4]], 0), seed)
    return window[..., :3], window[..., 3]


def random_scale(config: TrainConfig, seed: tf.Tensor) -> tf.Tensor:
    """Draws the factor by which a crop is enlarged.

    Args:
      config: `min_scale` to `max_scale` in steps of `scale_step`, or any between where that is 0.
      seed: [2] int32.

    Returns:
      [] float32.
    """
    low, high, step = config.min_scale, config.max_scale, config.scale_step
    if step == 0:
        return tf.random.stateless_uniform([], seed, low, high)
    choices = int((high - low) / step + 1e-6) + 1
    drawn = tf.random.stateless_uniform([], seed, 0, choices, tf.int32)
    return low + step * tf.cast(drawn, tf.float32)


def random_scaled_crop(
    image: tf.Tensor, label: tf.Tensor, config: TrainConfig, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts a random window and resizes it to `config.crop_size`.

    The window is `crop_size / scale` in the stored image's pixels, so a large image is never
    resized whole. A scale of 1 gives the stored pixels. The label is resized to the nearest.
    """
    scale_seed, crop_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    size = tf.constant(config.crop_size)
    scale = random_scale(config, scale_seed)
    window = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) / scale), tf.int32), 1)
    image, label = random_crop(image, label, window, crop_seed)
    if (config.min_scale, config.max_scale) != (1, 1):
        resized = tf.image.resize(image, size, antialias=True)
        image = tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)
        label = tf.image.resize(label[..., tf.newaxis], size, method="nearest")[..., 0]
    image = tf.ensure_shape(image, [*config.crop_size, 3])
    return image, tf.ensure_shape(label, config.crop_size)


def random_flip(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors both left to right, for half of the seeds."""
    mirrored = tf.random.stateless_uniform([], seed) < 0.5
    both = tf.concat([image, label[..., tf.newaxis]], axis=-1)
    both = tf.where(mirrored, both[:, ::-1], both)
    return both[..., :3], both[..., 3]


def color_jitter(image: tf.Tensor, strength: float, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast and saturation by random factors.

    Args:
      image: [H, W, 3] uint8.
      strength: each factor is drawn from 1 - strength to 1 + strength; below 1.
      seed: [2] int32.

    Returns:
      [H, W, 3] uint8.
    """
    factors = tf.random.stateless_uniform([3], seed, 1 - strength, 1 + strength)
    brightness, contrast, saturation = tf.unstack(factors)
    pixels = tf.cast(image, tf.float32) * brightness
    grey = tf.reduce_sum(pixels * _LUMA, -1, keepdims=True)
    pixels = grey + (pixels - grey) * saturation
    mean = tf.reduce_mean(grey)
    pixels = mean + (pixels - mean) * contrast
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)


def augment(
    image: tf.Tensor, label: tf.Tensor, config: TrainConfig, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes one training crop: scale and crop, flip, colour.

    Args:
      image: [H, W, 3] uint8 of any size.
      label: [H, W] uint8.
      config: crop size and strengths.
      seed: [2] int32; the crop is a pure function of it.

    Returns:
      The pair ([crop_height, crop_width, 3] uint8, [crop_height, crop_width] uint8).
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    image, label = random_scaled_crop(image, label, config, seeds[0])
    if config.flip:
        image, label = random_flip(image, label, seeds[1])
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, seeds[2])
    return image, label

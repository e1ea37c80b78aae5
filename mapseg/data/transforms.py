"""Joint augmentations: (image, label, random numbers) -> (image, label).

All randomness comes from the generator that is passed in. Images are [H, W, 3] uint8, labels
[H, W] uint8 of train ids or VOID, before and after. The functions use OpenCV, as `tf.image`
takes ten times as long on one core (docs/benchmarks.md).
"""

import cv2
import numpy as np

from mapseg.config import TrainConfig
from mapseg.data.tiles import Window

# Luma of ITU-R BT.601, the weights of greyscale conversion in JPEG.
_LUMA = np.array([0.299, 0.587, 0.114])

_SHRINKS = (8, 4, 2)


def random_scale(config: TrainConfig, rng: np.random.Generator) -> float:
    """Draws the scale factor of a crop.

    Args:
      config: `min_scale` to `max_scale` in steps of `scale_step`; if that is 0, any in between.
      rng: one number is drawn from it.
    """
    low, high, step = config.min_scale, config.max_scale, config.scale_step
    if step == 0:
        return low + (high - low) * rng.random()
    choices = int((high - low) / step + 1e-6) + 1
    return low + step * int(choices * rng.random())


def shrink_of(scale: float) -> int:
    """Returns the factor by which a JPEG may be shrunk while decoding for a crop of this scale."""
    return next((shrink for shrink in _SHRINKS if scale * shrink <= 1), 1)


def random_window(
    size: tuple[int, int],
    crop_size: tuple[int, int],
    scale: float,
    rng: np.random.Generator,
    around: tuple[int, int] | None = None,
) -> Window:
    """Draws the window that becomes a crop when it is resized by `scale`.

    All positions within the image are equally likely. If the image is smaller than the window, it
    lies at the window's top left, and the rest must be padded.

    Args:
      size: (height, width) of the image.
      crop_size: (height, width) of the crop, both positive.
      scale: the factor by which the window is resized.
      rng: two numbers are drawn from it.
      around: a pixel (row, column) of the image that the window must contain; all positions of
        the pixel in the window are then equally likely, as far as the image allows.

    Returns:
      A window whose values are multiples of `shrink_of(scale)`.
    """
    shrink = shrink_of(scale)
    spans = []
    for axis in (0, 1):
        length = max(round(crop_size[axis] / scale / shrink), 1) * shrink
        first, last = 0, max(size[axis] - length, 0)
        if around is not None:
            first = min(max(around[axis] - length + 1, 0), last)
            last = min(around[axis], last)
        first, last = -(-first // shrink), last // shrink
        spans.append((shrink * (first + int((last - first + 1) * rng.random())), length))
    (top, height), (left, width) = spans
    return Window(top, left, height, width)


def pad(pixels: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Pads an image or a label at the bottom and the right to (height, width)."""
    bottom, right = size[0] - pixels.shape[0], size[1] - pixels.shape[1]
    if not (bottom or right):
        return pixels
    border = [value] * 3
    return cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=border)


def random_flip(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors image and label left to right, with probability 1/2."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast and saturation by random factors.

    Brightness scales all values, saturation the distance to the pixel's own grey, and contrast the
    distance to the mean grey. Together they are one affine map of the colours.

    Args:
      image: [H, W, 3] uint8.
      strength: each factor is drawn from 1 - strength to 1 + strength; less than 1.
      rng: three numbers are drawn from it.

    Returns:
      [H, W, 3] uint8.
    """
    brightness, contrast, saturation = 1 + strength * (2 * rng.random(3) - 1)
    mean = brightness * float(_LUMA @ cv2.mean(image)[:3])
    colors = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = np.hstack([contrast * brightness * colors, np.full((3, 1), mean * (1 - contrast))])
    return cv2.transform(image, matrix)


def augment(
    image: np.ndarray, label: np.ndarray, config: TrainConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flips a crop and jitters its colours, as configured.

    Args:
      image: [H, W, 3] uint8.
      label: [H, W] uint8.
      config: which augmentations to apply, and how strongly.
      rng: the result is a pure function of its numbers.

    Returns:
      The image and the label, of the same sizes.
    """
    if config.flip:
        image, label = random_flip(image, label, rng)
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, rng)
    return image, label

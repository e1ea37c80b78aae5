"""Groups consecutive frames of one size into batches, and segments any sequence of frames."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mapseg import machine

if TYPE_CHECKING:
    from mapseg.inference.predictor import Predictor, Segmentation

_GPU_BATCH = 8

T = TypeVar("T")


def default_batch_size() -> int:
    """Returns how many frames fit best into a forward pass of this machine's device."""
    return _GPU_BATCH if machine.gpus() else 1


def group_frames(
    items: Iterable[T], image_of: Callable[[T], np.ndarray | None], batch_size: int
) -> Iterator[list[T]]:
    """Groups consecutive items so that all images in a group have the same shape.

    Args:
      items: at most one group of them is read ahead.
      image_of: returns the image of an item; None for an item that fits into any group.
      batch_size: maximum number of items in a group.
    """
    group: list[T] = []
    shape: tuple[int, ...] | None = None
    for item in items:
        image = image_of(item)
        if image is not None:
            if shape not in (None, image.shape):
                yield group
                group = []
            shape = image.shape
        group.append(item)
        if len(group) == batch_size:
            yield group
            group, shape = [], None
    if group:
        yield group


def segment_frames(
    predictor: "Predictor", frames: Iterable[Any], *, probability: bool = False
) -> Iterator["Segmentation"]:
    """Segments frames of any sizes, a batch at a time, and yields the results in order.

    It reads at most one batch of frames ahead. If a batch fails, for instance because its memory
    does not suffice, its frames are segmented one by one.

    Args:
      predictor: the network.
      frames: see `check_frame`; may be endless, and may yield the same array with new content.
      probability: see `Predictor.segment`.

    Raises:
      ValueError: `check_frame` rejects a frame; after the results of the earlier frames.
    """
    items = _frames_then_error(frames)
    for group in group_frames(items, _to_segment, default_batch_size()):
        images = [item for item in group if not isinstance(item, Exception)]
        if images:
            yield from _segment_batch(predictor, np.stack(images), probability=probability)
        if isinstance(group[-1], Exception):
            raise group[-1]


def one_frame(frames: Any) -> np.ndarray | None:
    """Returns `frames` as an array if it is one frame [H, W, 3] uint8; None if it is several.

    Raises:
      ValueError: it is neither a frame, nor an array [B, H, W, 3], nor an iterable.
    """
    if hasattr(frames, "__array__"):
        return None if np.ndim(frames) == 4 else check_frame(frames, "a frame")
    if isinstance(frames, Iterable) and not isinstance(frames, str | bytes):
        return None
    raise ValueError(
        "frames must be an array [H, W, 3] or [B, H, W, 3] uint8 (RGB), or an iterable of arrays; "
        f"got {type(frames).__name__}"
    )


def check_frame(frame: Any, name: str) -> np.ndarray:
    """Returns a frame as an array [H, W, 3] uint8.

    Args:
      frame: an array, or what NumPy converts to one without interpretation, as a tensor.
      name: for the error message.

    Raises:
      ValueError: it has another type, shape or dtype, or no pixels.
    """
    expected = f"{name} must be an array [H, W, 3] uint8 (RGB) with at least one pixel"
    if not hasattr(frame, "__array__"):
        raise ValueError(f"{expected}; got {type(frame).__name__}")
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{expected}; got {array.dtype} {list(array.shape)}")
    return array


def _frames_then_error(frames: Iterable[Any]) -> Iterator[np.ndarray | Exception]:
    """Yields the frames, and finally the error that ended them, if any.

    As an item, the error does not precede the results of the frames before it.
    """
    try:
        for number, frame in enumerate(frames):
            # A copy, as cameras and video readers may reuse their memory for the next frame.
            yield np.array(check_frame(frame, f"frame {number}"))
    except Exception as error:  # of any kind: also of the caller's own iterator
        yield error


def _to_segment(item: np.ndarray | Exception) -> np.ndarray | None:
    return None if isinstance(item, Exception) else item


def _segment_batch(
    predictor: "Predictor", images: np.ndarray, *, probability: bool
) -> Iterator["Segmentation"]:
    try:
        results = list(predictor.segment_batch(images, probability=probability))
    except Exception:  # of any kind: frame by frame, the one with the error raises it again
        if len(images) == 1:
            raise
        for image in images:
            yield predictor.segment(image, probability=probability)
    else:
        yield from results

"""One sample <-> one tf.train.Example: image, label, and the label again in tiles.

A record has the field names of TF DeepLab: the image as its original JPEG or PNG bytes, and the
label as a greyscale PNG of *source* ids. Two fields of our own, which other readers ignore, hold
the label in tiles (tiles.py) and the tile size. Label sets are applied while reading, so one
conversion serves all of them.

Only the functions that decode import TensorFlow: the conversion's workers import this module to
write records, and TensorFlow would cost each of them 5 s and half a gigabyte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mapseg.data.tiles import TILE_PX

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Sample:
    """A record whose image and label are still encoded.

    Attributes:
      key: the sample's key.
      size: (height, width) of both image and label.
      image: a JPEG or PNG.
      label: a greyscale PNG of source ids.
      tiles: the label again in tiles; empty in records written by other tools.
    """

    key: str
    size: tuple[int, int]
    image: bytes
    label: bytes
    tiles: tuple[bytes, ...]

    # Cached: several windows may be cut from an image or label that cannot be decoded in part.

    @cached_property
    def whole_image(self) -> np.ndarray:
        """The decoded image, [H, W, 3] uint8."""
        import tensorflow as tf

        with tf.device("CPU"):
            image = decode_image(self.image).numpy()
        return self._check_size(image, "image")

    @cached_property
    def whole_label(self) -> np.ndarray:
        """The decoded label, [H, W] uint8 source ids."""
        label = cv2.imdecode(np.frombuffer(self.label, np.uint8), cv2.IMREAD_UNCHANGED)
        if label is None or label.ndim != 2 or label.dtype != np.uint8:
            raise ValueError(
                f"{self.key}: the label must be a valid 8-bit greyscale PNG of ids; got other data"
            )
        return self._check_size(label, "label")

    def _check_size(self, pixels: np.ndarray, name: str) -> np.ndarray:
        if pixels.shape[:2] != self.size:
            raise ValueError(
                f"{self.key}: the {name} must have the record's size {self.size}; "
                f"got {pixels.shape[:2]}"
            )
        return pixels


def parse_sample(record: bytes) -> Sample:
    """Parses a record.

    Raises:
      ValueError: it is not a tf.train.Example, lacks a field, or has tiles of another size than
        TILE_PX.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"must be a tf.train.Example; got {error}") from error
    fields = sorted(features)  # before any lookup, as looking up a missing field adds it

    def number(name: str, default: int = 0) -> int:
        values = features[name].int64_list.value
        return int(values[0]) if values else default

    def data(name: str) -> bytes:
        values = features[name].bytes_list.value
        if not values:
            raise ValueError(f"a record must have the field {name}; got {', '.join(fields)}")
        return bytes(values[0])

    tile_px = number("image/segmentation/class/tile_px", TILE_PX)
    if tile_px != TILE_PX:
        raise ValueError(
            f"label tiles must be {TILE_PX} pixels wide; got {tile_px}. Remedy: convert again"
        )
    return Sample(
        key=data("image/filename").decode(errors="replace"),
        size=(number("image/height"), number("image/width")),
        image=data("image/encoded"),
        label=data("image/segmentation/class/encoded"),
        tiles=tuple(features["image/segmentation/class/tiles"].bytes_list.value),
    )


def decode_image(encoded: "tf.Tensor") -> "tf.Tensor":
    """Decodes a JPEG or PNG to [H, W, 3] uint8 with the exact DCT, as OpenCV does."""
    import tensorflow as tf

    # Despite its name decode_jpeg reads PNG too.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def encode_sample(
    name: str,
    image: bytes,
    image_format: str,
    size: tuple[int, int],
    channels: int,
    label: bytes,
    tiles: Sequence[bytes],
) -> bytes:
    """Encodes one sample; equal arguments give equal bytes.

    Args:
      name: the sample's key.
      image: an encoded image.
      image_format: jpeg or png.
      size: (height, width) of both image and label.
      channels: of the image.
      label: an 8-bit greyscale PNG of source ids.
      tiles: the label again, from `tiles.encode_tiles`.

    Returns:
      A serialized tf.train.Example.
    """
    return _example(
        {
            "image/channels": channels,
            "image/encoded": image,
            "image/filename": name.encode(),
            "image/format": image_format.encode(),
            "image/height": size[0],
            "image/segmentation/class/encoded": label,
            "image/segmentation/class/format": b"png",
            "image/segmentation/class/tile_px": TILE_PX,
            "image/segmentation/class/tiles": tiles,
            "image/width": size[1],
        }
    )


def _example(features: dict[str, int | bytes | Sequence[bytes]]) -> bytes:
    # The protobuf wire format of tf.train.Example. Its own serializer needs TensorFlow, and orders
    # the features differently in every process.
    entries = (
        _field(1, _field(1, key.encode()) + _field(2, _feature(value)))
        for key, value in features.items()
    )
    return _field(1, b"".join(entries))


def _feature(value: int | bytes | Sequence[bytes]) -> bytes:
    if isinstance(value, int):
        return _field(3, _field(1, _varint(value)))  # Int64List
    values = [value] if isinstance(value, bytes) else value
    return _field(1, b"".join(_field(1, one) for one in values))  # BytesList


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload  # 2: length-delimited


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])

"""Reads the image and label files of a dataset; errors name the file and the fault."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.facts import KEPT_TURNED, MADE_UPRIGHT
from mapseg.data import label_files
from mapseg.data.encoded import JPEG, PNG, channel_bits
from mapseg.data.label_files import EXIF_ORIENTATION, EXIF_TURNED, PNG_GREY, errors_naming
from mapseg.data.pairing import Pair
from mapseg.labels import LabelClass

REMEDY = "fetch the file again, or leave out such pairs with --on_error=skip"
_MODES = {"jpeg": ("L", "RGB"), "png": ("1", "L", "LA", "P", "RGB", "RGBA")}


def read_image(path: Path) -> tuple[bytes, Image.Image, str]:
    """Reads an image file without decoding it.

    Returns:
      The bytes of the file, the image, and jpeg or png.

    Raises:
      ValueError: the file is unreadable, damaged, animated or of an unsupported kind.
    """
    data = label_files.read_file(path, REMEDY)
    if not data.startswith((JPEG, PNG)):
        kind = "another kind of file" if data else "an empty file"
        raise ValueError(
            f"{path}: must be a valid JPEG or PNG image; got {kind}, by its first bytes. Remedy: "
            "fetch it again or save it as PNG, or leave out such pairs with --on_error=skip"
        )
    image = label_files.open_single(path, data, REMEDY)
    image_format = "png" if data.startswith(PNG) else "jpeg"
    if image.mode not in _MODES[image_format] or channel_bits(data) > 8:
        raise ValueError(
            f"{path}: an image must be grey or RGB, with at most 8 bits per channel; got a "
            f"{image_format.upper()} of mode {image.mode}, {channel_bits(data)} bits. Remedy: save "
            "it as 8-bit RGB, with its values scaled to 0-255"
        )
    return data, image, image_format


def read_label(path: Path, classes: Sequence[LabelClass]) -> tuple[label_files.IdFile, bytes]:
    """Reads a label file.

    Returns:
      The file, and the label as a greyscale PNG of ids.

    Raises:
      ValueError: the file is unreadable, damaged, animated or not a map of ids, or has an id
        outside the table.
    """
    label = label_files.read_ids(path, "label", REMEDY)
    label_files.check_ids(label, classes, "label")
    grey = _strip_palette(label.data) if channel_bits(label.data) == 8 else to_png(label.ids)
    return label, grey


def _strip_palette(png: bytes) -> bytes:
    """Converts an 8-bit palette PNG to greyscale; the compressed pixels stay the same."""
    chunks, position = [PNG], len(PNG)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        kind, body = png[position + 4 : position + 8], png[position + 8 : end - 4]
        if kind == b"IHDR":
            body = body[:9] + bytes([PNG_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            checksum = struct.pack(">I", zlib.crc32(kind + body))
            chunks.append(struct.pack(">I", len(body)) + kind + body + checksum)
        position = len(png) if kind == b"IEND" else end
    return b"".join(chunks)


def find_orientation(image: Image.Image, size: tuple[int, int], pair: Pair) -> str:
    """Decides how to handle the EXIF orientation of an image whose label has this size.

    Returns:
      MADE_UPRIGHT, KEPT_TURNED, or an empty string for an image without an orientation.

    Raises:
      ValueError: the sizes of image and label differ, whether or not the image is turned.
    """
    stored = image.height, image.width
    with errors_naming(pair.image_path, REMEDY):
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    turned = orientation in EXIF_TURNED
    upright = stored[::-1] if turned and orientation >= 5 else stored
    if turned and upright == size:
        return MADE_UPRIGHT
    if stored != size:
        note = f" ({upright[0]}x{upright[1]} upright)" if turned else ""
        raise ValueError(
            f"{pair.image_path}: image and label must have the same size; got image "
            f"{stored[0]}x{stored[1]}{note}, label {size[0]}x{size[1]} in {pair.label_path}"
        )
    return KEPT_TURNED if turned else ""


def to_png(label: np.ndarray) -> bytes:
    """Encodes a label map, [H, W] uint8, as a greyscale PNG."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    return buffer.getvalue()

"""Reads the image and label files of a dataset; errors name the file and the fault."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.facts import KEPT_TURNED, MADE_UPRIGHT, MASK_IDS
from data_prep.pairing import Pair
from mapseg.data.encoded import JPEG, PNG, channel_bits, check_single, open_image
from mapseg.labels import LabelClass

_MODES = {"jpeg": ("L", "RGB"), "png": ("1", "L", "LA", "P", "RGB", "RGBA")}
_EXIF_ORIENTATION, _TURNED = 274, range(2, 9)
_PNG_GREY, _PNG_PALETTE = 0, 3  # colour types in a PNG's header
_REMEDY = "Remedy: fetch the file again, or leave out such pairs with --on_error=skip"
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@contextlib.contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Adds the file and the remedy to errors raised while the file is read or decoded.

    Raises:
      ValueError: replaces any error that a damaged file causes.
    """
    try:
        yield
    except _BROKEN as error:
        raise ValueError(
            f"{path}: must be a valid JPEG or PNG image; got: {error}. {_REMEDY}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # an OSError would mean that the shard cannot be written
        raise ValueError(f"{path}: must be readable; got: {error.strerror}. {_REMEDY}") from error


def _open(path: Path, data: bytes) -> Image.Image:
    if not data.startswith((JPEG, PNG)):
        kind = "another kind of file" if data else "an empty file"
        raise ValueError(
            f"{path}: must be a valid JPEG or PNG image; got {kind}, by its first bytes. Remedy: "
            "fetch it again or save it as PNG, or leave out such pairs with --on_error=skip"
        )
    with errors_naming(path):
        image = open_image(data)
    try:
        check_single(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return image


def read_image(path: Path) -> tuple[bytes, Image.Image, str]:
    """Reads an image file without decoding it.

    Returns:
      The bytes of the file, the image, and jpeg or png.

    Raises:
      ValueError: the file is unreadable, damaged, animated or of an unsupported kind.
    """
    data = _read(path)
    image = _open(path, data)
    image_format = "png" if data.startswith(PNG) else "jpeg"
    if image.mode not in _MODES[image_format] or channel_bits(data) > 8:
        raise ValueError(
            f"{path}: an image must be grey or RGB, with at most 8 bits per channel; got a "
            f"{image_format.upper()} of mode {image.mode}, {channel_bits(data)} bits. Remedy: save "
            "it as 8-bit RGB, with its values scaled to 0-255"
        )
    return data, image, image_format


def read_label(path: Path, classes: Sequence[LabelClass]) -> tuple[bytes, Image.Image, str]:
    """Reads a label file.

    Returns:
      The label as a greyscale PNG of ids; the decoded label, whose pixels are the ids; and how its
      palette contradicts the class table, as a colour map's would, or an empty string.

    Raises:
      ValueError: the file is unreadable, damaged, animated or not a map of ids, or has an id
        outside the table.
    """
    data = _read(path)
    if not data.startswith(PNG):
        kind = "another kind of file" if data else "an empty file"
        raise ValueError(f"{path}: a label must be a PNG of ids; got {kind}. {_REMEDY}")
    label = _open(path, data)
    depth, color_type = channel_bits(data), data[25]
    if color_type not in (_PNG_GREY, _PNG_PALETTE) or (color_type == _PNG_GREY and depth != 8):
        kind = {_PNG_GREY: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}[color_type]
        raise ValueError(
            f"{path}: a label must be a palette PNG or an 8-bit greyscale PNG whose values are "
            f"ids; got {depth}-bit {kind}. Remedy: colour maps and instance maps are not labels; "
            "give the folder of id maps"
        )
    with errors_naming(path):
        label.load()
        counts = np.array(label.histogram())
        turned = label.getexif().get(_EXIF_ORIENTATION, 1) in _TURNED
    if turned:
        raise ValueError(
            f"{path}: a label must be stored upright; got an EXIF orientation. Remedy: turn its "
            "pixels upright and save it without EXIF"
        )
    _check_ids(path, set(np.flatnonzero(counts).tolist()), {c.id for c in classes})
    note = ""
    if label.mode == "P":
        note = _palette_note(label.getpalette() or [], np.flatnonzero(counts).tolist(), classes)
    return _strip_palette(data) if depth == 8 else to_png(np.asarray(label)), label, note


def _check_ids(path: Path, ids: set[int], known: set[int]) -> None:
    unknown = sorted(ids - known)
    if unknown:
        remedy = (
            "a label of only 0 and 255 is a mask, not a map of ids: give the folder of id maps"
            if ids == MASK_IDS
            else "choose the class table of these labels, or add the ids to it, with "
            '"evaluate": false if they are not classes'
        )
        raise ValueError(
            f"{path}: ids must be in the class table ({min(known)}-{max(known)}); "
            f"got {', '.join(map(str, unknown))}. Remedy: {remedy}"
        )


def _palette_note(
    palette: Sequence[int], used: Sequence[int], classes: Sequence[LabelClass]
) -> str:
    """Describes how a palette contradicts the class table: the same colours in another order.

    An index with another class's colour is not by itself a contradiction, as Vistas classes share
    colours; but then that class's own index has the colour too.

    Args:
      palette: red, green, blue of each index in turn.
      used: the indices that occur in the label.
      classes: the class table.

    Returns:
      The contradiction, or an empty string.
    """
    colors = {i: tuple(palette[3 * i : 3 * i + 3]) for i in range(len(palette) // 3)}
    if all(len(set(colors.get(i, ()))) <= 1 for i in used):
        return ""  # greys, not class colours
    owners: dict[tuple[int, ...], list[LabelClass]] = {}
    for c in classes:
        owners.setdefault(c.color, []).append(c)
    wrong = {}
    for i in used:
        same_color = owners.get(colors.get(i, ()), [])
        if same_color and all(c.id != i and colors.get(c.id) != c.color for c in same_color):
            wrong[i] = same_color[0].name
    if not wrong:
        return ""
    first, name = next(iter(wrong.items()))
    return (
        f"{len(wrong)} of its {len(used)} indices have the colour of another class: index {first} "
        f"has that of {name}"
    )


def _strip_palette(png: bytes) -> bytes:
    """Converts an 8-bit palette PNG to greyscale; the compressed pixels stay the same."""
    chunks, position = [PNG], len(PNG)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        kind, body = png[position + 4 : position + 8], png[position + 8 : end - 4]
        if kind == b"IHDR":
            body = body[:9] + bytes([_PNG_GREY]) + body[10:]
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
    with errors_naming(pair.image_path):
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    turned = orientation in _TURNED
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

"""Reads files of ids, one for each pixel: labels and predictions. Errors name file and fault."""

import contextlib
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mapseg.data.encoded import PNG, channel_bits, check_single, open_image
from mapseg.labels import LabelClass

MASK_IDS = {0, 255}  # a file with only these values is more likely a mask than a map of ids
PNG_GREY, _PNG_PALETTE = 0, 3  # colour types in a PNG's header
EXIF_ORIENTATION, EXIF_TURNED = 274, range(2, 9)
_PNG_COLOR_TYPE = 25  # offset in a PNG of the byte with the colour type
# Cityscapes and datasets after its model name files by the kind of their ids, and both kinds share
# ids: by the end of the name, the id of the class car, and the table that comes with mapseg.
_CITYSCAPES_KINDS = {
    "_labelIds.png": (26, "cityscapes_34.json"),
    "_labelTrainIds.png": (13, "cityscapes_19.json"),
}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class IdFile:
    """A file of ids.

    Attributes:
      path: the file.
      data: its bytes.
      image: decoded; its pixels are the ids, whatever its palette.
      used: the ids that occur, ascending.
    """

    path: Path
    data: bytes
    image: Image.Image
    used: tuple[int, ...]

    @property
    def ids(self) -> np.ndarray:
        """[H, W] uint8."""
        return np.asarray(self.image, np.uint8)


@contextlib.contextmanager
def errors_naming(path: Path, remedy: str) -> Iterator[None]:
    """Adds the file and the remedy to errors raised while the file is read or decoded.

    Raises:
      ValueError: replaces any error that a damaged file causes.
    """
    try:
        yield
    except _BROKEN as error:
        raise ValueError(
            f"{path}: must be a valid JPEG or PNG image; got: {error}. Remedy: {remedy}"
        ) from error


def read_file(path: Path, remedy: str) -> bytes:
    """Reads a file; ValueError, naming the remedy, if it is unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:  # an OSError would mean that a result cannot be written
        raise ValueError(
            f"{path}: must be readable; got: {error.strerror}. Remedy: {remedy}"
        ) from error


def open_single(path: Path, data: bytes, remedy: str) -> Image.Image:
    """Opens the bytes of a JPEG or PNG that holds one picture, without decoding it.

    Raises:
      ValueError: it is damaged, or has several pictures.
    """
    with errors_naming(path, remedy):
        image = open_image(data)
    try:
        check_single(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return image


def read_ids(path: Path, noun: str, remedy: str) -> IdFile:
    """Reads a PNG of ids.

    Args:
      path: the file.
      noun: what messages call it: label or prediction.
      remedy: for a file that is unreadable or damaged; a clause.

    Raises:
      ValueError: the file is unreadable, damaged, animated or not a map of ids.
    """
    data = read_file(path, remedy)
    if not data.startswith(PNG):
        kind = "another kind of file" if data else "an empty file"
        raise ValueError(f"{path}: a {noun} must be a PNG of ids; got {kind}. Remedy: {remedy}")
    image = open_single(path, data, remedy)
    depth, color_type = channel_bits(data), data[_PNG_COLOR_TYPE]
    if color_type not in (PNG_GREY, _PNG_PALETTE) or (color_type == PNG_GREY and depth != 8):
        kind = {PNG_GREY: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}[color_type]
        raise ValueError(
            f"{path}: a {noun} must be a palette PNG or an 8-bit greyscale PNG whose values are "
            f"ids; got {depth}-bit {kind}. Remedy: colour maps and instance maps are not {noun}s; "
            "give the folder of id maps"
        )
    with errors_naming(path, remedy):
        image.load()
        used = np.flatnonzero(image.histogram()).tolist()
        turned = image.getexif().get(EXIF_ORIENTATION, 1) in EXIF_TURNED
    if turned:
        raise ValueError(
            f"{path}: a {noun} must be stored upright; got an EXIF orientation. Remedy: turn its "
            "pixels upright and save it without EXIF"
        )
    return IdFile(path, data, image, tuple(used))


def check_ids(file: IdFile, classes: Sequence[LabelClass], noun: str) -> None:
    """Rejects ids that are not in a class table, or another kind of Cityscapes' ids than its.

    Raises:
      ValueError: the message names the file.
    """
    _check_kind(file.path, classes, noun)
    known = {c.id for c in classes}
    unknown = sorted({*file.used} - known)
    if unknown:
        remedy = (
            f"a {noun} of only 0 and 255 is a mask, not a map of ids: give the folder of id maps"
            if {*file.used} == MASK_IDS
            else f"choose the class table of these {noun}s, or add the ids to it, with "
            '"evaluate": false if they are not classes'
        )
        raise ValueError(
            f"{file.path}: ids must be in the class table ({_ranges(known)}); "
            f"got {', '.join(map(str, unknown))}. Remedy: {remedy}"
        )


def _ranges(ids: Collection[int]) -> str:
    """Formats ids, one or more, as ranges such as `0-18, 255`."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _check_kind(path: Path, classes: Sequence[LabelClass], noun: str) -> None:
    """Rejects label ids of Cityscapes with a table of its train ids, and the reverse.

    Of label ids, 0 to 18 are also train ids of other classes, so checking ids is not enough.
    """
    car_ids = {c.id for c in classes if c.name == "car"}
    for end, (car_id, table) in _CITYSCAPES_KINDS.items():
        other = car_ids & {known for known, _ in _CITYSCAPES_KINDS.values()} - {car_id}
        if other and path.name.endswith(end):
            raise ValueError(
                f"{path}: a {noun} named *{end} must have the ids of the class table; by its name "
                f"car is {car_id}, got a table where car is {other.pop()}. Remedy: give "
                f"--classes=data_prep/{table}, or other {noun}s"
            )


def palette_note(file: IdFile, classes: Sequence[LabelClass]) -> str:
    """Describes how a palette contradicts the class table: the same colours in another order.

    An index with another class's colour is not by itself a contradiction, as Vistas classes share
    colours; but then that class's own index has the colour too.

    Args:
      file: with or without a palette.
      classes: the class table.

    Returns:
      The contradiction, or an empty string.
    """
    palette = (file.image.getpalette() or []) if file.image.mode == "P" else []
    colors = {i: tuple(palette[3 * i : 3 * i + 3]) for i in range(len(palette) // 3)}
    if all(len(set(colors.get(i, ()))) <= 1 for i in file.used):
        return ""  # greys, not class colours
    owners: dict[tuple[int, ...], list[LabelClass]] = {}
    for c in classes:
        owners.setdefault(c.color, []).append(c)
    wrong = {}
    for i in file.used:
        same_color = owners.get(colors.get(i, ()), [])
        if same_color and all(c.id != i and colors.get(c.id) != c.color for c in same_color):
            wrong[i] = same_color[0].name
    if not wrong:
        return ""
    first, name = next(iter(wrong.items()))
    return (
        f"{len(wrong)} of its {len(file.used)} indices have the colour of another class: index "
        f"{first} has that of {name}"
    )

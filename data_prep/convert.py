"""Converts image/label pairs to records: one pair, or one shard of them.

An image keeps its bytes unless it is resized or turned upright. A label is checked pixel by pixel
and stored as a greyscale PNG of source ids. Nothing here imports
TensorFlow: each worker of a conversion would pay for it.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_prep.facts import KEPT_TURNED, MADE_UPRIGHT, MASK_IDS, SampleFacts, note_facts
from data_prep.parts import Part, write_part
from data_prep.sources import Pair
from mapseg.data.resizing import resize_image, resize_label
from mapseg.data.samples import encode_sample
from mapseg.data.shards import write_shard
from mapseg.data.tiles import encode_tiles
from mapseg.labels import LabelClass

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MODES = {"jpeg": ("L", "RGB"), "png": ("1", "L", "LA", "P", "RGB", "RGBA")}
_GREY_MODES = ("1", "L", "LA")
_EXIF_ORIENTATION = 274
_PNG_GREY, _PNG_PALETTE = 0, 3  # colour types in a PNG's header
_REMEDY = "Remedy: fetch the file again, or leave such pairs out with --on_error=skip"
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class Resize:
    """How images and labels are resized; at most one of the two is set.

    Attributes:
      max_side: the longer side becomes at most this, in pixels; the aspect stays. 0 is off.
      resize_to: every sample becomes this (height, width).
    """

    max_side: int = 0
    resize_to: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.max_side < 0:
            raise ValueError(f"max_side must be zero (off) or more; got {self.max_side}")
        if self.resize_to is not None and min(self.resize_to) <= 0:
            raise ValueError(f"resize_to must be two positive pixel counts; got {self.resize_to}")
        if self.max_side and self.resize_to is not None:
            raise ValueError("max_side and resize_to must not both be given")

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (height, width) that a sample of this size is stored at."""
        if self.resize_to is not None:
            return self.resize_to
        long_side = max(size)
        if not self.max_side or long_side <= self.max_side:
            return size
        height, width = (max(1, round(side * self.max_side / long_side)) for side in size)
        return height, width


def convert_pair(
    pair: Pair, resize: Resize, source_ids: tuple[int, ...]
) -> tuple[bytes, SampleFacts]:
    """Reads, checks and encodes one pair.

    Args:
      pair: its files are read once.
      resize: how it is resized.
      source_ids: the ids of the class table.

    Returns:
      A serialized tf.train.Example, and what is in it.

    Raises:
      ValueError: a file that is unreadable, truncated, of a kind that cannot be used, or not
        decodable; an id outside the table; an image and a label of different size. The message
        names the file.
    """
    label_png, label = _read_label(pair.label_path, source_ids)
    size = label.height, label.width
    data = _read(pair.image_path)
    image, image_format = _open_image(data, pair.image_path)
    orientation = _orientation(image, size, pair)
    channels = 1 if image.mode in _GREY_MODES else 3
    target = resize.target(size)
    if orientation == MADE_UPRIGHT or target != size:
        with _naming(pair.image_path):
            upright = ImageOps.exif_transpose(image) if orientation == MADE_UPRIGHT else image
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
        data, image_format = _to_jpeg(resize_image(pixels, target)), "jpeg"
    else:
        with _naming(pair.image_path):
            image.draft("L", (1, 1))  # an eighth of a JPEG's size reads all its bytes, and faster
            image.load()
    ids = resize_label(np.asarray(label), target)
    if target != size:
        label_png = _to_png(ids)
    tiles = encode_tiles(ids)
    record = encode_sample(pair.key, data, image_format, target, channels, label_png, tiles)
    return record, note_facts(pair.key, ids, data, orientation)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: must be a whole JPEG or PNG image; got: {error}. {_REMEDY}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:  # not one: it is no failure to write the shard
        raise ValueError(f"{path}: must be readable; got: {error.strerror}. {_REMEDY}") from error


def _open(data: bytes, path: Path) -> Image.Image:
    with _naming(path):
        if data.startswith(_PNG):
            Image.open(io.BytesIO(data)).verify()  # checksums, which load() passes over
        elif not data.startswith(_JPEG):
            raise ValueError("neither, by its first bytes")
        return Image.open(io.BytesIO(data))


def _read_label(path: Path, source_ids: tuple[int, ...]) -> tuple[bytes, Image.Image]:
    """Returns the label as a greyscale PNG of ids, and decoded, its pixels the ids."""
    data = _read(path)
    if not data.startswith(_PNG):
        raise ValueError(f"{path}: a label must be a PNG of ids; got another kind of file")
    label = _open(data, path)
    depth, color_type = data[24], data[25]
    if color_type not in (_PNG_GREY, _PNG_PALETTE) or (color_type == _PNG_GREY and depth != 8):
        kind = {_PNG_GREY: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}[color_type]
        raise ValueError(
            f"{path}: a label must be a palette PNG or an 8-bit greyscale PNG whose values are "
            f"ids; got {depth}-bit {kind}. Remedy: colour maps and instance maps are no labels; "
            "give the folder of id maps"
        )
    with _naming(path):
        label.load()
        counts = np.array(label.histogram())
    found = set(np.flatnonzero(counts).tolist())
    unknown = sorted(found - set(source_ids))
    if unknown:
        remedy = (
            "a label of 0 and 255 alone is a mask, not a map of ids: give the folder of id maps"
            if found == MASK_IDS
            else "choose the table that belongs to these labels, or add the ids to it, with "
            '"evaluate": false if they are no class'
        )
        raise ValueError(
            f"{path}: ids must be in the class table ({min(source_ids)}-{max(source_ids)}); "
            f"got {', '.join(map(str, unknown))}. Remedy: {remedy}"
        )
    return _strip_palette(data) if depth == 8 else _to_png(np.asarray(label)), label


def _strip_palette(png: bytes) -> bytes:
    """Makes an 8-bit palette PNG a greyscale one: its compressed pixels are the same."""
    kept, position = [_PNG], len(_PNG)
    while position < len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        kind, body = png[position + 4 : position + 8], png[position + 8 : end - 4]
        if kind == b"IHDR":
            body = body[:9] + bytes([_PNG_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            checksum = struct.pack(">I", zlib.crc32(kind + body))
            kept.append(struct.pack(">I", len(body)) + kind + body + checksum)
        position = len(png) if kind == b"IEND" else end
    return b"".join(kept)


def _open_image(data: bytes, path: Path) -> tuple[Image.Image, str]:
    image = _open(data, path)
    image_format = "png" if data.startswith(_PNG) else "jpeg"
    if image.mode not in _MODES[image_format]:
        raise ValueError(
            f"{path}: an image must be 8-bit grey or RGB; got a {image_format.upper()} of mode "
            f"{image.mode}. Remedy: save it as RGB"
        )
    return image, image_format


def _orientation(image: Image.Image, size: tuple[int, int], pair: Pair) -> str:
    """Returns what to do about the EXIF orientation of an image whose label has this size."""
    stored = image.height, image.width
    with _naming(pair.image_path):
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    turned = image.format != "PNG" and orientation in range(2, 9)
    upright = stored[::-1] if turned and orientation >= 5 else stored
    if turned and upright == size:
        return MADE_UPRIGHT
    if stored != size:
        also = f" ({upright[0]}x{upright[1]} upright)" if turned else ""
        raise ValueError(
            f"{pair.image_path}: image and label must have one size; got image "
            f"{stored[0]}x{stored[1]}{also}, label {size[0]}x{size[1]} in {pair.label_path}"
        )
    return KEPT_TURNED if turned else ""


def _to_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)  # 0: 4:4:4
    return buffer.getvalue()


def _to_png(label: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Job:
    """One shard to make.

    Attributes:
      path: of the shard.
      split: its name.
      pairs: in order.
      classes: the class table.
      made_from: JSON that identifies the result: format, options, class table and input files.
      skip: a pair that cannot be converted is left out; else it is an error.
    """

    path: Path
    split: str
    pairs: tuple[Pair, ...]
    resize: Resize
    classes: tuple[LabelClass, ...]
    made_from: dict[str, Any]
    skip: bool = False


def convert_shard(job: Job, after_pair: Callable[[], None]) -> None:
    """Writes a shard and then its part, each whole or not at all.

    Args:
      job: the shard.
      after_pair: called after each pair; what it raises stops the shard.

    Raises:
      ValueError: as `convert_pair`, unless the job skips such pairs.
      OSError: a file cannot be written.
    """
    facts: list[SampleFacts] = []
    left_out: dict[str, str] = {}
    source_ids = tuple(c.id for c in job.classes)

    def records() -> Iterator[bytes]:
        for pair in job.pairs:
            try:
                record, found = convert_pair(pair, job.resize, source_ids)
            except ValueError as error:
                if not job.skip:
                    raise
                left_out[pair.key] = " ".join(str(error).partition(" Remedy: ")[0].split())
            else:
                facts.append(found)
                yield record
            after_pair()

    shard = write_shard(job.path, records())
    write_part(job.path, Part(shard, tuple(facts), left_out, job.made_from))

"""Converts image/label pairs to records: one pair, or one shard of them.

An image keeps its bytes unless it is resized or turned upright. A label is checked pixel by pixel
and stored as a greyscale PNG of source ids. TensorFlow is not imported, because every
conversion worker would have to load it.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_prep.decoding import REMEDY, find_orientation, read_image, read_label, to_png
from data_prep.facts import MADE_UPRIGHT, SampleFacts, note_facts
from data_prep.parts import Part, write_part
from mapseg.data.encoded import check_jpeg
from mapseg.data.label_files import errors_naming, palette_note
from mapseg.data.pairing import Pair
from mapseg.data.resizing import resize_image, resize_label
from mapseg.data.samples import encode_sample
from mapseg.data.shards import write_shard
from mapseg.data.tiles import encode_tiles
from mapseg.labels import LabelClass

_GREY_MODES = ("1", "L", "LA")


@dataclass(frozen=True)
class Resize:
    """How images and labels are resized; at most one of the two is set.

    Attributes:
      max_side: maximum of the longer side in pixels; the aspect ratio is kept. 0 is off.
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
        """Returns the (height, width) at which a sample of this size is stored."""
        if self.resize_to is not None:
            return self.resize_to
        long_side = max(size)
        if not self.max_side or long_side <= self.max_side:
            return size
        height, width = (max(1, round(side * self.max_side / long_side)) for side in size)
        return height, width


def convert_pair(
    pair: Pair, resize: Resize, classes: Sequence[LabelClass]
) -> tuple[bytes, SampleFacts]:
    """Reads, checks and encodes one pair.

    Args:
      pair: its files are read once.
      resize: how it is resized.
      classes: the class table.

    Returns:
      A serialized tf.train.Example, and the facts of the sample.

    Raises:
      ValueError: a file that is unreadable, truncated, undecodable or of an unsupported kind; an
        id outside the table; an image and a label of different sizes. The message names the file.
    """
    label_file, label_png = read_label(pair.label_path, classes)
    label = label_file.image
    size = label.height, label.width
    data, image, image_format = read_image(pair.image_path)
    files_sha256 = tuple(hashlib.sha256(file).hexdigest() for file in (data, label_file.data))
    orientation = find_orientation(image, size, pair)
    channels = 1 if image.mode in _GREY_MODES else 3
    target = resize.target(size)
    changed = orientation == MADE_UPRIGHT or target != size
    with errors_naming(pair.image_path, REMEDY):
        if image_format == "jpeg":
            check_jpeg(data)
        else:
            image.load()
        if changed:
            upright = ImageOps.exif_transpose(image) if orientation == MADE_UPRIGHT else image
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    if changed:
        data, image_format = _to_jpeg(resize_image(pixels, target)), "jpeg"
    ids = resize_label(np.asarray(label), target)
    if target != size:
        label_png = to_png(ids)
    tiles = encode_tiles(ids)
    record = encode_sample(pair.key, data, image_format, target, channels, label_png, tiles)
    note = palette_note(label_file, classes)
    return record, note_facts(pair.key, ids, data, orientation, note, files_sha256)


def _to_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)  # 0: 4:4:4
    return buffer.getvalue()


@dataclass(frozen=True)
class Job:
    """One shard to make.

    Attributes:
      path: the shard's path.
      split: name of its split.
      pairs: its pairs, in order.
      classes: the class table.
      made_from: JSON that identifies the result: format, options, class table and input files.
      skip: whether a pair that cannot be converted is left out; otherwise it is an error.
    """

    path: Path
    split: str
    pairs: tuple[Pair, ...]
    resize: Resize
    classes: tuple[LabelClass, ...]
    made_from: dict[str, Any]
    skip: bool = False


def convert_shard(job: Job, after_pair: Callable[[], None]) -> None:
    """Writes a shard and then its part, each atomically.

    Args:
      job: the shard.
      after_pair: called after each pair; an exception from it stops the shard.

    Raises:
      ValueError: as in `convert_pair`, unless the job skips such pairs.
      OSError: a file cannot be written.
    """
    facts: list[SampleFacts] = []
    left_out: dict[str, str] = {}

    def records() -> Iterator[bytes]:
        for pair in job.pairs:
            try:
                record, sample_facts = convert_pair(pair, job.resize, job.classes)
            except ValueError as error:
                if not job.skip:
                    raise
                left_out[pair.key] = " ".join(str(error).partition(" Remedy: ")[0].split())
            else:
                facts.append(sample_facts)
                yield record
            after_pair()

    shard = write_shard(job.path, records())
    write_part(job.path, Part(shard, tuple(facts), left_out, job.made_from))

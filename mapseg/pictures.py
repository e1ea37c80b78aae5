"""Pictures of label maps: coloured, as overlays, in panels with a legend; PNG and JPEG files."""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mapseg.files import write_bytes
from mapseg.labels import VOID, LabelSet

PICTURE_PX = 900  # longest side of a picture in a panel; small ones are enlarged to half of it
_JPEG_QUALITY = 92
_JPEG_MAX_PX = 65_500  # limit of libjpeg; the format allows 65,535
_INK, _RIM = (25, 25, 25), (140, 140, 140)

Entry = tuple[str, tuple[int, int, int]]  # of a legend: name and colour


def colorize(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Draws a label map in the colours of its classes.

    Args:
      ids: [H, W] uint8.
      palette: [256, 3] uint8 RGB by id.

    Returns:
      [H, W, 3] uint8 RGB.
    """
    return cv2.applyColorMap(ids, palette[:, np.newaxis])


def overlay(
    image: np.ndarray,
    ids: np.ndarray,
    palette: np.ndarray,
    drawn: np.ndarray | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """Tints an image with the colours of its classes.

    If only some classes are drawn, the rest of the image is dimmed to half its brightness.
    Otherwise neither a white tint on a white lane marking nor a missed marking would be visible.

    Args:
      image: [H, W, 3] uint8 RGB.
      ids: [H, W] uint8; VOID is never tinted.
      palette: [256, 3] uint8 RGB by id.
      drawn: [256] bool by id, whether to tint it; None tints all.
      alpha: share of the class colour, 0-1.

    Returns:
      [H, W, 3] uint8 RGB.
    """
    tinted = np.arange(256) != VOID if drawn is None else drawn
    result = image.copy() if drawn is None else image // 2
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(ids, palette), alpha, 0)
    return cv2.copyTo(mixed, cv2.LUT(ids, tinted.astype(np.uint8)), result)


def panel(
    image: np.ndarray,
    prediction: np.ndarray,
    label_set: LabelSet,
    label: np.ndarray | None = None,
    drawn: np.ndarray | None = None,
) -> np.ndarray:
    """Draws image, prediction and ground truth side by side, with a legend of their classes below.

    Pictures are shrunk to `PICTURE_PX`, or enlarged towards half of it, so the legend is in
    proportion whatever the frame size.

    Args:
      image: [H, W, 3] uint8 RGB.
      prediction: [H, W] uint8 train ids.
      label_set: names and colours.
      label: [H, W] uint8 train ids or VOID, the ground truth; None draws two pictures.
      drawn: [256] bool by id, whether to draw it, else black; None draws all.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    maps = [prediction] if label is None else [prediction, label]
    palette = label_set.palette
    if drawn is not None:
        palette[~drawn] = 0
    pictures = [_fitted(picture) for picture in (image, *(colorize(m, palette) for m in maps))]
    present = np.sum([count_ids(m) for m in maps], axis=0) > 0
    if drawn is not None:
        present &= drawn
    entries = [(c.name, c.color) for c in label_set.classes if present[c.id]]
    if present[VOID]:
        entries.append(("void", (0, 0, 0)))

    height, width = pictures[0].shape[:2]
    gap = max(8, width // 50)
    canvas_width = len(pictures) * (width + gap) + gap
    text_px = max(14, canvas_width // 95)
    key = _legend_block(entries, canvas_width - 2 * gap, text_px)
    top = 2 * gap + text_px
    canvas = np.full((top + height + 2 * gap + key.shape[0], canvas_width, 3), 255, np.uint8)
    canvas[top + height + gap : top + height + gap + key.shape[0], gap:-gap] = key
    for i, picture in enumerate(pictures):
        left = gap + i * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    for i, title in enumerate(("Image", "Prediction", "Ground truth")[: len(pictures)]):
        middle = gap + i * (width + gap) + width // 2
        pen.text((middle, top // 2), title, _INK, _font(round(text_px * 1.15), True), anchor="mm")
    return np.asarray(drawing)


def legend(label_set: LabelSet) -> np.ndarray:
    """Draws every class of a label set with its train id, colour and name.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    digits = len(str(label_set.classes[-1].id))
    ids = [str(c.id).rjust(digits, "\N{FIGURE SPACE}") for c in label_set.classes]
    entries = [(f"{i}  {c.name}", c.color) for i, c in zip(ids, label_set.classes, strict=True)]
    columns = math.ceil(len(entries) / 25)
    block = _legend_block(entries, columns * _column_width(entries, 18), 18)
    return np.pad(block, ((18, 18), (18, 18), (0, 0)), constant_values=255)


def shrink(picture: np.ndarray, side_px: int) -> np.ndarray:
    """Shrinks a picture to a long side of at most `side_px`; smaller ones are returned as they are.

    Args:
      picture: [H, W, 3] uint8.
      side_px: in pixels.
    """
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side_px:
        return picture
    size = [max(1, round(side * side_px / longest)) for side in (width, height)]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def count_ids(ids: np.ndarray) -> np.ndarray:
    """Counts the pixels of each id: [H, W] uint8 -> [256] float32."""
    return cv2.calcHist([ids], [0], None, [256], [0, 256]).ravel()


def _fitted(picture: np.ndarray) -> np.ndarray:
    longest = max(picture.shape[:2])
    if longest > PICTURE_PX:
        return shrink(picture, PICTURE_PX)
    times = max(1, PICTURE_PX // 2 // longest)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _legend_block(entries: Sequence[Entry], width: int, text_px: int) -> np.ndarray:
    """Draws swatches and names in as many columns as fit, top-down: [h, width, 3] uint8."""
    line = round(text_px * 1.7)
    columns = max(1, min(len(entries), width // _column_width(entries, text_px)))
    rows = math.ceil(len(entries) / columns)
    block = Image.new("RGB", (width, rows * line), "white")
    pen = ImageDraw.Draw(block)
    for i, (name, color) in enumerate(entries):
        left, top = i // rows * (width // columns), i % rows * line
        low, high = top + (line - text_px) // 2, top + (line + text_px) // 2
        right = left + round(text_px * 1.6)
        pen.rectangle((left, low, right, high), color, _RIM, max(1, text_px // 14))
        pen.text((right + text_px // 2, (low + high) // 2), name, _INK, _font(text_px), "lm")
    return np.asarray(block)


def _column_width(entries: Sequence[Entry], text_px: int) -> int:
    longest = max((_font(text_px).getlength(name) for name, _ in entries), default=0)
    return math.ceil(longest + 4 * text_px)


@functools.cache
def _font(text_px: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), text_px
    )


def write_png(path: Path, image: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Writes a PNG atomically; its folder is created; see `encode_png`."""
    write_bytes(path, encode_png(image, palette))


def encode_png(image: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Encodes a PNG.

    Args:
      image: [H, W, 3] uint8 RGB, [H, W, 4] uint8 RGBA, or [H, W] uint8 ids or greys.
      palette: [256, 3] uint8 RGB by id; pixels stay ids, coloured by the palette.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    if palette is not None:
        picture.putpalette(palette.tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def write_jpg(path: Path, image: np.ndarray) -> None:
    """Writes a JPEG of an [H, W, 3] uint8 RGB image atomically; its folder is created.

    Raises:
      ValueError: the image is too large for a JPEG.
    """
    height, width = image.shape[:2]
    if max(height, width) > _JPEG_MAX_PX:
        raise ValueError(
            f"{path}: the sides of a JPEG must be at most {_JPEG_MAX_PX:,} px; got {height} x "
            f"{width}. Remedy: use smaller images, or turn this picture off"
        )
    write_bytes(path, encode_jpg(image))


def encode_jpg(image: np.ndarray, quality: int = _JPEG_QUALITY) -> bytes:
    """Encodes a JPEG of an [H, W, 3] uint8 RGB image.

    Args:
      image: its sides are at most 65,500 px.
      quality: 1 to 100.

    Raises:
      ValueError: the image is empty or too large.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    written, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not written:
        height, width = image.shape[:2]
        raise ValueError(f"an image must fit a JPEG; got {height} x {width} px")
    return data.tobytes()

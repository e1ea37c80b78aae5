"""Pictures: label maps in colour, panels with a legend, loss curves, and their way to the disk.

Figures are drawn on a canvas of their own, never through pyplot, so threads and notebooks are safe.
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from mapseg.files import write_bytes
from mapseg.labels import VOID, LabelClass, LabelSet

PICTURE_PX = 900  # longest side of a picture in a panel; small ones are enlarged to half of it
_JPEG_QUALITY = 92
_INK, _RIM = (25, 25, 25), (140, 140, 140)

Row = Mapping[str, float]
Entry = tuple[str, tuple[int, int, int]]  # what a legend shows: name and colour


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

    With a choice of classes the rest of the image is dimmed to half its brightness: a white tint
    on a white lane marking would not show otherwise, nor would a marking that was missed.

    Args:
      image: [H, W, 3] uint8 RGB.
      ids: [H, W] uint8; VOID is never tinted.
      palette: [256, 3] uint8 RGB by id.
      drawn: [256] bool, the ids to tint; None tints all.
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
    guess: np.ndarray,
    label_set: LabelSet,
    label: np.ndarray | None = None,
    drawn: np.ndarray | None = None,
) -> np.ndarray:
    """Sets image, prediction and ground truth side by side, the legend of their classes beneath.

    Pictures are shrunk to `PICTURE_PX`, or enlarged towards half of it, so that the legend is in
    proportion to frames of any size.

    Args:
      image: [H, W, 3] uint8 RGB.
      guess: [H, W] uint8 train ids.
      label_set: names and colours.
      label: [H, W] uint8 train ids or VOID, the ground truth; without it there are two pictures.
      drawn: [256] bool, the ids to draw, all others black; None draws all.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    maps = [guess] if label is None else [guess, label]
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


def count_ids(ids: np.ndarray) -> np.ndarray:
    """Counts the pixels of each id: [H, W] uint8 -> [256] float32."""
    return cv2.calcHist([ids], [0], None, [256], [0, 256]).ravel()


def _fitted(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest > PICTURE_PX:
        size = [max(1, round(side * PICTURE_PX / longest)) for side in (width, height)]
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    times = max(1, PICTURE_PX // 2 // longest)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _legend_block(entries: Sequence[Entry], width: int, text_px: int) -> np.ndarray:
    """Draws swatches and names in as many columns as fit, read downwards: [h, width, 3] uint8."""
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


def smoothed(values: Sequence[float] | np.ndarray, weight: float) -> np.ndarray:
    """Averages a curve with exponentially fading weights, without a bias to the start.

    The mean is divided by the sum of its weights, 1 - weight^n, as the moments are in Adam
    (https://arxiv.org/abs/1412.6980, section 3), so the first value is itself. A value that is not
    finite is left out: the mean stays where it was.

    Args:
      values: [N] in order of steps.
      weight: of the past, at least 0 and below 1; 0 changes nothing.

    Returns:
      [N] float64; nan before the first finite value.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"weight must be at least 0 and below 1; got {weight}")
    mean = total = 0.0
    result = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            total = weight * total + (1 - weight)
        if total:
            result[i] = mean / total
    return result


def plot_history(rows: Sequence[Row], out_path: Path, smoothing: float) -> None:
    """Draws the course of one run: loss raw and smoothed, learning rate, scores on validation.

    Args:
      rows: as `checkpoints.read_history` gives them.
      out_path: the picture to write, `.png`.
      smoothing: weight of the past in the smoothed loss; see `smoothed`.
    """
    _write_figure(out_path, _figure({"": rows}, smoothing))


def plot_runs(runs: Mapping[str, Sequence[Row]], out_path: Path, smoothing: float) -> None:
    """Draws several runs together, each in a colour of its own; see `plot_history`.

    Args:
      runs: rows by the name of the run.
      out_path: the picture to write, `.png`.
      smoothing: weight of the past in the smoothed loss.
    """
    if not runs:
        raise ValueError("runs must be one or more; got none")
    _write_figure(out_path, _figure(runs, smoothing))


def _figure(runs: Mapping[str, Sequence[Row]], smoothing: float) -> Figure:
    scored = any("mean_iou" in row for rows in runs.values() for row in rows)
    ratios = [3, 1, 1.5][: 2 + scored]
    figure = Figure(figsize=(10, 1.9 * sum(ratios)), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    for i, (name, rows) in enumerate(runs.items()):
        color = f"C{i % 10}"
        steps, loss = _column(rows, "loss")
        faint = {"color": color, "linewidth": 0.8, "alpha": 0.3 if len(runs) == 1 else 0.15}
        bold = {"color": color, "linewidth": 1.8, "marker": "." if len(steps) < 30 else ""}
        axes[0].plot(steps, loss, **faint, label="" if name else "raw")
        label = name or f"smoothed, weight {smoothing:g}"
        axes[0].plot(steps, smoothed(loss, smoothing), **bold, label=label)
        axes[1].plot(*_column(rows, "learning_rate"), **bold)
        if scored:
            steps, score = _column(rows, "mean_iou")
            axes[2].plot(steps, 100 * score, **{**bold, "marker": "o"}, markersize=4)
    for axis, what in zip(axes, ("training loss", "learning rate", "mean IoU, %"), strict=False):
        _dress(axis, what)
    axes[0].legend(frameon=False)
    axes[1].set_ylim(bottom=0)
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-1, 3), useMathText=True)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_formatter("{x:,.10g}")
    return figure


def plot_audit(
    classes: Sequence[LabelClass],
    pixels: Mapping[str, np.ndarray],
    samples: Mapping[str, np.ndarray],
    sizes: Mapping[str, Mapping[tuple[int, int], int]],
    notes: Sequence[str],
    out_path: Path,
) -> None:
    """Draws what records hold: a row for each class by falling share of pixels, sizes, and notes.

    The first split is drawn as bars, others as marks upon them.

    Args:
      classes: names and colours.
      pixels: by split, [classes] share of its pixels.
      samples: by split, [classes] share of its samples that hold the class.
      sizes: by split, by (height, width), its samples.
      notes: lines of text.
      out_path: the picture to write, `.png`.
    """
    rows = len(classes)
    order = np.lexsort([np.arange(rows), *(-shares for shares in reversed(list(pixels.values())))])
    # Inches, as all that follows: room for the names, and rows that can be read.
    left = 0.4 + 0.057 * max(len(c.name) for c in classes)
    width, height = left + 10.6, max(6.5, 1.5 + 0.17 * rows)
    tall = min(height - 1.5, 0.45 * rows)
    figure = Figure(figsize=(width, height), dpi=110)

    def place(x: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, 1 - (0.9 + high) / height, wide / width, high / height))

    axes = [place(left, 3.8, tall), place(left + 4.3, 2.1, tall)]
    for axis, values in zip(axes, (pixels, samples), strict=True):
        _class_rows(axis, [classes[i] for i in order], {k: v[order] for k, v in values.items()})
    least = min((v[v > 0].min() for v in pixels.values() if v.any()), default=1)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_xlim(100 * min(0.5 * least, 1e-3), 100)
    axes[0].set_yticks(range(rows), [classes[i].name for i in order], fontsize=7)
    axes[0].set_title("share of the pixels, %", fontsize=10)
    marks, names = axes[0].get_legend_handles_labels()  # bars come last
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 2.2}
    axes[0].legend(
        marks[-1:] + marks[:-1],
        names[-1:] + names[:-1],
        fontsize=8,
        frameon=False,
        ncols=6,
        **where,
    )
    axes[1].set_xlim(0, 100)
    axes[1].set_yticks([])
    axes[1].set_title("samples that hold it, %", fontsize=10)
    _size_marks(place(left + 7.2, 3.0, 3.0), sizes)
    figure.text(
        (left + 6.9) / width,
        1 - 4.7 / height,
        "\n".join(notes),
        va="top",
        fontsize=8,
        linespacing=1.5,
    )
    _write_figure(out_path, figure)


def _class_rows(
    axis: Axes, classes: Sequence[LabelClass], values: Mapping[str, np.ndarray]
) -> None:
    """Draws shares as percent in the colours of the classes, from the top down."""
    places = np.arange(len(classes))
    for i, (split, shares) in enumerate(values.items()):
        seen = places[shares > 0]
        rim = {"edgecolor": "0.2", "label": split, "zorder": 2 + i}
        if i == 0:
            colors = [np.array(classes[k].color) / 255 for k in seen]
            axis.barh(seen, 100 * shares[seen], 0.78, color=colors, linewidth=0.5, **rim)
        else:  # white with a rim shows on every colour
            marker = "Dos^v"[(i - 1) % 5]
            axis.scatter(100 * shares[seen], seen, 18, "white", marker, clip_on=False, **rim)
    for place in places[~np.any([shares > 0 for shares in values.values()], axis=0)]:
        where = {"transform": axis.get_yaxis_transform(), "va": "center"}
        axis.text(0.01, place, "never", color="0.5", fontsize=7, **where)
    axis.set_ylim(len(classes) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def _size_marks(axis: Axes, sizes: Mapping[str, Mapping[tuple[int, int], int]]) -> None:
    """Draws a circle for each size of image, its area by how many have it."""
    most = max((n for found in sizes.values() for n in found.values()), default=1)
    for i, (split, found) in enumerate(sizes.items()):
        height, width = np.array(list(found), float).reshape(-1, 2).T
        area = [12 + 300 * n / most for n in found.values()]
        axis.scatter(
            width,
            height,
            area,
            f"C{i}",
            alpha=0.5,
            linewidth=0.5,
            edgecolor="0.25",
            label=f"{split}: {sum(found.values())}",
        )
    longest = max((max(size) for found in sizes.values() for size in found), default=1)
    axis.set_xlim(0, 1.1 * longest)
    axis.set_ylim(0, 1.1 * longest)
    axis.set_aspect("equal")
    axis.set_title("sizes of the images, pixels", fontsize=10)
    axis.set_xlabel("width", fontsize=8)
    axis.set_ylabel("height", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    legend = axis.legend(frameon=False, fontsize=8, loc="upper left")
    for handle in legend.legend_handles:
        handle.set_sizes([40])


def _column(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of the rows that have the column; not finite becomes a gap."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _dress(axis: Axes, what: str) -> None:
    axis.set_ylabel(what)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.01)


def _write_figure(path: Path, figure: Figure) -> None:
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(path, data.getvalue())


def write_png(path: Path, image: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Writes a PNG, whole or not at all.

    Args:
      path: the file; its folder is made.
      image: [H, W, 3] uint8 RGB, or with a palette [H, W] uint8 ids.
      palette: [256, 3] uint8 RGB: the pixel's index stays the id, the palette colours it.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    if palette is not None:
        picture.putpalette(palette.tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_bytes(path, data.getvalue())


def write_jpg(path: Path, image: np.ndarray) -> None:
    """Writes a JPEG of an [H, W, 3] uint8 RGB image, whole or not at all; its folder is made."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    write_bytes(path, data.tobytes())

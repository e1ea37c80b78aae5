"""Charts of training runs and of the contents of records.

Figures are drawn on their own canvas, never through pyplot, so threads and notebooks are safe.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mapseg.files import write_bytes
from mapseg.labels import LabelClass

Row = Mapping[str, float]


def smoothed(values: Sequence[float] | np.ndarray, weight: float) -> np.ndarray:
    """Returns the exponential moving average of a curve, with bias correction.

    As for Adam's moments (https://arxiv.org/abs/1412.6980, section 3), the mean is divided by the
    sum of its weights, 1 - weight^n, so the first value is unchanged. Non-finite values are
    skipped.

    Args:
      values: [N] in order of steps.
      weight: of the past, in [0, 1); 0 disables smoothing.

    Returns:
      [N] float64; nan before the first finite value.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"loss_smoothing must be at least 0 and below 1; got {weight}")
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
    """Draws one run: raw and smoothed loss, learning rate, validation scores.

    Args:
      rows: from `runs.history.read_history`.
      out_path: the `.png` file to write.
      smoothing: weight of the past in the smoothed loss; see `smoothed`.
    """
    _write_figure(out_path, _figure({"": rows}, smoothing))


def plot_runs(runs: Mapping[str, Sequence[Row]], out_path: Path, smoothing: float) -> None:
    """Draws several runs in one chart, each in its own colour; see `plot_history`.

    Args:
      runs: rows by the name of the run.
      out_path: the `.png` file to write.
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
        steps, loss = column(rows, "loss")
        faint = {"color": color, "linewidth": 0.8, "alpha": 0.3 if len(runs) == 1 else 0.15}
        bold = {"color": color, "linewidth": 1.8, "marker": "." if len(steps) < 30 else ""}
        axes[0].plot(steps, loss, **faint, label="" if name else "raw")
        label = name or f"smoothed, weight {smoothing:g}"
        axes[0].plot(steps, smoothed(loss, smoothing), **bold, label=label)
        axes[1].plot(*column(rows, "learning_rate"), **bold)
        if scored:
            steps, score = column(rows, "mean_iou")
            axes[2].plot(steps, 100 * score, **{**bold, "marker": "o"}, markersize=4)
    for axis, label in zip(axes, ("training loss", "learning rate", "mean IoU, %"), strict=False):
        dress(axis, label)
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
    """Draws the contents of records: a row per class by descending pixel share, sizes, notes.

    The first split is drawn as bars, the others as markers on them.

    Args:
      classes: names and colours.
      pixels: by split, [classes] share of its pixels.
      samples: by split, [classes] share of its samples that contain the class.
      sizes: by split, number of samples by (height, width).
      notes: lines of text.
      out_path: the `.png` file to write.
    """
    order = np.lexsort(
        [np.arange(len(classes)), *(-shares for shares in reversed(list(pixels.values())))]
    )
    classes = [classes[i] for i in order]
    # In inches: room for the names, and rows tall enough to read.
    left = 0.4 + 0.057 * max(len(c.name) for c in classes)
    width, height = left + 10.6, max(6.5, 1.5 + 0.17 * len(classes))
    tall = min(height - 1.5, 0.45 * len(classes))
    figure = Figure(figsize=(width, height), dpi=110)

    def place(x: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / width, 1 - (0.9 + high) / height, wide / width, high / height))

    _pixel_shares(place(left, 3.8, tall), classes, {k: v[order] for k, v in pixels.items()})
    _sample_shares(place(left + 4.3, 2.1, tall), classes, {k: v[order] for k, v in samples.items()})
    _size_marks(place(left + 7.2, 3.0, 3.0), sizes)
    where = (left + 6.9) / width, 1 - 4.7 / height
    figure.text(*where, "\n".join(notes), va="top", fontsize=8, linespacing=1.5)
    _write_figure(out_path, figure)


def _pixel_shares(
    axis: Axes, classes: Sequence[LabelClass], pixels: Mapping[str, np.ndarray]
) -> None:
    """Draws the share of pixels of each class, next to its name."""
    _class_rows(axis, classes, pixels)
    least = min((v[v > 0].min() for v in pixels.values() if v.any()), default=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlim(100 * min(0.5 * least, 1e-3), 100)
    axis.set_yticks(range(len(classes)), [c.name for c in classes], fontsize=7)
    axis.set_title("share of the pixels, %", fontsize=10)
    marks, names = axis.get_legend_handles_labels()  # bars come last
    axis.legend(
        marks[-1:] + marks[:-1],
        names[-1:] + names[:-1],
        fontsize=8,
        frameon=False,
        ncols=6,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=2.2,
    )


def _sample_shares(
    axis: Axes, classes: Sequence[LabelClass], samples: Mapping[str, np.ndarray]
) -> None:
    """Draws the share of samples that contain each class."""
    _class_rows(axis, classes, samples)
    axis.set_xlim(0, 100)
    axis.set_yticks([])
    axis.set_title("samples that contain it, %", fontsize=10)


def _class_rows(
    axis: Axes, classes: Sequence[LabelClass], values: Mapping[str, np.ndarray]
) -> None:
    """Draws shares in percent, in the colours of the classes, from top to bottom."""
    places = np.arange(len(classes))
    for i, (split, shares) in enumerate(values.items()):
        present = places[shares > 0]
        rim = {"edgecolor": "0.2", "label": split, "zorder": 2 + i}
        if i == 0:
            colors = [np.array(classes[k].color) / 255 for k in present]
            axis.barh(present, 100 * shares[present], 0.78, color=colors, linewidth=0.5, **rim)
        else:  # white with an outline shows on any colour
            marker = "Dos^v"[(i - 1) % 5]
            axis.scatter(100 * shares[present], present, 18, "white", marker, clip_on=False, **rim)
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
    """Draws a circle per image size; its area grows with the number of images."""
    most = max((n for counts in sizes.values() for n in counts.values()), default=1)
    for i, (split, counts) in enumerate(sizes.items()):
        height, width = np.array(list(counts), float).reshape(-1, 2).T
        area = [12 + 300 * n / most for n in counts.values()]
        axis.scatter(
            width,
            height,
            area,
            f"C{i}",
            alpha=0.5,
            linewidth=0.5,
            edgecolor="0.25",
            label=f"{split}: {sum(counts.values())}",
        )
    longest = max((max(size) for counts in sizes.values() for size in counts), default=1)
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


def column(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of the rows that have the column; non-finite values are gaps."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def dress(axis: Axes, label: str) -> None:
    """Names the vertical axis and draws a light grid."""
    axis.set_ylabel(label)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.01)


def _write_figure(path: Path, figure: Figure) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"{path}: a chart must be a .png file; got {path.name}. Remedy: name it *.png"
        )
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(path, data.getvalue())

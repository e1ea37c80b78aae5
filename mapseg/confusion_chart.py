"""The chart of a confusion matrix, drawn on its own canvas like those of `charts`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix, each row as shares of its label pixels; rows without any are grey.

    The colours follow the square root, so that small shares show. Of few classes, the cells also
    have their shares in percent.

    Args:
      confusion: [C, C] or [C, C + 1] int64; row = label, column = prediction. A last column, of
        predictions of no class, is not drawn, but its pixels count.
      names: of the classes.

    Returns:
      [h, w, 3] uint8 RGB.
    """
    count, pixels = len(names), confusion.sum(axis=1, keepdims=True)
    shares = np.where(pixels > 0, confusion[:, :count] / np.maximum(pixels, 1), np.nan)
    few = count <= 20
    # In inches: a cell fits its number or the name of its row; room for the names at both sides.
    side = max(2.0, count * (0.36 if few else 0.15))
    room, font = 0.5 + 0.057 * max(map(len, names)), 7
    width, height = room + side + 0.9, side + room + 0.3
    figure = Figure(figsize=(width, height), dpi=110)
    axis = figure.add_axes((room / width, room / height, side / width, side / height))
    axis.set_facecolor("0.8")
    cells = axis.imshow(shares, "Blues", norm=PowerNorm(0.5, 0, 1))
    for row, column in np.argwhere(shares >= 0.005) if few else ():
        share = shares[row, column]
        style = {"color": "white" if share > 0.3 else "0.2", "fontsize": font}
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", **style)
    between = np.arange(0.5, count - 1)
    axis.hlines(between, -0.5, count - 0.5, "0.85", linewidth=0.4)
    axis.vlines(between, -0.5, count - 0.5, "0.85", linewidth=0.4)
    axis.set_xticks(range(count), names, fontsize=font, rotation=90)
    axis.set_yticks(range(count), names, fontsize=font)
    axis.tick_params(length=0)
    axis.set_xlabel("prediction", fontsize=font + 2)
    axis.set_ylabel("label", fontsize=font + 2)
    place = ((room + side + 0.15) / width, room / height, 0.15 / width, side / height)
    bar = figure.colorbar(cells, cax=figure.add_axes(place), format=PercentFormatter(1))
    bar.ax.tick_params(labelsize=font)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""Curves of training as SVG for a page: text stays text, colours follow the page's."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mapseg.charts import Row, column, dress, smoothed

SERIES = 6  # colours of the page, --series-0 and so on
_INK = "#010101"  # replaced by currentColor
_SIZE_IN = (4.6, 2.7)


class Curves(NamedTuple):
    """One chart.

    Attributes:
      title: what it shows.
      alt: a description in words.
      svg: the chart, for the page.
    """

    title: str
    alt: str
    svg: str


def history_curves(runs: Mapping[str, Sequence[Row]], smoothing: float) -> list[Curves]:
    """Draws loss, learning rate and validation mean IoU by step.

    Args:
      runs: rows of their histories by name; curves have the page's series colours in this order.
      smoothing: weight of the past in the smoothed loss.

    Returns:
      The charts that have data.
    """
    charts = [
        ("Training loss", "loss", 1.0, ""),
        ("Validation mean IoU, %", "mean_iou", 100.0, "o"),
        ("Learning rate", "learning_rate", 1.0, ""),
    ]
    return [
        _draw(title, name, factor, marker, runs, smoothing if name == "loss" else 0.0)
        for title, name, factor, marker in charts
        if any(name in row for rows in runs.values() for row in rows)
    ]


def _draw(
    title: str,
    name: str,
    factor: float,
    marker: str,
    runs: Mapping[str, Sequence[Row]],
    smoothing: float,
) -> Curves:
    figure = Figure(figsize=_SIZE_IN)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    ends = []
    for i, (run, rows) in enumerate(runs.items()):
        steps, values = column(rows, name)
        color = f"#0200{i % SERIES:02x}"
        if smoothing:
            axis.plot(steps, factor * values, color=color, linewidth=0.9, alpha=0.35)
            values = smoothed(values, smoothing)
        shown = marker or ("." if len(steps) < 3 else "")
        axis.plot(steps, factor * values, color=color, linewidth=1.8, marker=shown, markersize=4)
        known = values[np.isfinite(values)]
        if known.size:
            span = f"{factor * known[0]:.3g} to {factor * known[-1]:.3g}"
            ends.append(f"{run}: {span}")
    dress(axis, "")
    axis.set_xlabel("step")
    axis.xaxis.set_major_formatter("{x:,.10g}")
    axis.locator_params(axis="x", nbins=5)
    if name == "learning_rate":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-1, 3), useMathText=False)
        axis.set_ylim(bottom=0)
    for item in (axis.title, axis.xaxis.label, axis.yaxis.offsetText):
        item.set_color(_INK)
    axis.tick_params(color=_INK, labelcolor=_INK)
    axis.spines[:].set_color(_INK)
    axis.grid(color=_INK, alpha=0.15, linewidth=0.6)
    return Curves(title, f"{title} by step. {'; '.join(ends)}", _svg(figure, name))


def _svg(figure: Figure, name: str) -> str:
    """Returns a figure as an SVG element with the page's colours and unique ids."""
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    FigureCanvasSVG(figure)
    text = io.StringIO()
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with matplotlib.rc_context(options):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: [^;\"]*", "font: 10px var(--font)", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r"#0200(\d\d)", lambda match: f"var(--series-{int(match[1])})", svg)
    return svg.replace(_INK, "currentColor").replace("xlink:href", "href")

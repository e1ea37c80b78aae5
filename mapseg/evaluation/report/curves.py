"""Chart of training as SVG for a page: text stays text, colours follow the page's."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mapseg.charts import Row, column, dress, smoothed
from mapseg.pages.svg import Chart, series_color, to_svg

_SIZE_IN = (4.6, 2.7)


def history_curves(runs: Mapping[str, Sequence[Row]], smoothing: float) -> list[Chart]:
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
) -> Chart:
    figure = Figure(figsize=_SIZE_IN)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    ends = []
    for i, (run, rows) in enumerate(runs.items()):
        steps, values = column(rows, name)
        color = series_color(i)
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
    return Chart(title, f"{title} by step. {'; '.join(ends)}", to_svg(figure, name))

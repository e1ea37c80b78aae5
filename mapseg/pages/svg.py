"""Charts as SVG for a page: text stays text, colours follow the page's."""

import io
import re
from typing import NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SERIES = 6  # colours of the page, --series-0 and so on
_INK = "#010101"  # replaced by currentColor
OTHER_COLOR = "#020100"  # replaced by the colour of edges


class Chart(NamedTuple):
    """One chart.

    Attributes:
      title: what it shows.
      alt: a description in words.
      svg: the chart, for the page.
    """

    title: str
    alt: str
    svg: str


def series_color(i: int) -> str:
    """Returns the colour to draw with that the page replaces by its own of a series."""
    return f"#0200{i % SERIES:02x}"


def to_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an SVG element with the page's colours.

    Args:
      figure: the figure, whose axes get the ink of the page.
      name: unique in the page: ids of the SVG derive from it.

    Artists whose gid is `class-KEY` become groups with the attribute `data-class`.
    """
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
        for item in (axis.title, axis.xaxis.label, axis.yaxis.label, axis.yaxis.offsetText):
            item.set_color(_INK)
        axis.tick_params(color=_INK, labelcolor=_INK)
        axis.spines[:].set_color(_INK)
        axis.grid(color=_INK, alpha=0.15, linewidth=0.6)
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
    svg = re.sub(r'<g id="class-(\w+)"', r'<g data-class="\1"', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: [^;\"]*", "font: 10px var(--font)", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r"#0200(\d\d)", lambda match: f"var(--series-{int(match[1])})", svg)
    svg = svg.replace(OTHER_COLOR, "var(--edge)")
    return svg.replace(_INK, "currentColor").replace("xlink:href", "href")

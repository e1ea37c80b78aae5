"""Renders a page from its template, style and script, and formats what it shows."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import mapseg

_BASE = "mapseg.pages"


def render(package: str, context: Mapping[str, Any], data: Any) -> str:
    """Renders the page of a package, whose `templates/` hold page.html, page.css and page.js.

    The page's policy forbids every request and every script but its own, so nothing that a name
    contains can run.

    Args:
      package: name of the package.
      context: the values of the template, which extends `base.html`.
      data: the values of the page's script.

    Returns:
      An HTML document that needs no other file.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(_BASE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "hex_color": hex_color}
    script = _read(_BASE, "base.js") + _read(package, "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        **context,
        version=mapseg.__version__,
        data=script_json(data),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=Markup(_read(_BASE, "base.css") + _read(package, "page.css")),
    )
    # Names of folders may hold bytes that are not UTF-8.
    return page.encode(errors="surrogateescape").decode(errors="backslashreplace")


def script_json(data: Any) -> Markup:
    """Encodes data as JSON that cannot end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, escaped)
    return Markup(text)


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share: 59.4 %; a dash if it is unknown."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{100 * value:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def points(value: float | None) -> str:
    """Formats a difference of shares in percentage points: +1.2."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def hex_color(color: Sequence[int]) -> str:
    """Formats an RGB colour: #0a1b2c."""
    return "#" + bytes(color).hex()


def short_names(names: Sequence[str]) -> list[str]:
    """Drops the first of three or more parts of names such as `object--vehicle--car`.

    Args:
      names: of all classes.

    Returns:
      The short names; a name stays whole if its short form would not be unique.
    """
    ends = [name.partition("--")[2] if name.count("--") > 1 else name for name in names]
    return [end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)]


def _read(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")

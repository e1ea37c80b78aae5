"""Reads hand-written JSON, and checks its objects field by field.

Errors name the file, the place in it and the expected type. Without checks, a string in place of a
boolean would count as true, and in place of a list be read character by character.
"""

import codecs
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UTF_16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True)
class Kind:
    """The type of a field: its description, and a test of values."""

    words: str
    fits: Callable[[Any], bool]


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


TEXT = Kind("text in quotes", _is_text)
TEXTS = Kind(
    'a list of strings, ["...", ...]', lambda v: isinstance(v, list) and all(map(_is_text, v))
)
SWITCH = Kind("true or false, without quotes", lambda v: isinstance(v, bool))
BYTE = Kind("a whole number in 0-255", _is_byte)
COLOR = Kind(
    "[r, g, b], three whole numbers in 0-255",
    lambda v: isinstance(v, list) and len(v) == 3 and all(map(_is_byte, v)),
)
OBJECTS = Kind(
    "a list of objects, [{...}, ...]",
    lambda v: isinstance(v, list) and bool(v) and all(isinstance(item, dict) for item in v),
)


def read_json(path: Path) -> Any:
    """Reads a JSON file, with or without a byte-order mark.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not UTF-8, not JSON, or repeats a name in one object.
    """
    if not path.is_file():
        problem = "must be a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {problem}")
    data = path.read_bytes()
    if data.startswith(_UTF_16_OR_32) or b"\0" in data[:4]:
        raise ValueError(
            f"{path}: must be UTF-8 text; got UTF-16 or UTF-32. Remedy: save it as UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: must be UTF-8 text; got the byte 0x{data[error.start]:02x} in line {line}. "
            "Remedy: save it as UTF-8"
        ) from error
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise ValueError(f"{path}: must be a JSON file; {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f'"{repeated}" must occur once in an object; got {str(pairs)[:200]}')
    return dict(pairs)


def check_fields(
    raw: Any,
    place: str,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind],
    closed: bool = False,
) -> None:
    """Checks the fields of an object.

    Args:
      raw: parsed JSON.
      place: the file and where the object is in it, for messages.
      required: type of each required field, by name.
      optional: type of each optional field, by name.
      closed: reject all other fields; else only those that look misspelt.

    Raises:
      ValueError: a field is missing, of another type, or unknown.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{place} must be an object, {{...}}; got {_shown(raw)}")
    kinds = {**required, **optional}
    for name in raw.keys() - kinds.keys():
        alike = difflib.get_close_matches(name.lower(), kinds, n=1, cutoff=0.8)
        if closed or (alike and alike[0] not in raw):
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise ValueError(f"{place} must have the fields {', '.join(kinds)}; got {name}{hint}")
    for name, kind in kinds.items():
        if name not in raw:
            if name in required:
                raise ValueError(f"{place} must have {name}, {kind.words}; got {_shown(raw)}")
        elif not kind.fits(raw[name]):
            raise ValueError(f"{place}: {name} must be {kind.words}; got {_shown(raw[name])}")


def _shown(raw: Any) -> str:
    text = json.dumps(raw, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."

"""Reads and checks JSON that mapseg writes: a mismatch means damage or a manual edit.

Hand-written JSON is read by `json_files`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def read_stored_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file that mapseg wrote.

    Args:
      path: the file.
      remedy: for a damaged file; a clause.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON in UTF-8; the message names the place.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(
            f"{path}: must be JSON, as mapseg wrote it; error in {place}. Remedy: {remedy}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: must be UTF-8, as mapseg wrote it; byte {error.start} is not. "
            f"Remedy: {remedy}"
        ) from error


def read_field(raw: Any, name: str, kind: type, origin: Path, remedy: str) -> Any:
    """Returns a field of a JSON object after checking its type.

    Args:
      raw: the parsed JSON.
      name: of the field.
      kind: bool, int, float (accepts whole numbers too), str, list or dict.
      origin: the file that it was read from.
      remedy: for a damaged file; a clause.

    Raises:
      ValueError: not an object, no such field, or a value of another type.
    """
    if not isinstance(raw, dict) or name not in raw:
        got = "no such field" if isinstance(raw, dict) else f"{raw!r:.100}"
        raise ValueError(f"{origin}: {name} must be present; got {got}. Remedy: {remedy}")
    value = raw[name]
    if not is_of_type(value, kind):
        raise ValueError(
            f"{origin}: {name} must be {TYPE_NAMES[kind]}; got {value!r:.100}. Remedy: {remedy}"
        )
    return value


TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def is_of_type(value: Any, kind: type) -> bool:
    """Whether a JSON value has a type; true is not a number, a whole number is also a float."""
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def with_sha256(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with a checksum of its fields as the last field."""
    return {**raw, "sha256": hashlib.sha256(json.dumps(raw).encode()).hexdigest()}


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object with a checksum; None if the file is missing or damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return raw if has_sha256(raw) else None


def has_sha256(raw: Any) -> bool:
    """Whether a JSON object has the checksum of its fields."""
    if not isinstance(raw, dict):
        return False
    return raw == with_sha256({name: raw[name] for name in raw if name != "sha256"})

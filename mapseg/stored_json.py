"""Reads and checks the JSON that mapseg writes: what differs was damaged, or changed by hand.

What people write is read by `json_files`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def read_stored_json(path: Path, remedy: str) -> Any:
    """Reads a JSON file that mapseg wrote.

    Args:
      path: the file.
      remedy: where it is damaged; a clause.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON in UTF-8; the message has the place.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(
            f"{path}: must be JSON, as it was written; got at {place}. Remedy: {remedy}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: must be UTF-8, as it was written; byte {error.start} is not. Remedy: {remedy}"
        ) from error


def read_field(raw: Any, name: str, kind: type, origin: Path, remedy: str) -> Any:
    """Returns a field of a JSON object, if it is of its type.

    Args:
      raw: the object, as it was read.
      name: of the field.
      kind: bool, int, float (which a whole number is too), str, list or dict.
      origin: the file that it came from.
      remedy: where it is damaged; a clause.

    Raises:
      ValueError: no object, no such field, or a value of another type.
    """
    if not isinstance(raw, dict) or name not in raw:
        got = "nothing of that name" if isinstance(raw, dict) else f"{raw!r:.100}"
        raise ValueError(f"{origin}: {name} must be there; got {got}. Remedy: {remedy}")
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
    str: "a text",
    list: "a list",
    dict: "an object",
}


def is_of_type(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a type; true is no number, and a whole number is a float."""
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def with_sha256(raw: dict[str, Any]) -> dict[str, Any]:
    """Adds to JSON the checksum of its fields, as the last of them."""
    return {**raw, "sha256": hashlib.sha256(json.dumps(raw).encode()).hexdigest()}


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """Reads what `with_sha256` made; None where there is no such file, or it is damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return raw if has_sha256(raw) else None


def has_sha256(raw: Any) -> bool:
    """Returns whether JSON is as `with_sha256` made it."""
    if not isinstance(raw, dict):
        return False
    return raw == with_sha256({name: raw[name] for name in raw if name != "sha256"})

"""Classes and label sets: which source id is which class, and what it trains as.

A *class table* is the dataset's own list of labels, in the JSON schema of Mapillary Vistas. A
*label set* says which of them are trained, as which train id; everything else is VOID.
"""

import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOID = 255
LABEL_SET_NAMES = ("all", "all_66", "lane_marking")


@dataclass(frozen=True)
class LabelClass:
    """One class: its id in the map that it belongs to, and how to name, draw and score it."""

    id: int
    name: str
    color: tuple[int, int, int]
    evaluate: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns the class in the schema of the Vistas configuration files."""
        return {
            "id": self.id,
            "name": self.name,
            "color": list(self.color),
            "evaluate": self.evaluate,
        }


def parse_class_table(raw: Any, origin: str) -> tuple[LabelClass, ...]:
    """Checks a class table in the schema of the Vistas `config_*.json` files.

    A label may carry an `id`; without one, its place in the list is its id, as in Vistas.

    Args:
      raw: the parsed JSON: `{"labels": [{"name": ..., "color": [r, g, b], "evaluate": ...}]}`.
      origin: the file that it came from, for error messages.

    Returns:
      The classes by ascending id.

    Raises:
      ValueError: a label without name or colour, an id outside 0-255 or one used twice.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("labels"), list) or not raw["labels"]:
        raise ValueError(
            f'{origin}: a class table must be {{"labels": [{{"name": ..., "color": [r, g, b], '
            '"evaluate": true}, ...]}, as in the config_v1.2.json of Vistas'
        )
    classes = []
    for place, label in enumerate(raw["labels"]):
        try:
            name, color = str(label["name"]), tuple(int(c) for c in label["color"])
            class_id, evaluate = int(label.get("id", place)), bool(label.get("evaluate", True))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{origin}: label {place} must have a name and a color of three values; "
                f"got {label!r}"
            ) from error
        if len(color) != 3 or not all(0 <= c <= 255 for c in color):
            raise ValueError(f"{origin}: color of {name} must be [r, g, b] in 0-255; got {color}")
        if not 0 <= class_id <= 255:
            raise ValueError(f"{origin}: id of {name} must be 0-255; got {class_id}")
        classes.append(LabelClass(class_id, name, color, evaluate))
    for what in ("id", "name"):
        values = [getattr(c, what) for c in classes]
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise ValueError(f"{origin}: every label's {what} must be its own; twice: {twice}")
    return tuple(sorted(classes, key=lambda c: c.id))


def read_class_table(path: Path) -> tuple[LabelClass, ...]:
    """Reads a class table file; see `parse_class_table`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not JSON, or not in the schema.
    """
    return parse_class_table(_read_json(path), str(path))


@dataclass(frozen=True)
class LabelSet:
    """The classes that a model is trained on, and the way from source ids to train ids.

    Attributes:
      name: as given on the command line.
      classes: by train id, without gaps: `classes[i].id == i`.
      source_to_train: 256 entries; VOID where a source id is not trained.
    """

    name: str
    classes: tuple[LabelClass, ...]
    source_to_train: tuple[int, ...]

    def __post_init__(self) -> None:
        if [c.id for c in self.classes] != list(range(len(self.classes))):
            raise ValueError(f"label set {self.name}: train ids must be 0, 1, 2, ... in order")
        if not 2 <= len(self.classes) <= VOID:
            raise ValueError(
                f"label set {self.name} must have 2 to {VOID} classes; got {len(self.classes)}"
            )

    @property
    def table(self) -> np.ndarray:
        """[256] uint8: train id, or VOID, by source id."""
        return np.array(self.source_to_train, np.uint8)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by train id."""
        return tuple(c.name for c in self.classes)

    @property
    def evaluated(self) -> np.ndarray:
        """[classes] bool: whether the class counts in scores."""
        return np.array([c.evaluate for c in self.classes])

    @property
    def palette(self) -> np.ndarray:
        """[256, 3] uint8 RGB by train id; VOID and unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.classes)] = [c.color for c in self.classes]
        return palette

    def count(self, pixels: Mapping[str, int], source: Sequence[LabelClass]) -> np.ndarray:
        """Adds up the pixels of each class.

        Args:
          pixels: by name of source class, as manifests have them.
          source: the class table that the names are of.

        Returns:
          [classes] int64.
        """
        counts = np.zeros(VOID + 1, np.int64)
        for c in source:
            counts[self.source_to_train[c.id]] += pixels.get(c.name, 0)
        return counts[: len(self.classes)]

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back."""
        return {
            "name": self.name,
            "classes": [c.to_json() for c in self.classes],
            "source_to_train": list(self.source_to_train),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any], origin: str) -> "LabelSet":
        """Rebuilds a label set that `to_json` wrote."""
        try:
            classes = parse_class_table({"labels": raw["classes"]}, origin)
            return cls(str(raw["name"]), classes, tuple(int(i) for i in raw["source_to_train"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{origin}: not a label set written by mapseg: {error}") from error

    def select(self, names: Iterable[str]) -> np.ndarray:
        """Returns [256] bool: the train ids of the named classes (shell patterns allowed).

        Raises:
          ValueError: a name matches no class.
        """
        chosen = np.zeros(256, bool)
        for name in names:
            hits = [c.id for c in self.classes if fnmatch.fnmatchcase(c.name, name)]
            if not hits:
                raise ValueError(
                    f"classes must be names of this label set ({', '.join(self.names)}); got {name}"
                )
            chosen[hits] = True
        return chosen


def make_label_set(table: Sequence[LabelClass], name: str) -> LabelSet:
    """Builds a label set over a class table.

    `all` trains every evaluated class. `all_66` is what was done in 2018 on Vistas v1.2: the
    unevaluated "unlabeled" is trained as a 66th class. `lane_marking` trains lane markings (1)
    against the rest (0). Any other name is a JSON file of groups::

        {"classes": [{"name": "flat", "color": [128, 64, 128], "sources": ["*--flat--*"]}, ...],
         "others": "flat"}

    where `sources` are names or shell patterns of the table and `others`, if given, takes every
    source that no group names; without it they are VOID.

    Args:
      table: the source classes.
      name: `all`, `all_66`, `lane_marking` or the path of a `.json` file.

    Returns:
      The label set.

    Raises:
      FileNotFoundError: the JSON file does not exist.
      ValueError: an unknown name, or a set that this table cannot give.
    """
    if name == "all":
        return _renumbered(name, [c for c in table if c.evaluate])
    if name == "all_66":
        if len(table) != 66:
            raise ValueError(
                "label_set=all_66 must be used with the 66 labels of Vistas v1.2; these records "
                f"have {len(table)}. Remedy: --label_set=all"
            )
        return _renumbered(name, table)
    if name == "lane_marking":
        return _lane_marking(table)
    if name.endswith(".json"):
        return _grouped(table, Path(name))
    raise ValueError(
        f"label_set must be {', '.join(LABEL_SET_NAMES)} or a .json file of groups; got {name}"
    )


def _renumbered(name: str, kept: Sequence[LabelClass]) -> LabelSet:
    classes = [LabelClass(i, c.name, c.color, c.evaluate) for i, c in enumerate(kept)]
    return LabelSet(name, tuple(classes), _to_table({c.id: i for i, c in enumerate(kept)}))


def _to_table(train_ids: dict[int, int]) -> tuple[int, ...]:
    return tuple(train_ids.get(source, VOID) for source in range(256))


def _lane_marking(table: Sequence[LabelClass]) -> LabelSet:
    # v1.2 has one such class, v2.0 more than twenty; a zebra crossing is not a lane marking.
    prefixes, crossing, unlabeled = ("marking--", "marking-only--"), "crosswalk-zebra", "unlabeled"
    train_ids = {
        c.id: int(c.name.startswith(prefixes) and not c.name.endswith(crossing))
        for c in table
        if not c.name.endswith(unlabeled)
    }
    if 1 not in train_ids.values():
        raise ValueError(
            "label_set=lane_marking must be used with classes named marking--*; the class table "
            "of these records has none. Remedy: --label_set=FILE.json with groups of your own"
        )
    classes = (LabelClass(0, "other", (64, 64, 64)), LabelClass(1, "lane marking", (255, 255, 255)))
    return LabelSet("lane_marking", classes, _to_table(train_ids))


def _grouped(table: Sequence[LabelClass], path: Path) -> LabelSet:
    raw = _read_json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("classes"), list):
        raise ValueError(
            f'{path}: a label set must be {{"classes": [{{"name": ..., "color": [r, g, b], '
            '"sources": [...]}, ...]}'
        )
    classes = parse_class_table({"labels": raw["classes"]}, str(path))
    if any("id" in entry for entry in raw["classes"]):
        raise ValueError(f"{path}: classes must not carry an id: their place in the list is it")
    train_ids: dict[int, int] = {}
    for group, entry in zip(classes, raw["classes"], strict=True):
        for pattern in entry.get("sources", []):
            hits = [c for c in table if fnmatch.fnmatchcase(c.name, pattern)]
            if not hits:
                raise ValueError(
                    f"{path}: sources of {group.name} must name labels of the records; "
                    f"{pattern!r} matches none"
                )
            for hit in hits:
                if train_ids.setdefault(hit.id, group.id) != group.id:
                    raise ValueError(f"{path}: {hit.name} must be in one class; it is in two")
    if "others" in raw:
        names = [c.name for c in classes]
        if raw["others"] not in names:
            raise ValueError(f"{path}: others must be one of {names}; got {raw['others']!r}")
        for c in table:
            train_ids.setdefault(c.id, names.index(raw["others"]))
    return LabelSet(str(path), classes, _to_table(train_ids))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be a JSON file; {error}") from error

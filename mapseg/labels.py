"""Classes and label sets: a dataset's classes, and how they map to train ids.

A *class table* is the dataset's list of classes, in the JSON schema of Mapillary Vistas. A *label
set* maps each source id to a train id, or to VOID if it is not trained.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapseg.json_files import BYTE, COLOR, OBJECTS, SWITCH, TEXT, TEXTS, check_fields, read_json

VOID = 255
LABEL_SET_NAMES = ("all", "all_66", "lane_marking")
LANE_MARKING = "lane marking"


@dataclass(frozen=True)
class LabelClass:
    """One class: its source or train id, name and colour, and whether it is scored."""

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

    A label may have an `id`; the default is its position in the list, as in Vistas.

    Args:
      raw: the parsed JSON: `{"labels": [{"name": ..., "color": [r, g, b], "evaluate": ...}]}`.
      origin: the file that it was read from, for error messages.

    Returns:
      The classes by ascending id.

    Raises:
      ValueError: a label lacks a name or colour, a field has another type, or an id or name is
        used twice.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("labels"), list) or not raw["labels"]:
        raise ValueError(
            f'{origin}: a class table must be {{"labels": [{{"name": ..., "color": [r, g, b], '
            '"evaluate": true}, ...]}, as in the config_v1.2.json of Vistas'
        )
    classes = []
    for position, label in enumerate(raw["labels"]):
        where = f"{origin}: label {position}"
        check_fields(label, where, {"name": TEXT, "color": COLOR}, {"id": BYTE, "evaluate": SWITCH})
        class_id = label.get("id", position)
        if class_id > VOID:
            raise ValueError(
                f"{where}: id must be in 0-255; got {class_id}, its position in the list"
            )
        red, green, blue = label["color"]
        color, evaluate = (red, green, blue), label.get("evaluate", True)
        if not label["name"].isprintable():
            raise ValueError(
                f"{where}: name must be printable text; got {label['name']!r}. Remedy: a name "
                "without line breaks or control characters"
            )
        classes.append(LabelClass(class_id, label["name"], color, evaluate))
    for field in ("id", "name"):
        values = [getattr(c, field) for c in classes]
        repeated = sorted({v for v in values if values.count(v) > 1})
        if repeated:
            raise ValueError(
                f"{origin}: every label's {field} must be unique; got {repeated} twice"
            )
    return tuple(sorted(classes, key=lambda c: c.id))


def read_class_table(path: Path) -> tuple[LabelClass, ...]:
    """Reads a class table file; see `parse_class_table`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is not JSON in UTF-8, or not in the schema.
    """
    return parse_class_table(read_json(path), str(path))


@dataclass(frozen=True)
class LabelSet:
    """The classes that a model is trained on, and the mapping from source ids to train ids.

    Attributes:
      name: as given on the command line.
      classes: by train id, without gaps: `classes[i].id == i`.
      source_to_train: 256 train ids, by source id; VOID for untrained ones.
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
        """Sums the pixels of each class.

        Args:
          pixels: by name of the source class, as in manifests.
          source: the class table with these names.

        Returns:
          [classes] int64.
        """
        counts = np.zeros(VOID + 1, np.int64)
        for c in source:
            counts[self.source_to_train[c.id]] += pixels.get(c.name, 0)
        return counts[: len(self.classes)]

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that `from_json` reads."""
        return {
            "name": self.name,
            "classes": [c.to_json() for c in self.classes],
            "source_to_train": list(self.source_to_train),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any], origin: str) -> "LabelSet":
        """Rebuilds a label set that `to_json` wrote.

        Raises:
          ValueError: not a label set; the message names `origin` and the place.
        """
        try:
            classes = parse_class_table({"labels": raw["classes"]}, origin)
            name, train_ids = str(raw["name"]), tuple(raw["source_to_train"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{origin}: must be a label set that mapseg wrote; reading it raised {error!r}"
            ) from error
        known = {*range(len(classes)), VOID}
        if len(train_ids) != VOID + 1 or not known.issuperset(train_ids):
            raise ValueError(
                f"{origin}: source_to_train must be 256 train ids below {len(classes)} or {VOID}; "
                f"got {len(train_ids)} values, {sorted(set(map(str, train_ids)))}"
            )
        return cls(name, classes, train_ids)

    def select(self, names: Iterable[str]) -> np.ndarray:
        """Returns [256] bool: the train ids of the named classes (shell patterns allowed).

        Raises:
          ValueError: a name matches no class.
        """
        chosen = np.zeros(256, bool)
        for name in names:
            ids = [c.id for c in self.classes if fnmatch.fnmatchcase(c.name, name)]
            if not ids:
                raise ValueError(
                    f"classes must be names of this label set ({', '.join(self.names)}); got {name}"
                )
            chosen[ids] = True
        return chosen


def make_label_set(table: Sequence[LabelClass], name: str) -> LabelSet:
    """Builds a label set over a class table.

    `all` trains every evaluated class. `all_66` reproduces 2018 runs on Vistas v1.2: the
    unevaluated "unlabeled" is trained as a 66th class. `lane_marking` trains lane markings (1)
    against the rest (0). Any other name is a JSON file of groups::

        {"classes": [{"name": "flat", "color": [128, 64, 128], "sources": ["*--flat--*"]}, ...],
         "others": "flat"}

    `sources` are names in the table, or shell patterns. The class that `others` names gets all
    sources that no class lists; without `others` these are VOID.

    Raises:
      FileNotFoundError: the JSON file does not exist.
      ValueError: an unknown name, or a set that does not fit this table.
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


def is_lane_marking(name: str) -> bool:
    """Returns whether a class is a lane marking: one in Vistas v1.2, more than twenty in v2.0."""
    named_so = name == LANE_MARKING or name.startswith(("marking--", "marking-only--"))
    return named_so and not name.endswith("crosswalk-zebra")


def _lane_marking(table: Sequence[LabelClass]) -> LabelSet:
    train_ids = {
        c.id: int(is_lane_marking(c.name)) for c in table if not c.name.endswith("unlabeled")
    }
    if 1 not in train_ids.values():
        raise ValueError(
            "label_set=lane_marking must be used with classes named marking--*; the class table "
            "of these records has none. Remedy: --label_set=FILE.json with groups of your own"
        )
    classes = (LabelClass(0, "other", (64, 64, 64)), LabelClass(1, LANE_MARKING, (255, 255, 255)))
    return LabelSet("lane_marking", classes, _to_table(train_ids))


def _grouped(table: Sequence[LabelClass], path: Path) -> LabelSet:
    raw = read_json(path)
    check_fields(raw, f"{path}: a label set", {"classes": OBJECTS}, {"others": TEXT}, closed=True)
    for position, entry in enumerate(raw["classes"]):
        where = f"{path}: class {position}"
        kinds = {"sources": TEXTS, "evaluate": SWITCH}
        check_fields(entry, where, {"name": TEXT, "color": COLOR}, kinds, closed=True)
        if "sources" not in entry and entry["name"] != raw.get("others"):
            raise ValueError(f"{where} must have sources, {TEXTS.words}; got {entry}")
    classes = parse_class_table({"labels": raw["classes"]}, str(path))
    train_ids: dict[int, int] = {}
    for group, entry in zip(classes, raw["classes"], strict=True):
        for pattern in entry.get("sources", []):
            matches = [c for c in table if fnmatch.fnmatchcase(c.name, pattern)]
            if not matches:
                raise ValueError(
                    f"{path}: sources of {group.name} must name labels of the records; "
                    f"{pattern!r} matches none"
                )
            for c in matches:
                if train_ids.setdefault(c.id, group.id) != group.id:
                    raise ValueError(f"{path}: {c.name} must be in one class; it is in two")
    if "others" in raw:
        names = [c.name for c in classes]
        if raw["others"] not in names:
            raise ValueError(f"{path}: others must be one of {names}; got {raw['others']!r}")
        for c in table:
            train_ids.setdefault(c.id, names.index(raw["others"]))
    return LabelSet(str(path), classes, _to_table(train_ids))

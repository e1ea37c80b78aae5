"""Mappings: predicted classes, by name, to the classes of another dataset.

A network trained on one class table can so be compared with labels of another. Some mappings come
with mapseg (`mapseg/mappings`); docs/data.md describes the format of the files.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mapseg.json_files import BYTE, COLOR, OBJECTS, TEXT, Kind, check_fields, read_json
from mapseg.labels import VOID, LabelClass, LabelSet, parse_class_table

_SHIPPED_DIR = Path(__file__).parent / "mappings"
_TARGET = Kind("the name of a target in quotes, or null", lambda v: v is None or TEXT.fits(v))
_MAX_NAMES = 5  # in a message


class Line(NamedTuple):
    """The target of one class, or None if the other dataset does not have it, and the reason."""

    source: str
    target: str | None
    reason: str


@dataclass(frozen=True)
class Mapping:
    """A translation of predicted classes to those of another dataset, the targets.

    Attributes:
      origin: the name of a shipped mapping, or the file that it was read from.
      targets: the classes; `id` is the id in that dataset's labels.
      lines: the target of each source class; each source occurs once.
      void_id: the label id of pixels without a target.
    """

    origin: str
    targets: tuple[LabelClass, ...]
    lines: tuple[Line, ...]
    void_id: int

    @property
    def label_set(self) -> LabelSet:
        """The targets as a label set: train ids in their order, source ids their label ids."""
        classes = tuple(replace(c, id=i) for i, c in enumerate(self.targets))
        index = {c.id: i for i, c in enumerate(self.targets)}
        return LabelSet(self.origin, classes, tuple(index.get(i, VOID) for i in range(256)))

    @property
    def label_ids(self) -> np.ndarray:
        """[256] uint8: label id by index of the target; `void_id` for VOID and unused ids."""
        ids = np.full(256, self.void_id, np.uint8)
        ids[: len(self.targets)] = [c.id for c in self.targets]
        return ids

    @property
    def digest(self) -> str:
        """Digest of all but `origin` and the reasons, which change no result."""
        targets = [c.to_json() for c in self.targets]
        lines = sorted((line.source, line.target or "") for line in self.lines)
        content = json.dumps([targets, lines, self.void_id])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def table(self, names: Sequence[str]) -> np.ndarray:
        """Returns the mapping as a table.

        Args:
          names: the predicted classes by train id.

        Returns:
          [256] uint8: index of the target by train id; VOID for classes without one, and for
          unused ids.

        Raises:
          ValueError: a predicted class has no line, or no class has a target.
        """
        target_of = {line.source: line.target for line in self.lines}
        missing = [name for name in names if name not in target_of]
        if missing:
            shown = ", ".join(name + _alike(name, target_of) for name in missing[:_MAX_NAMES])
            more = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
            raise ValueError(
                f"{self.origin}: lines must cover every predicted class; got none for {shown}"
                f"{more}. Remedy: use a mapping of this run's classes, or add lines such as "
                f"{json.dumps(Line(missing[0], None, 'why')._asdict())}"
            )
        index = {c.name: i for i, c in enumerate(self.targets)}
        table = np.full(256, VOID, np.uint8)
        for train_id, name in enumerate(names):
            target = target_of[name]
            table[train_id] = VOID if target is None else index[target]
        if (table == VOID).all():
            raise ValueError(
                f"{self.origin}: at least one predicted class must have a target; got null for all "
                f"{len(names)}. Remedy: use a mapping of this run's classes"
            )
        return table

    def translation(self, names: Sequence[str], label_set: LabelSet) -> np.ndarray:
        """Returns the mapping as a table to the ids of a label set that has the targets.

        Args:
          names: the predicted classes by train id.
          label_set: the classes of the labels; the targets are found in it by name.

        Returns:
          [256] uint8: id of `label_set` by train id; VOID for classes without a target, and for
          unused ids.

        Raises:
          ValueError: a predicted class has no line, or its target is not in the label set.
        """
        targets = self.table(names)
        ids = {c.name: c.id for c in label_set.classes}
        used = [self.targets[i].name for i in np.unique(targets[targets != VOID])]
        missing = [name for name in used if name not in ids]
        if missing:
            shown = ", ".join(name + _alike(name, ids) for name in missing[:_MAX_NAMES])
            raise ValueError(
                f"{self.origin}: targets must be classes of the labels ({label_set.name}); the "
                f"labels have no {shown}. Remedy: use labels with these classes, or a mapping "
                "whose lines for them have the target null"
            )
        table = np.full(256, VOID, np.uint8)
        table[: len(self.targets)] = [ids.get(c.name, VOID) for c in self.targets]
        return table[targets]


def shipped_names() -> list[str]:
    """Returns the names of the mappings that come with mapseg."""
    return sorted(path.stem for path in _SHIPPED_DIR.glob("*.json"))


def read_mapping(name_or_path: str) -> Mapping:
    """Reads a mapping.

    Args:
      name_or_path: one of `shipped_names()`, or the path of a `.json` file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown name, or a file that is not JSON or not in the schema; the message
        names the file and the place.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        names = shipped_names()
        if name_or_path not in names:
            raise ValueError(
                f"mapping must be {', '.join(names)} or a .json file; got {name_or_path}"
                f"{_alike(name_or_path, names)}"
            )
        path = _SHIPPED_DIR / f"{name_or_path}.json"
    raw = read_json(path)
    kinds = {"void_id": BYTE, "targets": OBJECTS, "lines": OBJECTS}
    check_fields(raw, f"{path}: a mapping", kinds, {}, closed=True)
    mapping = Mapping(name_or_path, _targets(raw, path), _lines(raw, path), raw["void_id"])
    mapping.label_set  # noqa: B018, raises if there are too few or too many targets
    return mapping


def _targets(raw: dict[str, Any], path: Path) -> tuple[LabelClass, ...]:
    kinds = {"name": TEXT, "color": COLOR, "id": BYTE}
    for position, target in enumerate(raw["targets"]):
        check_fields(target, f"{path}: target {position}", kinds, {}, closed=True)
    by_name = {c.name: c for c in parse_class_table({"labels": raw["targets"]}, str(path))}
    for c in by_name.values():
        if c.id == raw["void_id"]:
            raise ValueError(
                f"{path}: void_id must not be the id of a target; got {c.id}, which is {c.name}"
            )
    return tuple(by_name[target["name"]] for target in raw["targets"])


def _lines(raw: dict[str, Any], path: Path) -> tuple[Line, ...]:
    kinds = {"source": TEXT, "target": _TARGET, "reason": TEXT}
    names = [target["name"] for target in raw["targets"]]
    lines: dict[str, Line] = {}
    for position, line in enumerate(raw["lines"]):
        where = f"{path}: line {position}"
        check_fields(line, where, kinds, {}, closed=True)
        source, target = line["source"], line["target"]
        if target is not None and target not in names:
            raise ValueError(
                f"{where}: target must be one of {', '.join(names)}, or null; got {target}"
                f"{_alike(target, names)}"
            )
        if source in lines:
            raise ValueError(f"{where}: each source must have one line; {source} has two")
        lines[source] = Line(**line)
    return tuple(lines.values())


def _alike(name: str, names: Sequence[str] | dict[str, Any]) -> str:
    alike = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f" (did you mean {alike[0]}?)" if alike else ""

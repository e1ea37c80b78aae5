"""The classes that outputs show, and the ids that `ids/*.png` hold.

By default both are those of the network. A mapping replaces the classes by its targets, and
`ids=label` writes the ids that the dataset's own labels use, as evaluation servers expect.
"""

from dataclasses import dataclass

import numpy as np

from mapseg.labels import VOID, LabelSet
from mapseg.mapping import Mapping

_SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class OutputClasses:
    """The classes of an output folder.

    Attributes:
      predicted: the classes of the network.
      label_set: the classes of pictures, legend and `frames.csv`.
      table: [256] uint8, class in `label_set`, or VOID, by predicted id; None: they are equal.
      file_ids: id in `ids/*.png` by class, VOID included if it occurs; None: they are equal.
      identity: the mapping and the kind of ids, as a part of the folder's fingerprint.
    """

    predicted: LabelSet
    label_set: LabelSet
    table: np.ndarray | None
    file_ids: dict[int, int] | None
    identity: str

    def of_prediction(self, ids: np.ndarray) -> np.ndarray:
        """Returns the classes of predicted ids: [H, W] uint8."""
        return ids if self.table is None else self.table[ids]

    def to_file(self, ids: np.ndarray) -> np.ndarray:
        """Returns the ids that a file holds for classes: [H, W] uint8."""
        if self.file_ids is None:
            return ids
        table = np.zeros(256, np.uint8)
        table[[*self.file_ids]] = [*self.file_ids.values()]
        return table[ids]

    def from_file(self, ids: np.ndarray) -> np.ndarray:
        """Returns the classes of the ids in a file: [H, W] uint8.

        Raises:
          ValueError: it holds an id that `to_file` never returns.
        """
        if self.file_ids is None:
            return ids
        table = np.full(256, -1, np.int16)
        table[[*self.file_ids.values()]] = [*self.file_ids]
        classes = table[ids]
        if (classes < 0).any():
            unknown = sorted({*np.unique(ids).tolist()} - {*self.file_ids.values()})
            raise ValueError(f"ids must be {[*self.file_ids.values()]}; got {unknown}")
        return classes.astype(np.uint8)

    def file_ids_line(self) -> str:
        """Returns a line that reports the label ids of files; empty if they hold train ids."""
        if self.file_ids is None:
            return ""
        classes = self.label_set.classes
        shown = ", ".join(f"{self.file_ids[c.id]} {c.name}" for c in classes[:_SHOWN])
        same = all(self.file_ids[c.id] == c.id for c in classes)
        return (
            f"label ids in ids/*.png: {shown}{', ...' if len(classes) > _SHOWN else ''}"
            f"{'; these are also the train ids' if same else ''}"
        )

    @property
    def file_palette(self) -> np.ndarray:
        """[256, 3] uint8 RGB by id in `ids/*.png`."""
        palette = self.label_set.palette
        if self.file_ids is None:
            return palette
        by_file_id = np.zeros_like(palette)
        by_file_id[[*self.file_ids.values()]] = palette[[*self.file_ids]]
        return by_file_id


def output_classes(
    predicted: LabelSet, mapping: Mapping | None = None, ids: str = "train"
) -> OutputClasses:
    """Derives the classes and ids of outputs.

    Args:
      predicted: the classes of the network.
      mapping: translates them; None keeps them.
      ids: `train` or `label`, the ids in `ids/*.png`.

    Raises:
      ValueError: the mapping lacks a predicted class, or a class has no single label id.
    """
    with_label_ids = ids == "label"
    suffix = ", ids=label" if with_label_ids else ""
    if mapping is None:
        file_ids = _source_ids(predicted) if with_label_ids else None
        return OutputClasses(predicted, predicted, None, file_ids, suffix)
    table, shown = mapping.table(predicted.names), mapping.label_set
    occurring = [*range(len(shown.classes)), VOID]
    label_ids = dict(zip(occurring, mapping.label_ids[occurring].tolist(), strict=True))
    identity = f", mapping={mapping.digest}{suffix}"
    file_ids = label_ids if with_label_ids else None
    return OutputClasses(predicted, shown, table, file_ids, identity)


def _source_ids(label_set: LabelSet) -> dict[int, int]:
    """Returns the source id of each class."""
    source_ids = {}
    for c in label_set.classes:
        sources = np.flatnonzero(label_set.table == c.id).tolist()
        if len(sources) != 1:
            raise ValueError(
                f"ids=label must be used with classes of one source id each; got {c.name} of label "
                f"set {label_set.name}, which has {sources or 'none'}. Remedy: --ids=train, or "
                "--mapping=FILE.json, which gives each class an id"
            )
        source_ids[c.id] = sources[0]
    return source_ids

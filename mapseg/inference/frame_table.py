"""`frames.csv`: its rows are noted as frames are done, and put in order at the end."""

import contextlib
import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mapseg.files import naming, write_text
from mapseg.inference.frames import order
from mapseg.inference.results import Row


class FrameTable:
    """The rows of an output folder: those that were there, and those of this call."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        """Reads what is there.

        Raises:
          ValueError: the table was changed.
        """
        self._path, self._columns = path, columns
        self._notes_path = path.with_name("frames.journal.csv")
        # The notes of a call that did not end begin with all rows that it had.
        self.rows = self._read(self._notes_path if self._notes_path.is_file() else path)

    def _read(self, path: Path) -> dict[str, Row]:
        if not path.is_file():
            return {}
        try:
            # A process that was killed leaves the last line without its end.
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            reader = csv.DictReader(io.StringIO(whole, newline=""))
            rows = [row for row in reader if None not in row.values() and None not in row]
            columns = reader.fieldnames
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: damaged: {error}. Remedy: another --out_dir") from error
        if columns != self._columns:
            raise ValueError(
                f"{path}: must have the columns that mapseg wrote; got {columns}. Remedy: restore "
                "it, or another --out_dir"
            )
        return {row["frame"]: row for row in rows}

    def _text(self, rows: Iterable[Row], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def drop(self, names: Iterable[str]) -> None:
        """Takes out rows that do not hold any more, of the table on the disk too."""
        dropped = [self.rows.pop(name) for name in names if name in self.rows]
        if dropped and self._path.is_file():
            write_text(self._path, self._text(self.rows.values(), header=True))

    def __enter__(self) -> "FrameTable":
        write_text(self._notes_path, self._text(self.rows.values(), header=True))
        self._file = self._notes_path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: Row) -> None:
        """Notes that a frame was done, or failed."""
        self.rows[row["frame"]] = row
        with naming(self._notes_path):
            self._file.write(self._text([row], header=False))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # all rows are flushed; what was not, has been told
            self._file.close()

    def finish(self) -> None:
        """Writes the rows, in the order of their sources, in place of the notes."""
        write_text(self._path, self._text(sorted(self.rows.values(), key=_order), header=True))
        self._notes_path.unlink()


def _order(row: Row) -> Any:
    return order(Path(row["source"])), order(Path(row["frame"]))

"""`frames.csv`: rows are appended to a journal as frames finish, and sorted at the end."""

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
    """The rows of an output folder, from earlier calls and from this one."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        """Reads the existing rows.

        Raises:
          ValueError: the table was edited or is damaged.
        """
        self._path, self._columns = path, columns
        self._journal_path = path.with_name("frames.journal.csv")
        # The journal of an interrupted call starts with a copy of all earlier rows.
        self.rows = self._read(self._journal_path if self._journal_path.is_file() else path)

    def _read(self, path: Path) -> dict[str, Row]:
        if not path.is_file():
            return {}
        try:
            # A killed process may leave an incomplete last line.
            complete_lines, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            reader = csv.DictReader(io.StringIO(complete_lines, newline=""))
            rows = [row for row in reader if None not in row.values() and None not in row]
            columns = reader.fieldnames
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: damaged: {error}. Remedy: use another --out_dir") from error
        if columns != self._columns:
            raise ValueError(
                f"{path}: must have the columns that mapseg wrote; got {columns}. Remedy: restore "
                "it, or use another --out_dir"
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
        """Removes outdated rows, also from the table on disk."""
        dropped = [self.rows.pop(name) for name in names if name in self.rows]
        if dropped and self._path.is_file():
            write_text(self._path, self._text(self.rows.values(), header=True))

    def __enter__(self) -> "FrameTable":
        write_text(self._journal_path, self._text(self.rows.values(), header=True))
        self._file = self._journal_path.open("a", encoding="utf-8", newline="")
        return self

    def append(self, row: Row) -> None:
        """Appends the row of a frame that is done or failed to the journal."""
        self.rows[row["frame"]] = row
        with naming(self._journal_path):
            self._file.write(self._text([row], header=False))
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # rows are flushed; a failed flush was reported
            self._file.close()

    def finish(self) -> None:
        """Sorts the rows by source, writes the table and removes the journal."""
        self.rows = dict(sorted(self.rows.items(), key=lambda item: _order(item[1])))
        write_text(self._path, self._text(self.rows.values(), header=True))
        self._journal_path.unlink()


def _order(row: Row) -> Any:
    return order(Path(row["source"])), order(Path(row["frame"]))

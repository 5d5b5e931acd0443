"""Layout csv: a table with a row per case: id, one column per channel, label, mask."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.config.schema import Data
from medseg.errors import DataError, raise_all
from medseg.volumes.dataset import Case, Channel

if TYPE_CHECKING:
    import _csv

ID_COLUMNS = ("id", "case")


@dataclass(frozen=True)
class Row:
    """A line of the table: where it stands, and its cells by column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class _Wanted:
    """The columns to read, and whether the cell of a channel may be empty: it is missing then."""

    channels: list[str]
    may_miss: bool
    label: str | None = None
    mask: str | None = None
    weights: str | None = None

    @property
    def others(self) -> list[str]:
        """The columns beside the channels."""
        return [name for name in (self.label, self.mask, self.weights) if name]


def find(data: Data) -> list[Case]:
    """The cases of a table. Paths are relative to its folder.

    Raises:
        DataError: The table is missing; DataErrors: columns are, cells are empty, ids come twice.
    """
    table = Path(data.path)
    columns, rows = read(table)
    label = data.label or ("label" if "label" in columns else None)
    channels = list((data.channels or {}).values())
    may_miss = data.missing == "zero"
    return _cases(table, columns, rows, _Wanted(channels, may_miss, label, data.mask, data.weights))


def inputs(table: Path, data: Data) -> list[Case]:
    """The cases of a table to predict: its columns are those of the config, or the channels' names.

    Raises:
        DataError: As for `find`.
    """
    columns, rows = read(table)
    names = data.channels or {}
    wanted = list(names.values()) if data.layout == "csv" else list(names)
    mask = data.mask if data.layout == "csv" else ("mask" if data.mask else None)
    return _cases(table, columns, rows, _Wanted(wanted, data.missing == "zero", mask=mask))


def read(table: Path) -> tuple[list[str], list[Row]]:
    """Read a table separated by commas, semicolons or tabs.

    Raises:
        DataError: It is missing, not text, or a row has too many or too few cells.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(table, f"cannot be read as a table: {error}; set data.path") from error
    header = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        return _rows(table, lines)
    except csv.Error as error:
        raise DataError(f"{table}:{lines.line_num}", f"not a line of a table: {error}") from error


def _rows(table: Path, lines: _csv.Reader) -> tuple[list[str], list[Row]]:
    columns = [cell.strip() for cell in next(lines, [])]
    errors, rows = [], []
    for cells in lines:
        if len(cells) not in (0, len(columns)):
            reason = f"{len(cells)} cells under {len(columns)} columns"
            errors.append(DataError(f"{table}:{lines.line_num}", reason))
        elif any(cell.strip() for cell in cells):
            stripped = (cell.strip() for cell in cells)
            rows.append(Row(lines.line_num, dict(zip(columns, stripped, strict=True))))
    raise_all(errors)
    return columns, rows


def _cases(table: Path, columns: list[str], rows: list[Row], wanted: _Wanted) -> list[Case]:
    id_column = next((name for name in ID_COLUMNS if name in columns), ID_COLUMNS[0])
    needed = [id_column, *wanted.channels, *wanted.others]
    missing = ", ".join(repr(name) for name in needed if name not in columns)
    if missing:
        has = ", ".join(columns) or "none"
        raise DataError(f"{table}:1", f"no column {missing}; the columns are {has}")
    raise_all(_mistakes(table, rows, id_column, wanted))
    return [_case(table.parent, row, id_column, wanted) for row in rows]


def _case(folder: Path, row: Row, id_column: str, wanted: _Wanted) -> Case:
    def file(column: str | None) -> Path | None:
        return folder / row.cells[column] if column and row.cells[column] else None

    found = [file(name) for name in wanted.channels]
    channels = tuple(None if path is None else Channel(path) for path in found)
    others = (file(wanted.label), file(wanted.mask), file(wanted.weights))
    return Case(row.cells[id_column], channels, *others)


def _mistakes(table: Path, rows: list[Row], id_column: str, wanted: _Wanted) -> list[DataError]:
    errors = []
    seen: dict[str, int] = {}
    for row in rows:
        place = f"{table}:{row.line}"
        has_channel = any(row.cells[name] for name in wanted.channels)
        channels = [] if wanted.may_miss and has_channel else wanted.channels
        needed = [id_column, *channels, *wanted.others]
        empty = ", ".join(name for name in needed if not row.cells[name])
        if empty:
            errors.append(
                DataError(place, f"empty cell in column {empty}: fill it or drop the row")
            )
        name = row.cells[id_column]
        if name and name in seen:
            errors.append(
                DataError(place, f"id {name!r} is already in line {seen[name]}: rename one")
            )
        seen.setdefault(name, row.line)
    return errors

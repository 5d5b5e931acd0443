"""Which columns of a table of cases are channels, label and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.errors import DataError
from medseg.planning.options import Options
from medseg.planning.words import role, short
from medseg.volumes.layouts.files import ENDINGS
from medseg.volumes.layouts.table import ID_COLUMNS, Row, read

Described = tuple[dict[str, Any], dict[str, str]]


def columns(table: Path, options: Options) -> Described:
    """The section `data` of a table, and how its parts were found.

    Raises:
        DataError: No column, or more than one, seems to be the label, or none a channel.
        DataErrors: Rows have too few or too many cells.
    """
    header, rows = read(table)
    volumes = [name for name in header if name not in ID_COLUMNS and _names_volumes(rows, name)]
    said = {*options.channels.values(), options.label, options.mask}
    left = [name for name in volumes if name not in said]
    label = options.label or _one(table, left, header)
    left = [name for name in left if name != label]
    masks = [name for name in left if role(name) != "channel"]
    mask = options.mask or (masks[0] if len(masks) == 1 else None)
    names = [name for name in left if name not in masks]
    channels = dict(options.channels) or dict(zip(short(names), names, strict=True))
    if not channels:
        raise DataError(table, f"no column of images: {_columns(header)}: give --channel t1=COLUMN")
    data: dict[str, Any] = {"channels": channels, "label": label, "mask": mask}
    gaps = {key: sum(not row.cells.get(name) for row in rows) for key, name in channels.items()}
    why = {"channels": "columns that name volumes", "label": "by the column's name"}
    if any(gaps.values()):
        told = ", ".join(f"{key} in {count}" for key, count in gaps.items() if count)
        data["missing"] = "zero"
        why["missing"] = f"of {len(rows)} cases, some lack a channel: {told}"
    return data, why


def _names_volumes(rows: list[Row], column: str) -> bool:
    cells = [row.cells[column] for row in rows if row.cells[column]]
    return bool(cells) and all(cell.endswith(ENDINGS) for cell in cells)


def _one(table: Path, names: list[str], header: list[str]) -> str:
    for wanted in ("label", "mask"):
        fitting = [name for name in names if role(name) == wanted]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise DataError(table, f"{' or '.join(fitting)} may be the label: give --label COLUMN")
    raise DataError(table, f"no column seems to be the label: {_columns(header)}: give --label")


def _columns(header: list[str]) -> str:
    return f"the columns are {', '.join(header) or 'none'}"

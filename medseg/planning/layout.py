"""The section `data` of a data set that nobody has described yet, and how each part was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medseg import files
from medseg.errors import ConfigError, DataError, DataErrors
from medseg.planning import folders
from medseg.planning.columns import columns
from medseg.planning.options import Options
from medseg.volumes.layouts.files import fitting, found
from medseg.volumes.layouts.table import ID_COLUMNS, read

Layout = Literal["folder", "csv", "msd", "nnunet"]
_SPLIT = "split.json"


@dataclass(frozen=True)
class Found:
    """A data set, described.

    Args:
        path: The folder or the table.
        data: The section `data`, without `path` and `split.file`.
        why: How each part was found, by its key below `data`.
        split: The file that says which cases train, if there is one.
    """

    path: Path
    data: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)
    split: Path | None = None


def find(path: Path, options: Options) -> Found:
    """Describe a data set from its files and from what the user says of it.

    Args:
        path: A folder or a .csv file.
        options: What the user says; it comes before what is found.

    Raises:
        DataError: There is no such path, nothing in it is an image, or what its files are could
            be read in several ways: the message says which options tell.
        ConfigError: An option is not for this layout.
    """
    if not path.exists():
        raise DataError(path, "no such file or folder")
    layout, path, why = _layout(path, options.layout)
    split = options.split or next(
        (beside for beside in (_beside(path) / _SPLIT,) if beside.is_file()), None
    )
    if layout == "folder":
        data, told = folders.describe(path, options)
    elif layout == "csv":
        data, told = columns(path, options)
    else:
        data, told = _listed(options, layout), {}
    if options.classes:
        data["classes"] = dict(options.classes)
    told = {"layout": why, **told}
    if split is not None:
        told["split.file"] = "as asked" if options.split else f"{_SPLIT} lies beside the cases"
    return Found(path, {"layout": layout, **data}, told, split)


def _beside(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _layout(path: Path, wanted: Layout | None) -> tuple[Layout, Path, str]:
    """The layout, the path that it is of, and how it was found."""
    if path.is_file():
        if path.suffix != ".csv":
            raise DataError(path, "give the folder of a data set, or its .csv file")
        if wanted not in (None, "csv"):
            raise ConfigError(f"--layout {wanted} is of a folder, and {path} is a file")
        return "csv", path, "a table was named"
    tables = _tables(path)
    if wanted == "csv":
        if len(tables) != 1:
            raise DataError(path, f"{len(tables)} tables with an id column: name the .csv file")
        return "csv", tables[0], "as asked"
    if wanted is not None:
        return wanted, path, "as asked"
    if (path / "dataset.json").is_file():
        return *_of_manifest(path), "of dataset.json's keys"
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DataError(path, f"holds several tables of cases ({names}): name one, or --layout")
    if tables:
        return "csv", tables[0], f"{tables[0].name} lists the cases"
    return "folder", path, "neither dataset.json nor a table of cases is there"


def _of_manifest(path: Path) -> tuple[Layout, Path]:
    content = files.read_json(path / "dataset.json")
    keys = content if isinstance(content, dict) else {}
    is_numbered = any(
        re.search(r"_\d{4}\.nii", image.name) for image in (path / "imagesTr").glob("*.nii*")
    )
    if "channel_names" in keys or (is_numbered and "modality" in keys):
        return "nnunet", path
    if isinstance(keys.get("training"), list):
        return "msd", path
    raise DataError(
        path / "dataset.json",
        'has neither "channel_names" (nnU-Net) nor a list "training" (Medical Segmentation '
        f"Decathlon): give --layout{fitting(path)}; {found(path)}",
    )


def _tables(folder: Path) -> list[Path]:
    """The tables of a folder that have a column of ids."""
    tables = []
    for table in sorted(folder.glob("*.csv")):
        try:
            header, _ = read(table)
        except (DataError, DataErrors):
            continue
        if set(header) & set(ID_COLUMNS):
            tables.append(table)
    return tables


def _listed(options: Options, layout: Layout) -> dict[str, Any]:
    for option in ("label", "mask"):
        if getattr(options, option) is not None:
            raise ConfigError(
                f"layout {layout!r} says itself where labels are: leave out --{option}, or give "
                "--layout folder"
            )
    return {"channels": dict(options.channels) if options.channels else None}

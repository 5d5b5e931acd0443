"""What all layouts share: names of NIfTI files, and plain lists of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medseg.config.schema import Data
from medseg.errors import DataError
from medseg.volumes.dataset import Case, Channel

MAY_MISS = "add it, or allow it to be missing (data.missing: zero; medseg predict --missing zero)"
ENDINGS = (".nii.gz", ".nii")


def stem(path: Path) -> str:
    """The file's name without .nii.gz or .nii."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def volumes_in(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, without hidden ones (macOS leaves `._x.nii.gz` behind)."""
    if not folder.is_dir():
        return []
    names = [path for path in folder.iterdir() if path.name.endswith(ENDINGS)]
    return sorted(path for path in names if not path.name.startswith(".") and path.is_file())


def known(channels: Sequence[Channel], data: Data) -> tuple[Channel | None, ...]:
    """The channels, None for those that are not there, if `data.missing` allows that.

    For files named by a pattern: one that a list names has to be there. A case without any channel
    keeps them all, for its reader to report.
    """
    there = [not _is_absent(channel.path) for channel in channels]
    if data.missing == "refuse" or not any(there):
        return tuple(channels)
    return tuple(c if is_there else None for c, is_there in zip(channels, there, strict=True))


def _is_absent(path: Path) -> bool:
    """Whether nothing has this name; a link that leads nowhere, or a file out of reach, has it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def channels_of(
    paths: Sequence[Path | None], data: Data, source: str | Path
) -> tuple[Channel | None, ...]:
    """Give a case its channels: a file each, or, in layout msd, the volumes of one 4D file.

    Args:
        paths: The files, in the order of the channels; None: this channel is missing.
        data: The config's section.
        source: What names them; for messages.

    Raises:
        DataError: The number of files is not that of the channels, or one is missing that may not.
    """
    names = data.channels or {}
    first = paths[0] if len(paths) == 1 else None
    if data.layout == "msd" and first is not None:
        places = [position(value) for value in names.values()]
        if places[0][1] > 1:
            return tuple(Channel(first, index, total) for index, total in places)
    if len(paths) == len(names):
        _refuse_missing(paths, data, source)
        return tuple(None if path is None else Channel(path) for path in paths)
    raise DataError(
        source,
        f"{len(paths)} file(s) for a case of {len(names)} channels ({', '.join(names)}): give one "
        "file a channel, in this order, or a folder or a .csv file with a column each",
    )


def _refuse_missing(paths: Sequence[Path | None], data: Data, source: str | Path) -> None:
    gone = [name for name, path in zip(data.channels or {}, paths, strict=True) if path is None]
    if gone and (data.missing == "refuse" or len(gone) == len(paths)):
        remedy = "one channel at least is needed" if data.missing == "zero" else MAY_MISS
        raise DataError(source, f"no file for channel {', '.join(gone)}: {remedy}")


def position(value: str) -> tuple[int, int]:
    """Where a resolved channel stands in dataset.json: "2 of 4" is (2, 4), counted from 0."""
    index, _, total = value.partition(" of ")
    return int(index), int(total)


def is_position(value: str) -> bool:
    """Whether a channel is resolved, as `position` reads it."""
    return re.fullmatch(r"\d+ of \d+", value) is not None


def inputs(folder: Path, data: Data) -> list[Case]:
    """Every NIfTI file of a folder is a case; for a model of several channels, a 4D one."""
    return [Case(stem(path), channels_of([path], data, path)) for path in volumes_in(folder)]


def found(folder: Path) -> str:
    """Say what lies in a folder, for a message."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"found {', '.join(names[:5])}{more}" if names else "the folder is empty"


def fitting(folder: Path) -> str:
    """Say which layout a folder seems to have, for a message; empty if none is recognised."""
    manifest = folder / "dataset.json"
    if manifest.is_file():
        numbered = any(re.search(r"_\d{4}\.nii", p.name) for p in volumes_in(folder / "imagesTr"))
        return f"; layout '{'nnunet' if numbered else 'msd'}' fits"
    tables = sorted(folder.glob("*.csv"))
    if tables:
        return f"; layout 'csv' with data.path {tables[0].name} may fit"
    if volumes_in(folder) or any(volumes_in(sub) for sub in folder.iterdir() if sub.is_dir()):
        return "; layout 'folder' may fit"
    return ""

"""Find the cases of a dataset, or the inputs of a prediction, in the files as users have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medseg.config.schema import Data
from medseg.errors import ConfigError, DataError, raise_all
from medseg.registry import unknown
from medseg.volumes.dataset import (
    IGNORE_INDEX,
    Case,
    Channel,
    Dataset,
    Labels,
    Policy,
    natural,
)
from medseg.volumes.layouts import files, folder, manifest, msd, nnunet, table

__all__ = [
    "IGNORE_INDEX",
    "Case",
    "Channel",
    "Dataset",
    "Labels",
    "Policy",
    "find",
    "find_inputs",
    "resolve",
]

_FIND: dict[str, Callable[[Data], list[Case]]] = {
    "folder": folder.find,
    "csv": table.find,
    "msd": msd.find,
    "nnunet": nnunet.find,
}
_INPUTS: dict[str, Callable[[Path, Data], list[Case]]] = {
    "folder": folder.inputs,
    "csv": files.inputs,
    "msd": msd.inputs,
    "nnunet": nnunet.inputs,
}
_OURS = ("failures", "summary", "scores")  # what else lies where masks are written


def resolve(data: Data) -> Data:
    """Complete a config from its dataset.json, so that a model can be used where the data is not.

    Raises:
        DataError: dataset.json is missing or makes no sense.
        ConfigError: The config asks for what the layout does not have.
    """
    if data.layout in ("folder", "csv"):
        return data
    for key in ("label", "mask", "weights"):
        if getattr(data, key) is not None:
            raise ConfigError(
                f"layout {data.layout!r} has no data.{key}: remove it, or use layout 'folder'",
                ("data", key),
            )
    resolved = manifest.resolve(data)
    if data.reference not in (None, *(resolved.channels or {})):
        told = unknown("channel", str(data.reference), resolved.channels or {})
        raise ConfigError(f"data.reference: {told}", ("data", "reference"))
    return resolved


def find(data: Data) -> Dataset:
    """Find the cases of a dataset. No volume is opened: `check_cases` does that.

    Args:
        data: The config's section; `data.path` is absolute or relative to the current folder.

    Raises:
        DataError: The layout is not that of the files, there is no case, or an id cannot be used.
        DataErrors: Several of these.
        ConfigError: Classes or channels make no sense.
    """
    data = resolve(data)
    cases = _checked(_FIND[data.layout](data), Path(data.path))
    channels, labels = tuple(data.channels or {}), Labels.of(data)
    return Dataset(cases, channels, labels, Path(data.path), Policy.of(data))


def find_inputs(source: Path, data: Data) -> tuple[Case, ...]:
    """Find the cases to predict. Labels are neither needed nor looked for.

    Args:
        source: A folder named as the layout names its files (patterns also without their folders);
            a .csv with a column per channel; a .txt with a case per line, the files of its channels
            separated by tabs or commas; or one NIfTI file. Paths in a .csv or .txt are relative
            to its folder; where a channel may be missing, its cell is empty.
        data: The config the model was trained with.

    Raises:
        DataError: As for `find`, or the source is not one of these.
    """
    channels = (data.channels or {"": ""}).values()
    if not all(files.is_position(value) for value in channels):
        data = resolve(data)
    return _checked(_inputs(source, data), source)


def _inputs(source: Path, data: Data) -> list[Case]:
    if not source.exists():
        raise DataError(source, "no such file or folder")
    if source.is_dir():
        cases = _INPUTS[data.layout](source, data)
        if not cases:
            expected = ", ".join((data.channels or {}).values())
            wanted = f" like {expected}" if data.layout == "folder" else ""
            raise DataError(source, f"no input file{wanted}: {files.found(source)}")
        return cases
    if source.suffix == ".csv":
        return table.inputs(source, data)
    if source.suffix == ".txt":
        return _listed(source, data)
    if source.name.endswith(files.ENDINGS):
        return [_single([source], data, source)]
    raise DataError(source, "give a folder, a .csv, a .txt list, or a .nii.gz file")


def _listed(source: Path, data: Data) -> list[Case]:
    cases = []
    errors = []
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(source, f"cannot be read as a list of files: {error}") from error
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split("\t" if "\t" in line else ",")]
        if not line.strip() or line.startswith("#"):
            continue
        try:
            paths = [source.parent / cell if cell else None for cell in cells]
            cases.append(_single(paths, data, f"{source}:{number}"))
        except DataError as error:
            errors.append(error)
    raise_all(errors)
    return cases


def _single(paths: Sequence[Path | None], data: Data, source: str | Path) -> Case:
    channels = files.channels_of(paths, data, source)
    number, first = next((n, path) for n, path in enumerate(paths) if path is not None)
    name = files.stem(first)
    if data.layout == "nnunet":
        name = nnunet.strip(name)
    if data.layout == "folder":
        pattern = folder.Pattern(list((data.channels or {}).values())[number])
        name = pattern.name_of(first) or name
    return Case(name, channels)


def _checked(cases: list[Case], source: Path) -> tuple[Case, ...]:
    """Refuse ids that come twice or that could not name an output file; sort the rest naturally."""
    if not cases:
        raise DataError(source, "no case in it")
    errors = []
    seen: dict[str, Case] = {}
    for case in cases:
        first = case.files[0]
        is_named = case.id.isprintable() and not set(case.id) & set("/\\")
        if case.id in _OURS or case.id.startswith(".") or not is_named:
            reason = f"id {case.id!r} cannot name an output file: no slash, no dot in front"
            errors.append(DataError(source, reason))
        elif case.id in seen:
            other = seen[case.id].files[0]
            errors.append(DataError(first, f"id {case.id!r} is also that of {other}: rename one"))
        seen.setdefault(case.id, case)
    raise_all(errors)
    return tuple(sorted(cases, key=lambda case: natural(case.id)))

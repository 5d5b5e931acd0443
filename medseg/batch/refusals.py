"""What is found before any work of a batch run: nothing of it could come out right."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from secrets import token_hex

from medseg.batch import outputs
from medseg.batch.ledger import FAILURES, FAILURES_TABLE
from medseg.batch.place import try_writing
from medseg.errors import DataError, raise_all
from medseg.volumes import nifti
from medseg.volumes.dataset import Case, Channel

_OURS = (FAILURES, FAILURES_TABLE)


def refuse(
    cases: Sequence[Case], channels: Sequence[str], output: Path, source: Path | None = None
) -> None:
    """Refuse a run that cannot be right, or else make its output folder.

    Args:
        cases: All cases, of every shard.
        channels: The names of the model's channels.
        output: The folder for the masks.
        source: What the user gave as input, if it was one place.

    Raises:
        DataError: The output folder is the input folder, or inside it, or cannot be written; an
            input would be overwritten; no case has a channel of the model.
        DataErrors: Several cases would write the same file.
    """
    _refuse_inside(output, source)
    _refuse_overwriting(output, cases)
    _refuse_channels(cases, channels)
    refuse_clashes(cases, output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(output, f"cannot be written: {error.strerror or error}") from error
    try_writing(output)
    if _folds_case(output):
        refuse_clashes(cases, output, folds_case=True)


def _refuse_inside(output: Path, source: Path | None) -> None:
    """The masks would be inputs of the next run."""
    if source is None or not source.is_dir():
        return
    place, beside = output.resolve(), source.resolve()
    for folder in (place, *place.parents):
        if folder.exists() and folder.samefile(source):
            raise DataError(
                output,
                f"{'is' if folder == place else 'lies inside'} the input folder, {source}, and a "
                "rerun could take masks for inputs: give a folder beside it, such as "
                f"{beside.with_name(beside.name + '_masks')}",
            )


def _refuse_overwriting(output: Path, cases: Sequence[Case]) -> None:
    inputs = {path.resolve() for case in cases for path in case.files}
    folder = output.resolve()  # a link in it is replaced, not followed
    for case in cases:
        for file in outputs.volumes(folder, case.id):
            if file in inputs:
                raise DataError(file, "an input has this name; give another output folder")


def refuse_clashes(cases: Sequence[Case], output: Path, *, folds_case: bool = False) -> None:
    """Refuse cases that would write the same file.

    Names are one also where only their Unicode forms differ, as a share may change these; and
    where only their case does, on a file system that ignores it.

    Raises:
        DataError: Two would.
        DataErrors: More would.
    """
    owners: dict[str, str] = {_folded(name, folds_case): "" for name in _OURS}
    errors = []
    for case in cases:
        names = [_folded(name, folds_case) for name in _names(output, case)]
        clash = next((name for name in names if name in owners), None)
        if clash is not None:
            other = owners[clash]
            who = f"case {other!r}" if other else "the list of failures"
            reason = f"case {case.id!r} would write {clash}, and so would {who}: rename one"
            errors.append(DataError(case.files[0], reason))
        owners |= dict.fromkeys(names, case.id)
    raise_all(errors)


def _names(output: Path, case: Case) -> Iterable[str]:
    files = (*outputs.volumes(output, case.id), outputs.sidecar(output, case.id))
    return (file.relative_to(output).as_posix() for file in files)


def _folded(name: str, folds_case: bool) -> str:
    name = unicodedata.normalize("NFC", name)
    return name.casefold() if folds_case else name


def _folds_case(output: Path) -> bool:
    """Whether a folder's file system ignores case."""
    trial = output / f".case-{token_hex(8)}"
    trial.touch()
    try:
        return trial.with_name(trial.name.upper()).exists()
    finally:
        trial.unlink(missing_ok=True)


def _refuse_channels(cases: Sequence[Case], channels: Sequence[str]) -> None:
    """Refuse inputs all of which have other channels than the model; single ones fail alone."""
    if not cases:
        return
    found = _other_channels(cases[0], channels)
    if found is not None and all(_other_channels(case, channels) == found for case in cases[1:]):
        raise DataError(
            cases[0].files[0],
            f"{found}, as have all {len(cases)} cases: the model was trained with {len(channels)} "
            f"channels ({', '.join(channels)}). Give it these, in this order, or another model",
        )


def _other_channels(case: Case, channels: Sequence[str]) -> str | None:
    """How the channels of a case differ from those of the model, by names and headers alone."""
    present = [channel for channel in case.channels if channel is not None]
    try:
        absent = [
            name
            for name, channel in zip(channels, case.channels, strict=True)
            if channel is not None and not channel.path.is_file()
        ]
        if 0 < len(absent) < len(present):
            return f"no file for channel {', '.join(absent)}"
        return _volumes(present)
    except (DataError, OSError):  # what is damaged is told of its case
        return None


def _volumes(channels: Sequence[Channel]) -> str | None:
    """Whether a file holds more or fewer volumes than the model takes of it."""
    for channel in channels:
        shape = nifti.read_header(channel.path).shape
        held = shape[3] if len(shape) == 4 else 1
        wanted = 1 if channel.index is None else channel.volumes
        if wanted is not None and held != wanted:
            return f"{held} volumes in one file, where {wanted} are needed"
    return None


def common_folder(cases: Sequence[Case]) -> Path | None:
    """The deepest folder that holds every input; None: it is the root, or not there."""
    folders = {os.fspath(path.parent.absolute()) for case in cases for path in case.files}
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:  # on several drives, or no file at all
        return None
    return None if common == Path(common.anchor) or not common.is_dir() else common

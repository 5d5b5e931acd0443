"""What a data set is called, which of its cases are looked at, and what its labels mean."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from medseg.config.schema import Data, Split
from medseg.errors import ConfigError, DataError
from medseg.planning import rules
from medseg.planning.choice import Choice, Choices
from medseg.planning.fingerprint import Fingerprint, Sides
from medseg.planning.layout import Found
from medseg.registry import explain
from medseg.volumes import cases, nifti
from medseg.volumes.dataset import Dataset, Labels
from medseg.volumes.split import split

_ANY = Labels({"any": tuple(range(1, 255))}, 255)  # where nobody has named any class
_PEEKED = 3  # labels that are looked into before the pass over all


@dataclass(frozen=True)
class Start:
    """A data set that can be looked at.

    Args:
        found: How it was described.
        dataset: The cases to look at: those that train, where a file says which.
        knows_classes: Whether its classes are known; else each label value that is found is one.
        train: How many cases train, in the fold that comes first.
        validate: How many validate.
        folds: In how many parts the cases are split where no file says how.
    """

    found: Found
    dataset: Dataset
    knows_classes: bool
    train: int
    validate: int
    folds: int


def begin(found: Found) -> Start:
    """Find the cases.

    Raises:
        DataError: There are fewer than two, or the layout is not that of the files.
        DataErrors: The split file does not fit them.
    """
    values: dict[str, Any] = {"path": str(found.path), **found.data}
    is_open = found.data["layout"] in ("folder", "csv") and not values.get("classes")
    if is_open:
        values["classes"] = _ANY.classes
    dataset = cases.find(_data(values))
    if is_open:
        dataset = replace(dataset, labels=_guessed(dataset))
    knows, count = dataset.labels is not _ANY, len(dataset.cases)
    if found.split is not None:
        ids = split(dataset, Split(file=str(found.split)), 0)
        train = dataset.only(ids.train)
        return Start(found, train, knows, len(ids.train), len(ids.validation), rules.FOLDS)
    if count < 2:
        raise DataError(
            found.path, f"{count} case: a training needs two at least, one of them to validate"
        )
    folds = min(rules.FOLDS, count)
    validate = -(-count // folds)
    return Start(found, dataset, knows, count - validate, validate, folds)


def _data(values: dict[str, Any]) -> Data:
    try:
        return Data.model_validate_json(json.dumps(values))
    except ValidationError as error:
        told = "; ".join(explain(item) for item in error.errors())
        raise ConfigError(f"data: {told}") from error


def _guessed(dataset: Dataset) -> Labels:
    """What label values may mean, from the first labels: any of them, or 255 as in a picture."""
    values: set[int] = set()
    for case in dataset.cases[:_PEEKED]:
        if case.label is not None and case.label.is_file():
            values |= set(np.unique(nifti.read_label(case.label, warn=False).data).tolist()) - {0}
            if values and max(values) > (_ANY.ignore or 0):
                raise DataError(
                    case.label,
                    f"holds label values up to {max(values)}: say which are to be learnt, by "
                    "--class NAME=VALUE",
                )
    return Labels({"lesion": (255,)}) if values == {255} else _ANY


def labels(start: Start, fingerprint: Fingerprint) -> Labels:
    """The classes of a data set, named by their values where nobody has named them."""
    if start.knows_classes:
        return start.dataset.labels
    ignore = _ANY.ignore if _ANY.ignore in fingerprint.label_values else None
    values = [value for value in fingerprint.label_values if value != ignore]
    names = ["lesion"] if len(values) == 1 else [f"label_{value}" for value in values]
    return Labels({name: (v,) for name, v in zip(names, values, strict=True)}, ignore)


def named(fingerprint: Fingerprint, classes: Labels) -> Fingerprint:
    """A fingerprint whose classes have names instead of the values that they were found by."""
    names = {str(values[0]): name for name, values in classes.classes.items()}
    renamed = tuple(replace(c, name=names.get(c.name, c.name)) for c in fingerprint.classes)
    return replace(
        fingerprint, classes=renamed, sides=tuple(_renamed(s, names) for s in fingerprint.sides)
    )


def _renamed(sides: Sides, names: dict[str, str]) -> Sides:
    one, other = (names.get(name, name) for name in sides.classes)
    return replace(sides, classes=(one, other))


def choices(start: Start, classes: Labels, config: Path, name: str | None) -> Choices:
    """The name of the run and the section `data`.

    Args:
        start: The data set.
        classes: What its labels mean.
        config: The file to write, from which paths that were given as relative ones start.
        name: Of the run; None: that of the folder.

    Raises:
        ConfigError: The name is none.
    """
    found, why = start.found, start.found.why
    made: Choices = {"name": Choice(_name(found.path, name))}
    made["data.path"] = Choice(_path(found.path, config))
    for key, value in found.data.items():
        made[f"data.{key}"] = Choice(value, why.get(key, ""))
    is_listed = found.data["layout"] in ("msd", "nnunet")
    told = ", ".join(f"{key} {_values(values)}" for key, values in classes.classes.items())
    if is_listed:
        names = ", ".join(start.dataset.channels)
        if not found.data.get("channels"):
            made["data.channels"] = Choice(None, f"of dataset.json: {names}")
        if "classes" not in found.data:
            made["data.classes"] = Choice(None, f"of dataset.json: {told}")
    elif "classes" not in found.data:
        plain = {key: values[0] for key, values in classes.classes.items()}
        made["data.classes"] = Choice(plain, f"label values that were found: {told}; rename them")
        if classes.ignore is not None:
            reason = (
                f"{classes.ignore} occurs beside other values, as one that marks what to ignore"
            )
            made["data.ignore_label"] = Choice(classes.ignore, reason)
    return made | _split(start, config)


def _split(start: Start, config: Path) -> Choices:
    found, told = start.found, f"{start.train} cases train, {start.validate} validate"
    if found.split is not None:
        why = f"{found.why['split.file']}: {told}"
        return {"data.split.file": Choice(_path(found.split, config), why)}
    return {"data.split.folds": Choice(start.folds, f"{told} in each fold")}


def _path(path: Path, config: Path) -> str:
    """Absolute if it was given so; else relative to the folder of the config."""
    if path.is_absolute():
        return str(path)
    return Path(os.path.relpath(path.resolve(), config.parent.resolve())).as_posix()


def _name(path: Path, wanted: str | None) -> str:
    if wanted is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", wanted):
            raise ConfigError(f"--name is of letters, digits, '.', '_' and '-', got {wanted!r}")
        return wanted
    folder = path.resolve().parent if path.is_file() else path.resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", folder.name).strip("._-") or "run"


def _values(values: tuple[int, ...]) -> str:
    return "+".join(map(str, values))

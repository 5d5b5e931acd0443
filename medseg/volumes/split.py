"""Which cases train and which validate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg import files
from medseg.config.schema import Split
from medseg.errors import DataError, raise_all
from medseg.volumes.dataset import Dataset, natural

SETS = ("train", "validation")


@dataclass(frozen=True)
class SplitIds:
    """Case ids. Written as JSON (`dataclasses.asdict`), it can be read again as a split file."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def split(dataset: Dataset, settings: Split, seed: int) -> SplitIds:
    """Read the split from its file, or draw folds from the seed.

    The folds depend on the set of ids, the seed and their number alone. They are as even as can
    be, and each case validates in exactly one of them.

    Raises:
        DataError: The file does not fit the cases, or there are fewer cases than folds.
        DataErrors: The file does not fit in several ways.
    """
    ids = sorted((case.id for case in dataset.cases), key=natural)
    if settings.file is not None:
        return _from_file(Path(settings.file), set(ids))
    if len(ids) < settings.folds:
        raise DataError(
            dataset.source,
            f"{len(ids)} case(s) for {settings.folds} folds: set data.split.folds to at most "
            "the number of cases (at least 2), or name a data.split.file",
        )
    order = np.random.default_rng(seed).permutation(len(ids))
    fold = {ids[n] for n in order[settings.fold :: settings.folds]}
    train = tuple(name for name in ids if name not in fold)
    return SplitIds(train, tuple(name for name in ids if name in fold))


def _from_file(path: Path, known: set[str]) -> SplitIds:
    content = files.read_json(path)
    if not isinstance(content, dict) or not all(_is_ids(content.get(key)) for key in SETS):
        raise DataError(path, 'must hold {"train": [ids], "validation": [ids]}')
    train, validation = (tuple(content[key]) for key in SETS)
    errors = [
        DataError(path, f'"{key}" is empty: name at least one case')
        for key, ids in zip(SETS, (train, validation), strict=True)
        if not ids
    ]
    mistakes = {
        "is not a case of the dataset": set(train + validation) - known,
        'is in both "train" and "validation"': set(train) & set(validation),
        "is named twice": _twice(train) | _twice(validation),
    }
    for mistake, ids in mistakes.items():
        if ids:
            more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
            errors.append(DataError(path, f"{min(ids, key=natural)!r}{more} {mistake}"))
    raise_all(errors)
    return SplitIds(train, validation)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _twice(ids: tuple[str, ...]) -> set[str]:
    return {name for name in ids if ids.count(name) > 1}

"""Which cases train and which validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg import files
from medseg.config.schema import Split
from medseg.errors import DataError, raise_all
from medseg.volumes.dataset import Dataset, natural
from medseg.volumes.stratify import Stratum, deal

SETS = ("train", "validation")
FOLDS = "folds"


@dataclass(frozen=True)
class SplitIds:
    """Case ids. Written as JSON (`dataclasses.asdict`), it can be read again as a split file."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.train, *self.validation)


@dataclass(frozen=True)
class Folds:
    """Case ids, fold by fold, each in natural order and each id once.

    Written as JSON (`dataclasses.asdict`), it can be read again as a split file.
    """

    folds: tuple[tuple[str, ...], ...]

    def split(self, fold: int) -> SplitIds:
        """Fold `fold` validates, the others train."""
        others = [name for n, ids in enumerate(self.folds) if n != fold for name in ids]
        return SplitIds(tuple(sorted(others, key=natural)), self.folds[fold])

    @property
    def ids(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted((name for ids in self.folds for name in ids), key=natural))


def given(dataset: Dataset, settings: Split) -> SplitIds | Folds | None:
    """What the split file says; None: there is none, and folds are to be drawn.

    A file holds `{"train": [ids], "validation": [ids]}` or `{"folds": [[ids], [ids], ...]}`; other
    keys are notes.

    Raises:
        DataError: The file does not fit the cases, or there are fewer cases than folds to draw.
        DataErrors: The file does not fit in several ways.
    """
    if settings.file is not None:
        return _from_file(Path(settings.file), {case.id for case in dataset.cases})
    if len(dataset.cases) < settings.folds:
        raise DataError(
            dataset.source,
            f"{len(dataset.cases)} case(s) for {settings.folds} folds: set data.split.folds to at "
            "most the number of cases (at least 2), or name a data.split.file",
        )
    return None


def draw(
    dataset: Dataset, folds: int, seed: int, strata: Mapping[str, Stratum] | None = None
) -> Folds:
    """Draw folds from the seed, alike in classes and lesion volumes where those are known.

    They depend on the set of ids, the seed, their number and the strata alone. They are as even as
    can be, and each case is in exactly one of them.

    Args:
        dataset: The cases, at least as many as folds.
        folds: How many.
        seed: Of the draw.
        strata: What each label holds, by case id; None: not known, the folds are plain.
    """
    ids = sorted((case.id for case in dataset.cases), key=natural)
    rng = np.random.default_rng(seed)
    if strata is None:
        order = rng.permutation(len(ids))
        dealt = tuple(frozenset(ids[n] for n in order[fold::folds]) for fold in range(folds))
    else:
        dealt = deal({name: strata[name] for name in ids}, folds, rng)
    return Folds(tuple(tuple(name for name in ids if name in part) for part in dealt))


def split(
    dataset: Dataset, settings: Split, seed: int, strata: Mapping[str, Stratum] | None = None
) -> SplitIds:
    """Read the split from its file, or draw folds: `given`, else `draw`, and the fold of both.

    Raises:
        DataError: As of `given`; or the file has no such fold.
        DataErrors: As of `given`.
    """
    found = given(dataset, settings) or draw(dataset, settings.folds, seed, strata)
    return chosen(found, settings)


def chosen(found: SplitIds | Folds, settings: Split) -> SplitIds:
    """The split of the fold that the settings name.

    Raises:
        DataError: The split file has fewer folds.
    """
    if isinstance(found, SplitIds):
        return found
    if settings.fold >= len(found.folds):
        raise DataError(
            settings.file or "data.split",
            f"has {len(found.folds)} folds, counted from 0: there is no fold {settings.fold}; "
            "correct data.split.fold",
        )
    return found.split(settings.fold)


def _from_file(path: Path, known: set[str]) -> SplitIds | Folds:
    content = files.read_json(path)
    if isinstance(content, dict) and FOLDS in content:
        return _folds(path, content[FOLDS], known)
    if not isinstance(content, dict) or not all(_is_ids(content.get(key)) for key in SETS):
        raise DataError(
            path, 'must hold {"train": [ids], "validation": [ids]} or {"folds": [[ids], ...]}'
        )
    train, validation = (tuple(content[key]) for key in SETS)
    _refuse(path, {f'"{key}"': tuple(content[key]) for key in SETS}, known)
    return SplitIds(train, validation)


def _folds(path: Path, content: Any, known: set[str]) -> Folds:
    if not isinstance(content, list) or len(content) < 2 or not all(map(_is_ids, content)):
        raise DataError(path, '"folds" must be a list of two or more lists of ids')
    _refuse(path, {f"fold {n}": tuple(ids) for n, ids in enumerate(content)}, known)
    return Folds(tuple(tuple(sorted(ids, key=natural)) for ids in content))


def _refuse(path: Path, sets: Mapping[str, Sequence[str]], known: set[str]) -> None:
    """Refuse sets of ids that are empty, overlap, or hold what is no case."""
    errors = [
        DataError(path, f"{name} is empty: name at least one case")
        for name, ids in sets.items()
        if not ids
    ]
    every = [name for ids in sets.values() for name in ids]
    within = {name for ids in sets.values() for name in _twice(ids)}
    mistakes = {
        "is not a case of the dataset": set(every) - known,
        f"is in both {_listed(sets)}": _twice([name for ids in sets.values() for name in set(ids)]),
        "is named twice": within,
    }
    for mistake, ids in mistakes.items():
        if ids:
            more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
            errors.append(DataError(path, f"{min(ids, key=natural)!r}{more} {mistake}"))
    raise_all(errors)


def _listed(sets: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(sets) if len(sets) == 2 else "one fold and another"


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _twice(ids: Sequence[str]) -> set[str]:
    seen, twice = set[str](), set[str]()
    for name in ids:
        (twice if name in seen else seen).add(name)
    return twice

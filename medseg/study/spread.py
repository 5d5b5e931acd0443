"""How far scores differ from fold to fold, and from seed to seed."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import DataError
from medseg.evaluation.scores import statistics_of
from medseg.files import write_json
from medseg.study.folder import Place, Study
from medseg.training.run import RunFolder

_KEYS = ("case", "class")
MEAN = "mean"


@dataclass(frozen=True)
class Spread:
    """Scores by what varies.

    Args:
        over: "folds" or "seeds".
        values: Of which, in order.
        classes: Class name to measure to one mean over cases for each of `values`; None where no
            case has a finite value. Of folds each has its own cases, of seeds all have the same.
        dice: The mean Dice over the classes, for each of `values`.
    """

    over: str
    values: tuple[int, ...]
    classes: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    dice: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values: each score with its values, mean, sd (n - 1), min and max."""
        return {
            self.over: list(self.values),
            "mean_dice": _described(self.dice),
            "classes": {
                name: {measure: _described(found) for measure, found in measures.items()}
                for name, measures in self.classes.items()
            },
        }


def spreads(study: Study, runs: Mapping[Place, RunFolder]) -> tuple[Spread, ...]:
    """Read the scores of all runs, and write `folds.json` and `seeds.json`, where there are any.

    Raises:
        DataError: The scores of a run cannot be read.
    """
    found = []
    for over, key in (("folds", "fold"), ("seeds", "seed")):
        values = sorted({n for place in runs if (n := getattr(place, key)) is not None})
        if values:
            rows = [
                [row for place, run in runs.items() if getattr(place, key) == value
                 for row in _rows(run.validation / "scores.csv")]
                for value in values
            ]  # fmt: skip
            spread = _spread(over, values, rows)
            write_json(study.path / f"{over}.json", spread.as_json())
            found.append(spread)
    return tuple(found)


def _spread(
    over: str, values: Sequence[int], rows: Sequence[Sequence[Mapping[str, str]]]
) -> Spread:
    names = list(dict.fromkeys(row["class"] for row in rows[0]))
    measures = [key for key in rows[0][0] if key not in _KEYS]
    classes = {
        name: {key: tuple(_mean(some, name, key) for some in rows) for key in measures}
        for name in names
    }
    dice = tuple(
        statistics.fmean(classes[name]["dice"][n] or 0.0 for name in names)
        for n in range(len(values))
    )
    return Spread(over, tuple(values), classes, dice)


def _mean(rows: Sequence[Mapping[str, str]], name: str, key: str) -> float | None:
    found = [float(row[key]) for row in rows if row["class"] == name and row[key] != ""]
    finite = [value for value in found if math.isfinite(value)]
    return statistics.fmean(finite) if finite else None


def _described(values: Sequence[float | None]) -> dict[str, Any]:
    known = statistics_of(value for value in values if value is not None)
    return {"values": list(values), **{key: known[key] for key in ("mean", "sd", "min", "max")}}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    if not rows:
        raise DataError(path, "holds no scores: remove report.html beside it and train again")
    return rows

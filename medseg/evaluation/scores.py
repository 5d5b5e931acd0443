"""The scores of one case, of a set of cases, and the two files that keep them."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg import files
from medseg.config.schema import Evaluation
from medseg.errors import DataError
from medseg.evaluation.lesions import LesionScores, match
from medseg.evaluation.metrics import MEASURES, Measures, measure, ratio
from medseg.evaluation.surfaces import Mask, Spacing

LabelMap = npt.NDArray[np.integer[Any]]

LESION_MEASURES = ("tp", "fn", "fp", "sensitivity", "precision", "f1")


@dataclass(frozen=True)
class CaseScores:
    """All scores of one case.

    Args:
        case_id: The case.
        measures: By class name.
        lesions: By class name; empty where lesions were not counted.
    """

    case_id: str
    measures: Mapping[str, Measures]
    lesions: Mapping[str, LesionScores]

    @property
    def dice(self) -> float:
        """Mean Dice over the classes; cases are ranked by it."""
        return statistics.fmean(found.dice for found in self.measures.values())

    def row(self, name: str) -> dict[str, float]:
        """All numbers of one class by column name; those of lesions begin with `lesion_`."""
        values: dict[str, float] = asdict(self.measures[name])
        if name in self.lesions:
            lesions = self.lesions[name]
            values |= {f"lesion_{key}": getattr(lesions, key) for key in LESION_MEASURES}
        return values


def score_case(
    case_id: str,
    prediction: LabelMap,
    truth: LabelMap,
    spacing: Spacing,
    classes: Mapping[str, tuple[int, ...]],
    settings: Evaluation,
    ignore: int | None = None,
) -> CaseScores:
    """Score a predicted label map against the true one.

    Args:
        case_id: For the result and for messages.
        prediction: Label values, (I, J, K).
        truth: Label values, (I, J, K).
        spacing: Voxel size in mm, (i, j, k).
        classes: Class name to the label values that make it up; classes may overlap.
        settings: What to measure, and its limits.
        ignore: Label value of the truth whose voxels are left out of both masks.

    Raises:
        DataError: The two label maps differ in shape, or there are no classes.
    """
    if prediction.shape != truth.shape:
        raise DataError(
            case_id,
            f"a prediction of {prediction.shape} voxels cannot be scored against a truth of "
            f"{truth.shape}: predict on the truth's grid",
        )
    if not classes:
        raise DataError(case_id, "no classes to score: name at least one beside the background")
    measures: dict[str, Measures] = {}
    lesions: dict[str, LesionScores] = {}
    for name, values in classes.items():
        predicted, true = (_mask(labels, values, truth, ignore) for labels in (prediction, truth))
        measures[name] = measure(predicted, true, spacing, settings.tolerance_mm)
        if settings.lesions:
            lesions[name] = score_lesions(predicted, true, spacing, settings)
    return CaseScores(case_id, measures, lesions)


def score_lesions(
    predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation
) -> LesionScores:
    """Count the lesions of a class as the settings say; see `lesions.match`."""
    return match(
        predicted,
        true,
        spacing,
        connectivity=settings.connectivity,
        min_mm3=settings.min_lesion_mm3,
        overlap=settings.lesion_overlap,
    )


def summarise(cases: Sequence[CaseScores]) -> dict[str, Any]:
    """Summarise a set of cases as plain JSON values.

    Each measure of each class has mean, median, sd (of a sample: n - 1), min and max over its
    finite values, their `count`, and how many were `left_out`. `pooled` lesions are counted over
    all cases together. `mean_dice` is the mean over the classes of their mean Dice.
    """
    names = list(cases[0].measures) if cases else []
    classes = {name: _summarise_class(cases, name) for name in names}
    dice = [found["dice"]["mean"] for found in classes.values()]
    return {
        "cases": len(cases),
        "mean_dice": statistics.fmean(dice) if dice else None,
        "classes": classes,
    }


def write(
    folder: Path,
    cases: Sequence[CaseScores],
    settings: Evaluation,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `scores.csv` (a row a case and class) and `summary.json`; return the summary.

    `more` is plain values that go into the summary too. Infinite values are `inf` in the CSV and
    null in the JSON.

    Raises:
        DataError: The folder cannot be written.
    """
    summary = summarise(cases) | dict(more or {})
    summary["settings"] = settings.model_dump(mode="json")
    rows = [
        {"case": case.case_id, "class": name, **case.row(name)}
        for case in cases
        for name in case.measures
    ]
    lesion_columns = [f"lesion_{key}" for key in LESION_MEASURES] if settings.lesions else []
    with (
        files.atomic(folder / "scores.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, ["case", "class", *MEASURES, *lesion_columns])
        writer.writeheader()
        writer.writerows(rows)
    files.write_json(folder / "summary.json", summary)
    return summary


def statistics_of(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean, median, sd, min and max of the finite values; None where there are too few."""
    every = list(values)
    finite = [value for value in every if isfinite(value)]
    return {
        "mean": statistics.fmean(finite) if finite else None,
        "median": statistics.median(finite) if finite else None,
        "sd": statistics.stdev(finite) if len(finite) > 1 else None,
        "min": min(finite, default=None),
        "max": max(finite, default=None),
        "count": len(finite),
        "left_out": len(every) - len(finite),
    }


def _mask(labels: LabelMap, values: tuple[int, ...], truth: LabelMap, ignore: int | None) -> Mask:
    mask: Mask = np.isin(labels, values)
    return mask if ignore is None else mask & (truth != ignore)


def _summarise_class(cases: Sequence[CaseScores], name: str) -> dict[str, Any]:
    rows = [case.row(name) for case in cases]
    summary: dict[str, Any] = {key: statistics_of(row[key] for row in rows) for key in rows[0]}
    if name in cases[0].lesions:
        summary["pooled"] = _pooled([case.lesions[name] for case in cases])
    return summary


def _pooled(lesions: Sequence[LesionScores]) -> dict[str, float]:
    together = LesionScores(
        found_mm3=tuple(volume for case in lesions for volume in case.found_mm3),
        missed_mm3=tuple(volume for case in lesions for volume in case.missed_mm3),
        false_mm3=tuple(volume for case in lesions for volume in case.false_mm3),
    )
    found = {key: getattr(together, key) for key in LESION_MEASURES}
    return found | {"false_per_case": ratio(together.fp, len(lesions), empty=0.0)}

"""The scores of one case, of a set of cases, and the two files that keep them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg import files
from medseg.config.schema import Evaluation
from medseg.errors import DataError
from medseg.evaluation.froc import by_size, froc
from medseg.evaluation.lesion_records import COLUMNS, Lesion, records, write_table
from medseg.evaluation.lesions import LesionScores, Matching, Rule, match
from medseg.evaluation.metrics import MEASURES, Measures, measure, ratio
from medseg.evaluation.surfaces import Mask, Spacing
from medseg.volumes.image import Affine

LabelMap = npt.NDArray[np.integer[Any]]

LESION_MEASURES = ("tp", "fn", "fp", "sensitivity", "precision", "f1", "split", "merged")
TABLE = "lesions.csv"
_DEFAULTS = Evaluation()


@dataclass(frozen=True)
class CaseScores:
    """All scores of one case.

    Args:
        case_id: The case.
        measures: By class name.
        lesions: By class name; empty where lesions were not counted.
        each: By class name, the lesions one by one; empty where they were not counted.
    """

    case_id: str
    measures: Mapping[str, Measures]
    lesions: Mapping[str, LesionScores]
    each: Mapping[str, tuple[Lesion, ...]] = field(default_factory=dict)

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


@dataclass(frozen=True, eq=False)
class Beside:
    """What may be known of a case beside its two label maps.

    Args:
        affine: (4, 4), voxel index to RAS+ mm, for the places of lesions; None: the axes of the
            volume, with voxel (0, 0, 0) at the origin.
        probabilities: Gives the probability of a class, (I, J, K), from its label values.
        paint: Called with each class and its lesions, to draw them.
    """

    affine: Affine | None = None
    probabilities: Callable[[tuple[int, ...]], npt.NDArray[np.floating]] | None = None
    paint: Callable[[str, Matching], None] | None = None


def score_case(
    case_id: str,
    prediction: LabelMap,
    truth: LabelMap,
    spacing: Spacing,
    classes: Mapping[str, tuple[int, ...]],
    settings: Evaluation,
    ignore: int | None = None,
    beside: Beside | None = None,
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
        beside: What else is known, for the lesions one by one.

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
    each: dict[str, tuple[Lesion, ...]] = {}
    for name, values in classes.items():
        predicted, true = (_mask(labels, values, truth, ignore) for labels in (prediction, truth))
        measures[name] = measure(predicted, true, spacing, settings.tolerance_mm)
        if settings.lesions:
            found = _match(predicted, true, spacing, settings, values, beside or Beside())
            lesions[name], each[name] = found.scores, _records(found, spacing, beside or Beside())
            if beside and beside.paint:
                beside.paint(name, found)
    return CaseScores(case_id, measures, lesions, each)


def score_lesions(
    predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation
) -> LesionScores:
    """Count the lesions of a class as the settings say; see `lesions.match`."""
    return match(predicted, true, spacing, Rule.of(settings)).scores


def summarise(cases: Sequence[CaseScores], settings: Evaluation = _DEFAULTS) -> dict[str, Any]:
    """Summarise a set of cases as plain JSON values.

    Each measure of each class has mean, median, sd (of a sample: n - 1), min and max over its
    finite values, their `count`, and how many were `left_out`. `pooled` lesions are counted over
    all cases together, and `by_size` in the bins of the settings; `froc` is there where all
    confidences are known. `mean_dice` is the mean over the classes of their mean Dice.
    """
    names = list(cases[0].measures) if cases else []
    classes = {name: _summarise_class(cases, name, settings) for name in names}
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

    Where lesions are counted, `lesions.csv` has a row for each; where not, one of an earlier
    evaluation goes. `more` is plain values that go into the summary too. Infinite values are `inf`
    in the CSV and null in the JSON.

    Raises:
        DataError: The folder cannot be written.
    """
    summary = summarise(cases, settings) | dict(more or {})
    summary["settings"] = settings.model_dump(mode="json")
    rows = (
        {"case": case.case_id, "class": name, **case.row(name)}
        for case in cases
        for name in case.measures
    )
    lesion_columns = [f"lesion_{key}" for key in LESION_MEASURES] if settings.lesions else []
    columns = ["case", "class", *MEASURES, *lesion_columns]
    write_table(folder / "scores.csv", rows, columns)
    if settings.lesions:
        lesions = (
            {"case": case.case_id, "class": name, **lesion.row()}
            for case in cases
            for name, found in case.each.items()
            for lesion in found
        )
        write_table(folder / TABLE, lesions, COLUMNS)
    else:
        (folder / TABLE).unlink(missing_ok=True)
    files.write_json(folder / "summary.json", summary)
    return summary


def together(lesions: Sequence[LesionScores]) -> LesionScores:
    """The lesions of several cases as if of one."""
    return LesionScores(
        found_mm3=tuple(volume for case in lesions for volume in case.found_mm3),
        missed_mm3=tuple(volume for case in lesions for volume in case.missed_mm3),
        false_mm3=tuple(volume for case in lesions for volume in case.false_mm3),
        right_mm3=tuple(volume for case in lesions for volume in case.right_mm3),
        split=sum(case.split for case in lesions),
        merged=sum(case.merged for case in lesions),
    )


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


def _match(
    predicted: Mask,
    true: Mask,
    spacing: Spacing,
    settings: Evaluation,
    values: tuple[int, ...],
    beside: Beside,
) -> Matching:
    probability = beside.probabilities(values) if beside.probabilities else None
    return match(predicted, true, spacing, Rule.of(settings), probability)


def _records(found: Matching, spacing: Spacing, beside: Beside) -> tuple[Lesion, ...]:
    affine = np.diag([*spacing, 1.0]) if beside.affine is None else beside.affine
    return records(found, affine)


def _summarise_class(
    cases: Sequence[CaseScores], name: str, settings: Evaluation
) -> dict[str, Any]:
    rows = [case.row(name) for case in cases]
    summary: dict[str, Any] = {key: statistics_of(row[key] for row in rows) for key in rows[0]}
    if name in cases[0].lesions:
        pooled = together([case.lesions[name] for case in cases])
        summary["pooled"] = {key: getattr(pooled, key) for key in LESION_MEASURES}
        summary["pooled"]["false_per_case"] = ratio(pooled.fp, len(cases), empty=0.0)
        summary["by_size"] = by_size(pooled, settings.lesion_bins_mm3)
        curve = froc([case.each.get(name, ()) for case in cases])
        if curve is not None:
            summary["froc"] = curve.as_json()
    return summary

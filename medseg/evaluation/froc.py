"""How many lesions are found at which price: FROC over confidence, and recall by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.evaluation.lesion_records import Lesion
from medseg.evaluation.lesions import LesionScores
from medseg.evaluation.metrics import ratio

Points = npt.NDArray[np.float64]

RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""False lesions per case at which sensitivity is read off, and averaged: the competition metric of
LUNA16 (Setio et al. 2017, doi:10.1016/j.media.2017.06.015)."""
MOST_POINTS = 500  # of a curve that is kept


@dataclass(frozen=True, eq=False)
class Froc:
    """A free-response operating characteristic: N thresholds on confidence, the highest first.

    The curve begins at no false lesion and no sensitivity and ends where all predicted lesions are
    kept; it is not drawn on to sensitivities that no threshold reaches (Bandos et al. 2009,
    doi:10.1111/j.1541-0420.2008.01049.x, discuss that end; Chakraborty 1989, doi:10.1118/1.596358,
    the method).

    Args:
        thresholds: (N,); a predicted lesion is kept at its confidence or below.
        sensitivity: (N,), found of all true lesions, over all cases.
        false_per_case: (N,).
    """

    thresholds: Points
    sensitivity: Points
    false_per_case: Points

    def at(self, rate: float) -> float:
        """The sensitivity at a number of false lesions per case.

        As LUNA16 reads it: linear between the thresholds; beyond the last, that of the last.
        """
        x, y = np.append(0, self.false_per_case), np.append(0, self.sensitivity)
        return float(np.interp(rate, x, y))

    def as_json(self) -> dict[str, Any]:
        """Sensitivity at each of `RATES`, their mean, and the curve, thinned if it is long."""
        found = {f"{rate:g}": self.at(rate) for rate in RATES}
        count = self.thresholds.size
        kept = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))
        return {
            "sensitivity": found,
            "mean": sum(found.values()) / len(found),
            "thresholds": self.thresholds[kept].tolist(),
            "curve": np.stack([self.false_per_case, self.sensitivity], 1)[kept].tolist(),
        }


def froc(cases: Sequence[Sequence[Lesion]]) -> Froc | None:
    """The curve of one class over all cases.

    Args:
        cases: The lesions of each.

    Returns:
        None where there is no true lesion, or a predicted one of unknown confidence.
    """
    counted = [item for case in cases for item in case if item.kind != "not counted"]
    true = [item for item in counted if item.map == "truth"]
    predicted = [item for item in counted if item.map == "prediction"]
    if not true or any(item.confidence is None for item in predicted):
        return None
    hits = np.array([item.confidence for item in true if item.kind == "found"], dtype=float)
    alarms = np.array([item.confidence for item in predicted if item.kind == "false"], dtype=float)
    thresholds = np.unique(np.concatenate([hits, alarms]))[::-1]
    return Froc(
        thresholds,
        _reaching(hits, thresholds) / len(true),
        _reaching(alarms, thresholds) / len(cases),
    )


def by_size(lesions: LesionScores, edges: Sequence[float]) -> list[dict[str, float | None]]:
    """Found and missed lesions of one class by volume.

    Args:
        lesions: Of all cases together.
        edges: Between the bins, in mm3, ascending; a lesion of just that volume is in the upper.

    Returns:
        For each bin its bounds (the last has none above), the counts, and the recall, None where
        there is no lesion.
    """
    bounds = (0.0, *edges, np.inf)
    rows: list[dict[str, float | None]] = []
    for low, high in pairwise(bounds):
        found, missed = (
            sum(low <= volume < high for volume in volumes)
            for volumes in (lesions.found_mm3, lesions.missed_mm3)
        )
        recall = ratio(found, found + missed) if found + missed else None
        above = None if np.isinf(high) else high
        rows.append(
            {
                "from_mm3": low,
                "below_mm3": above,
                "found": found,
                "missed": missed,
                "recall": recall,
            }
        )
    return rows


def _reaching(confidences: Points, thresholds: Points) -> Points:
    """How many are kept at each threshold."""
    ascending = np.sort(confidences)
    kept: Points = ascending.size - np.searchsorted(ascending, thresholds).astype(float)
    return kept

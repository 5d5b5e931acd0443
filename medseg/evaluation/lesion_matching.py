"""Which predicted lesion belongs to which true one, worked out on tables of common voxels.

Both rules (see `lesions`) take the predicted lesions one after the other, the surest first, and
note for each true lesion how sure the one was that found it. What has been found then stays found
when less sure ones come, so one pass gives the pairs of every confidence threshold, as FROC needs
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

NOBODY = -1


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The true and the predicted lesions that share voxels: N pairs.

    Args:
        true: (N,), of each pair the true lesion, from 0.
        predicted: (N,), the predicted one.
        common: (N,), voxels in common.
        true_voxels: (T,), voxels of each true lesion.
        predicted_voxels: (P,), of each predicted one.
    """

    true: Integers
    predicted: Integers
    common: Integers
    true_voxels: Integers
    predicted_voxels: Integers

    @classmethod
    def of(cls, true: Labels, predicted: Labels, counts: tuple[int, int]) -> Overlaps:
        """Count them from two maps of components.

        Args:
            true: (I, J, K), lesion numbers from 1.
            predicted: (I, J, K).
            counts: How many there are in each.
        """
        sizes = [
            np.bincount(numbers.ravel(), minlength=count + 1)[1:]
            for numbers, count in zip((true, predicted), counts, strict=True)
        ]
        both = (true > 0) & (predicted > 0)
        encoded = (true[both] - 1) * np.int64(counts[1]) + predicted[both] - 1
        codes, common = np.unique(encoded, return_counts=True)
        t, p = np.divmod(codes, max(counts[1], 1))
        return cls(t, p, common, *sizes)

    @property
    def iou(self) -> Floats:
        """(N,), of each pair."""
        union = self.true_voxels[self.true] + self.predicted_voxels[self.predicted] - self.common
        iou: Floats = self.common / union
        return iou


@dataclass(frozen=True, eq=False)
class Partners:
    """What a rule finds.

    Args:
        of_true: (T,), the predicted lesion that each true one is shown with, or `NOBODY`.
        of_predicted: (P,), the other way round.
        found: (T,) bool.
        found_at: (T,), how sure the predicted lesion was that found it; NaN: not found, or unknown.
        right: (P,) bool: it found something.
        excused: (P,) bool: it belongs to a true lesion that is not counted.
    """

    of_true: Integers
    of_predicted: Integers
    found: Flags
    found_at: Floats
    right: Flags
    excused: Flags


def one_to_one(
    overlaps: Overlaps, counted: Flags, least: float, confidence: Floats | None
) -> Partners:
    """Pairs of IoU `least` or more, each lesion in one at most, as many as possible.

    A maximum matching by augmenting paths (Kuhn 1955, doi:10.1002/nav.3800020109; Berge 1957).

    Args:
        overlaps: The lesions.
        counted: (T,) bool, the true lesions that are large enough.
        least: IoU.
        confidence: (P,); None: unknown, then the greatest IoU comes first.
    """
    iou = overlaps.iou
    enough = iou >= least
    excused = np.zeros(overlaps.predicted_voxels.size, dtype=bool)
    excused[overlaps.predicted[enough & ~counted[overlaps.true]]] = True
    choices, best = _choices(overlaps, iou, enough & counted[overlaps.true])
    sure = best if confidence is None else confidence
    of_true = np.full(overlaps.true_voxels.size, NOBODY)
    of_predicted = np.full(overlaps.predicted_voxels.size, NOBODY)
    found_at = np.full(overlaps.true_voxels.size, np.nan)
    for p in np.lexsort((-best, -sure)).tolist():
        new = _augment(p, choices, of_true, of_predicted) if p in choices else NOBODY
        if new != NOBODY and confidence is not None:
            found_at[new] = confidence[p]
    right = of_predicted != NOBODY
    return Partners(of_true, of_predicted, of_true != NOBODY, found_at, right, excused & ~right)


def any_overlap(
    overlaps: Overlaps, counted: Flags, least: float, confidence: Floats | None
) -> Partners:
    """Every lesion on its own: covered to the share `least` by all of the other map, or not.

    A lesion is shown with the partner of the greatest IoU.

    Args:
        overlaps: The lesions.
        counted: (T,) bool, the true lesions that are large enough.
        least: Share of the lesion's voxels; 0: one voxel.
        confidence: (P,); None: unknown.
    """
    covered = np.bincount(overlaps.true, overlaps.common, overlaps.true_voxels.size)
    found = _reaches(covered, overlaps.true_voxels, least) & counted
    hit = np.bincount(overlaps.predicted, overlaps.common, overlaps.predicted_voxels.size)
    is_in_truth = _reaches(hit, overlaps.predicted_voxels, least)
    meets = np.zeros(overlaps.predicted_voxels.size, dtype=bool)
    meets[overlaps.predicted[counted[overlaps.true]]] = True
    right = is_in_truth & meets
    order = np.argsort(overlaps.iou, kind="stable")  # the greatest is written last, and stays
    of_true = np.full(overlaps.true_voxels.size, NOBODY)
    of_predicted = np.full(overlaps.predicted_voxels.size, NOBODY)
    of_true[overlaps.true[order]] = overlaps.predicted[order]
    order = order[counted[overlaps.true[order]]]
    of_predicted[overlaps.predicted[order]] = overlaps.true[order]
    of_true[~found], of_predicted[~right] = NOBODY, NOBODY
    found_at = np.full(overlaps.true_voxels.size, np.nan)
    if confidence is not None:
        found_at[found] = _found_at(overlaps, least, confidence)[found]
    return Partners(of_true, of_predicted, found, found_at, right, is_in_truth & ~right)


def _choices(
    overlaps: Overlaps, iou: Floats, allowed: Flags
) -> tuple[Mapping[int, Sequence[int]], Floats]:
    """The true lesions that each predicted one may take, the greatest IoU first; and that IoU."""
    best = np.zeros(overlaps.predicted_voxels.size)
    np.maximum.at(best, overlaps.predicted[allowed], iou[allowed])
    choices: dict[int, list[int]] = {}
    order = np.flatnonzero(allowed)[np.argsort(-iou[allowed], kind="stable")]
    for p, t in zip(overlaps.predicted[order].tolist(), overlaps.true[order].tolist(), strict=True):
        choices.setdefault(p, []).append(t)
    return choices, best


def _augment(
    start: int, choices: Mapping[int, Sequence[int]], of_true: Integers, of_predicted: Integers
) -> int:
    """Give a predicted lesion a true one, if need be by moving others to their further choices.

    Returns:
        The true lesion that had no partner before, or `NOBODY`: there is no way.
    """
    reached_by: dict[int, int] = {}
    waiting = [start]
    while waiting:
        p = waiting.pop()
        for t in choices[p]:
            if t in reached_by:
                continue
            reached_by[t] = p
            if of_true[t] == NOBODY:
                _move(t, start, reached_by, of_true, of_predicted)
                return t
            waiting.append(int(of_true[t]))
    return NOBODY


def _move(
    t: int, start: int, reached_by: Mapping[int, int], of_true: Integers, of_predicted: Integers
) -> None:
    """Pair along the path that was found, back from its free end."""
    p = NOBODY
    while p != start:
        p = reached_by[t]
        left = int(of_predicted[p])
        of_true[t], of_predicted[p] = p, t
        t = left


def _reaches(covered: Floats | Integers, voxels: Integers, least: float) -> Flags:
    reaches: Flags = (covered > 0) & (covered >= least * voxels)
    return reaches


def _found_at(overlaps: Overlaps, least: float, confidence: Floats) -> Floats:
    """(T,), the greatest threshold at which what is left of the prediction covers enough."""
    sure = confidence[overlaps.predicted]
    order = np.lexsort((-sure, overlaps.true))
    true, common, sure = overlaps.true[order], overlaps.common[order], sure[order]
    running = np.cumsum(common)
    first = np.searchsorted(true, true)  # where the pairs of the same true lesion begin
    running = running - (running - common)[first]
    enough = _reaches(running, overlaps.true_voxels[true], least)
    found_at = np.full(overlaps.true_voxels.size, np.nan)
    found_at[true[enough][::-1]] = sure[enough][::-1]  # the first is written last, and stays
    return found_at

"""Folds that are alike: each has its share of every class, and of small and large lesions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from scipy.optimize import linear_sum_assignment

from medseg.volumes.check import CheckReport
from medseg.volumes.dataset import Labels

_DRAWS = 8
_DECIMALS = 6  # of a volume in mm3: the same on every machine


@dataclass(frozen=True)
class Stratum:
    """What the label of a case holds.

    Args:
        classes: Names of the classes that it has.
        volume: Of all of them together, in mm3.
    """

    classes: frozenset[str] = frozenset()
    volume: float = 0.0


def strata(report: CheckReport, labels: Labels) -> dict[str, Stratum]:
    """What each label holds, by case id, of cases that have been read and checked."""
    found = {}
    for case in report.cases:
        classes = frozenset(
            name for name, values in labels.classes.items() if set(values) & case.voxels.keys()
        )
        voxels = sum(count for value, count in case.voxels.items() if value in labels.values)
        found[case.id] = Stratum(classes, round(voxels * prod(case.spacing or ()), _DECIMALS))
    return found


def deal(
    strata: Mapping[str, Stratum], folds: int, rng: np.random.Generator
) -> tuple[frozenset[str], ...]:
    """Deal cases out to folds, `folds` alike ones at a time, one to each.

    The cases are laid in a row: those with the rarest class first, among them those with the next
    rarest first, and so on (the order of Sechidis, Tsoumakas and Vlahavas 2011,
    doi:10.1007/978-3-642-23808-6_10), and those with the same classes by lesion volume. Of each
    `folds` of them in turn every fold gets one, so that sizes differ by one at most and volumes
    hardly: by the assignment that gives cases to folds which have least of their classes. What is
    equal is drawn, and of `_DRAWS` the first is taken that spreads the classes best.

    Args:
        strata: By case id.
        folds: How many.
        rng: Of the draws.
    """
    counts = Counter(name for stratum in strata.values() for name in stratum.classes)
    rarest = sorted(counts, key=lambda name: (counts[name], name))
    drawn = [_dealt(strata, rarest, folds, rng) for _ in range(_DRAWS if rarest else 1)]
    return min(drawn, key=lambda dealt: _unevenness(dealt, strata, rarest))


def _dealt(
    strata: Mapping[str, Stratum], rarest: Sequence[str], folds: int, rng: np.random.Generator
) -> tuple[frozenset[str], ...]:
    def where(name: str) -> tuple[object, ...]:
        stratum = strata[name]
        return (*(one not in stratum.classes for one in rarest), stratum.volume)

    names = list(strata)
    shuffled = [names[n] for n in rng.permutation(len(names))]
    row = sorted(shuffled, key=where)  # stable: what is equal stays shuffled
    has = np.array([[one in strata[name].classes for one in rarest] for name in row], dtype=float)
    share = has / np.maximum(has.sum(0), 1)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    held = np.zeros((folds, len(rarest)))  # of each class, the share that a fold has
    for start in range(0, len(row), folds):
        order = rng.permutation(folds)
        cost = share[start : start + folds] @ held[order].T
        for place, turn in zip(*linear_sum_assignment(cost), strict=True):
            dealt[order[turn]].append(row[start + place])
            held[order[turn]] += share[start + place]
    return tuple(map(frozenset, dealt))


def _unevenness(
    dealt: Sequence[frozenset[str]], strata: Mapping[str, Stratum], classes: Sequence[str]
) -> tuple[int, int]:
    """How often a fold lacks a class, and how far folds are apart in cases of a class at most."""
    held = [[sum(one in strata[name].classes for name in part) for part in dealt]
            for one in classes]  # fmt: skip
    lacking = sum(counts.count(0) for counts in held)
    return lacking, max((max(counts) - min(counts) for counts in held), default=0)

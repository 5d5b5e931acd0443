"""Choose how often each model counts, by scores on cases that none of them has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.tuning.gate import interval
from medseg.tuning.result import Interval
from medseg.volumes.image import Array

ROUNDS = 25
"""Picks, so that a weight is a multiple of 1/25 or coarser."""
Scores = Callable[[Sequence[int]], Array]
"""Gives the score (I,) of each case, of the mean weighted by counts."""
_TIE = 1e-12


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it is worth. All scores are means over the cases.

    Args:
        counts: How often each model counts; 0: it is left out.
        is_selection: Whether that is the greedy selection; else all count the same, which the
            selection did not surpass on cases that had no say in it.
        alone: The score of each model.
        mean: Of all of them, each counting the same.
        selected: Of the greedy selection on the cases that chose it: too high.
        held_out: The same, each case by the selection that the other cases make.
        over_mean: `held_out` minus `mean`, with the bounds of its 95 % interval.
        over_best: `held_out` minus the best of `alone`, likewise.
        each: (I,) scores of what was chosen, each case by a choice made without it.
    """

    counts: tuple[int, ...]
    is_selection: bool
    alone: tuple[float, ...]
    mean: float
    selected: float
    held_out: float
    over_mean: Interval | None
    over_best: Interval | None
    each: tuple[float, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the models in the mean."""
        return tuple(count / sum(self.counts) for count in self.counts)


def greedy(scores: Scores, models: int, cases: Sequence[int], rounds: int = ROUNDS) -> list[int]:
    """Ensemble selection with replacement (Caruana et al. 2004, doi:10.1145/1015330.1015432).

    Starts with nothing, adds the model that helps the mean most, whether it is in it or not, and in
    the end goes back to where it was best; of what is equal it takes what came first.

    Args:
        scores: Of the cases by counts.
        models: How many there are.
        cases: The numbers of those that count.
        rounds: How often one is added.

    Returns:
        How often each model was added.
    """
    counts, chosen, best = [0] * models, [0] * models, -np.inf
    for _ in range(rounds):
        offers = [[count + (n == m) for n, count in enumerate(counts)] for m in range(models)]
        means = [float(scores(offer)[list(cases)].mean()) for offer in offers]
        top = max(means)
        counts = offers[next(m for m, mean in enumerate(means) if mean >= top - _TIE)]
        if top > best + _TIE:
            chosen, best = counts, top
    return chosen


def choose(scores: Scores, models: int, cases: int, seed: int) -> Choice:
    """Choose on all cases, and judge the choice by leaving one case out.

    Args:
        scores: Of the cases by counts.
        models: How many there are.
        cases: How many there are, at least 2.
        seed: Of the bootstrap.
    """
    every = range(cases)
    counts, even = greedy(scores, models, every), [1] * models
    without = [greedy(scores, models, [n for n in every if n != left]) for left in every]
    held_out = np.array([scores(other)[n] for n, other in enumerate(without)])
    alone = [scores([int(n == m) for n in range(models)]) for m in range(models)]
    mean, best = scores(even), max(alone, key=lambda found: float(found.mean()))
    is_selection = bool(held_out.mean() >= mean.mean() - _TIE)
    return Choice(
        counts=tuple(counts if is_selection else even),
        is_selection=is_selection,
        alone=tuple(float(found.mean()) for found in alone),
        mean=float(mean.mean()),
        selected=float(scores(counts).mean()),
        held_out=float(held_out.mean()),
        over_mean=interval(held_out - mean, seed),
        over_best=interval(held_out - best, seed),
        each=tuple((held_out if is_selection else mean).tolist()),
    )

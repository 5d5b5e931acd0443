"""The gate: a step enters a model only if it surely improved cases that did not choose its options.

Sure means: the 95 % percentile bootstrap interval of the mean paired difference, over cases, lies
above zero (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13), and a
sign-flip test of that mean agrees (Fisher 1935, The Design of Experiments, section 21). With few
cases the interval alone is too narrow; the test holds its level there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.tuning.result import MEAN, Interval
from medseg.tuning.trials import known_mean
from medseg.volumes.image import Array

DRAWS = 10_000
BOUNDS = (2.5, 97.5)
LEVEL = 0.025  # of the sign-flip test, one-sided: that of the interval's lower bound
FEWEST = 6
"""With fewer cases nothing passes: five that agree do so by chance once in 2^5, above `LEVEL`."""
MOST_EXACT = 12  # cases of which every combination of signs is tried, 4,096 at most
_TIE = 1e-12  # of the largest difference: sums of the same numbers differ by rounding


def interval(differences: Array, seed: int) -> Interval | None:
    """Mean of paired differences and its 95 % percentile bootstrap interval.

    Args:
        differences: (I,), after minus before of each case; NaN: the case says nothing.
        seed: Of the draws.

    Returns:
        Mean, lower and upper bound; None where no case says anything.
    """
    known = differences[~np.isnan(differences)]
    if not known.size:
        return None
    drawn = np.random.default_rng(seed).integers(known.size, size=(DRAWS, known.size))
    low, high = np.percentile(known[drawn].mean(1), BOUNDS)
    return float(known.mean()), float(low), float(high)


def chance(differences: Array, seed: int) -> float:
    """How often signs thrown at random would give a mean at least as high: the sign-flip test.

    Exact for differences that are symmetric about zero where the step does nothing.

    Args:
        differences: (I,), after minus before of each case, none NaN.
        seed: Of the `DRAWS` throws, where there are more than `MOST_EXACT` cases; up to there all
            combinations are counted.

    Returns:
        The one-sided p value.
    """
    cases = differences.size
    if cases <= MOST_EXACT:
        flipped = np.arange(2**cases)[:, None] >> np.arange(cases) & 1
    else:
        flipped = np.random.default_rng(seed).integers(2, size=(DRAWS, cases))
        flipped[0] = 0  # what was seen is one of the possible throws
    sums = (1 - 2 * flipped) @ differences
    tie = _TIE * cases * np.abs(differences).max(initial=0)
    return float((sums >= differences.sum() - tie).mean())


def passes(differences: Array, seed: int) -> bool:
    """Whether the gain is sure, by interval and test, with `FEWEST` cases that say something."""
    known = differences[~np.isnan(differences)]
    if known.size < FEWEST or chance(known, seed) >= LEVEL:
        return False
    found = interval(known, seed)
    return found is not None and found[1] > 0


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the gate says.

    Args:
        before: (I, C) scores without the step; NaN: says nothing.
        after: (I, C) with it, the classes of `protect` unchanged.
        protect: Classes that the step may not change.
        intervals: By class, without protection but that asked for, and `MEAN`; see `Result`.
        accepted: Whether the step passed.
    """

    before: Array
    after: Array
    protect: tuple[str, ...]
    intervals: Mapping[str, Interval]
    accepted: bool


def judge(
    held_out: Callable[[Sequence[str]], Array],
    classes: Sequence[str],
    always: Sequence[str],
    seed: int,
) -> Judgement:
    """Decide class by class, protect those that did not pass, and decide on what is left.

    Args:
        held_out: Gives scores (2, I, C) before and after, with some classes protected; the options
            of each case chosen without it.
        classes: Their names.
        always: Classes that the config protects in any case.
        seed: Of the bootstrap.
    """
    before, after = held_out(always)
    found = {name: interval(after[:, c] - before[:, c], seed) for c, name in enumerate(classes)}
    passed = [c for c in range(len(classes)) if passes(after[:, c] - before[:, c], seed)]
    protect = tuple(always)
    if passed:
        protect = tuple(name for c, name in enumerate(classes) if c not in passed)
        before, after = held_out(protect)
    counted = passed or list(range(len(classes)))
    gain = known_mean((after - before)[:, counted])
    found[MEAN] = interval(gain, seed)
    intervals = {name: values for name, values in found.items() if values is not None}
    return Judgement(before, after, protect, intervals, bool(passed) and passes(gain, seed))

"""Choose among candidates on some cases, with a leaning to the simplest that is as good."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medseg.console import track
from medseg.tuning.result import Candidate
from medseg.tuning.trials import Trials
from medseg.volumes.image import Array

Propose = Callable[[Sequence[int]], list[Candidate]]
"""The candidates for the cases given, simplest first: None (the step left out), then the defaults,
then ever further from them. It may look at these cases and at no others."""


def choose(scores: Array) -> int:
    """The simplest candidate within one standard error of the best.

    The rule of one standard error (Breiman et al. 1984, Classification and Regression Trees,
    section 3.4.3), of the paired differences over the cases: what does not surely gain on the cases
    that chose it will hardly gain on others.

    Args:
        scores: (J, I), candidates simplest first, cases; NaN: the case says nothing.

    Returns:
        The candidate; the first where no case says anything.
    """
    scores = scores[:, ~np.isnan(scores).any(0)]
    cases = scores.shape[1]
    if not cases:
        return 0
    loss = scores[int(scores.mean(1).argmax())] - scores
    spread = loss.std(1, ddof=1) if cases > 1 else np.zeros(len(loss))
    return int((loss.mean(1) <= spread / np.sqrt(cases)).argmax())


def leave_one_out(propose: Propose, trials: Trials, *, quiet: bool = False) -> list[Candidate]:
    """For each case the candidate that the other cases choose.

    Args:
        propose: Asked once for each case left out.
        trials: Scores what it proposes.
        quiet: Show no progress of the proposals.
    """
    every = range(trials.cases)
    folds = [[n for n in every if n != left_out] for left_out in every]
    proposed = []
    with track("Fit", trials.cases, quiet=quiet) as tick:
        for fold in folds:
            proposed.append(propose(fold))
            tick()
    pairs = zip(folds, proposed, strict=True)
    trials.run((n, candidate) for fold, offer in pairs for candidate in offer for n in fold)
    return [
        offer[choose(trials.means(offer, fold))]
        for fold, offer in zip(folds, proposed, strict=True)
    ]

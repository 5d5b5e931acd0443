"""What each candidate scores on each case, computed once and with two cases in memory at most."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medseg.console import track
from medseg.postprocess.prediction import Step
from medseg.tuning.result import Candidate
from medseg.tuning.scoring import Scorer
from medseg.tuning.store import Store
from medseg.volumes.image import Array

Pair = tuple[int, Candidate]
_WORKERS = 2


class Trials:
    """Scores by case and candidate.

    Args:
        store: The cases.
        scorer: Gives (classes,) scores of labels.
        build: Makes the steps to score from a candidate and the classes that it may not change.
        quiet: Show no progress.
    """

    def __init__(
        self,
        store: Store,
        scorer: Scorer,
        build: Callable[[Candidate, Sequence[str]], Step],
        *,
        quiet: bool = False,
    ) -> None:
        self._store, self._scorer, self._build, self._quiet = store, scorer, build, quiet
        self._known: dict[tuple[int, str], Array] = {}
        self._present: dict[int, Array] = {}

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self._store)

    def run(self, pairs: Iterable[Pair], protect: Sequence[str] = ()) -> None:
        """Score what has not been scored yet; case by case, two at a time."""
        missing: dict[int, dict[str, Candidate]] = {}
        for case, candidate in pairs:
            key = _key(candidate, protect)
            if (case, key) not in self._known:
                missing.setdefault(case, {})[key] = candidate
        if not missing:
            return

        def score(case: int) -> int:
            self._score(case, missing[case], protect)
            return len(missing[case])

        total = sum(map(len, missing.values()))
        with (
            track("Try", total, quiet=self._quiet) as tick,
            ThreadPoolExecutor(_WORKERS) as pool,
        ):
            done = 0
            for count in pool.map(score, sorted(missing)):
                done += count
                tick(f"{len(missing)} cases", to=done)

    def block(
        self, candidates: Sequence[Candidate], cases: Sequence[int], protect: Sequence[str] = ()
    ) -> Array:
        """Scores (candidates, cases, classes), computed before or now.

        NaN where the class is neither in the truth nor in any of these predictions of the case.
        """
        self.run([(n, c) for c in candidates for n in cases], protect)
        keys = [_key(candidate, protect) for candidate in candidates]
        block = np.stack([np.stack([self._known[n, key] for n in cases]) for key in keys])
        present = np.stack([self._present[n] for n in cases])
        block[:, ~present & (block == 1).all(0)] = np.nan
        return block

    def pairs(self, chosen: Sequence[Pair], protect: Sequence[str]) -> Array:
        """Scores (2, cases, classes) without the step and with what was chosen for each case."""
        self.run(chosen, protect)
        self.run((n, None) for n, _ in chosen)
        return np.concatenate([self.block([None, c], [n], protect) for n, c in chosen], 1)

    def means(self, candidates: Sequence[Candidate], cases: Sequence[int]) -> Array:
        """Mean scores (candidates, cases) over the classes that say something; NaN: none does."""
        return known_mean(self.block(candidates, cases))

    def _score(self, case: int, candidates: dict[str, Candidate], protect: Sequence[str]) -> None:
        prediction, truth = self._store.prediction(case), self._store.truth(case)
        self._present[case] = self._scorer.present(truth)
        for key, candidate in candidates.items():
            labels = self._build(candidate, protect)(prediction).labels
            self._known[case, key] = self._scorer(labels, truth, prediction.spacing)


def known_mean(scores: Array) -> Array:
    """The mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0).sum(-1)
    mean: Array = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    return mean


def _key(candidate: Candidate, protect: Sequence[str]) -> str:
    if candidate is None:
        return "off"
    return json.dumps([candidate, sorted(protect)], sort_keys=True)

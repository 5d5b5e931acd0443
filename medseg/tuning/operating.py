"""What each threshold finds, and at how many false lesions: operating points on FROC."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medseg.config.schema import Evaluation
from medseg.evaluation.lesions import LesionScores
from medseg.evaluation.metrics import ratio
from medseg.evaluation.scores import score_lesions, together
from medseg.postprocess.probabilities import OperatingPoint
from medseg.tuning.place import Place
from medseg.tuning.result import Candidate, Options, Point
from medseg.tuning.scoring import Scorer
from medseg.tuning.store import Store

_WORKERS = 2


def has_points(kind: object) -> bool:
    """Whether a postprocessor's thresholds are points of an FROC curve."""
    return isinstance(kind, type) and issubclass(kind, OperatingPoint)


def along(tried: Sequence[Candidate], chosen: Options) -> list[Candidate]:
    """The step left out, and the candidates that differ from the chosen one in threshold alone."""

    def others(options: Options) -> dict[str, object]:
        return {key: value for key, value in options.items() if key != "threshold"}

    return [item for item in tried if item is None or others(item) == others(chosen)]


def points(
    store: Store, place: Place, scorer: Scorer, settings: Evaluation, tried: Sequence[Candidate]
) -> tuple[Point, ...]:
    """Sensitivity and false lesions per case of each candidate and class, over all cases together.

    No candidate was fitted to a case, so these are figures of cases that had no say in it.

    Args:
        store: The cases.
        place: Makes the steps.
        scorer: Knows the classes.
        settings: How lesions are counted.
        tried: The candidates.
    """

    def work(case: int) -> list[list[LesionScores]]:
        prediction, truth = store.prediction(case), store.truth(case)
        found = []
        for candidate in tried:
            labels = place.onwards(candidate, place.protect)(prediction).labels
            masks = scorer.masks(labels, truth)
            found.append([score_lesions(p, t, prediction.spacing, settings) for p, t in masks])
        return found

    with ThreadPoolExecutor(_WORKERS) as pool:
        cases = list(pool.map(work, range(len(store))))
    made = []
    for n, candidate in enumerate(tried):
        for c, name in enumerate(place.labels.classes):
            pooled = together([case[n][c] for case in cases])
            true = pooled.tp + pooled.fn
            sensitivity = ratio(pooled.tp, true) if true else None
            made.append(Point(name, candidate, sensitivity, pooled.fp / len(cases)))
    return tuple(made)

"""One number for each class of a case: the score that a tuning is to raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from medseg.config.schema import Evaluation
from medseg.errors import ConfigError
from medseg.evaluation.metrics import bounding_box, measure, ratio
from medseg.evaluation.scores import score_lesions
from medseg.evaluation.surfaces import Mask, Spacing
from medseg.registry import unknown
from medseg.volumes.dataset import IGNORE_INDEX, Labels
from medseg.volumes.image import Array

Measure = Callable[[Mask, Mask, Spacing, Evaluation], float]


def _dice(predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation) -> float:
    del spacing, settings
    return ratio(2 * int((predicted & true).sum()), int(predicted.sum()) + int(true.sum()))


def _iou(predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation) -> float:
    del spacing, settings
    return ratio(int((predicted & true).sum()), int((predicted | true).sum()))


def _nsd(predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation) -> float:
    return measure(predicted, true, spacing, settings.tolerance_mm).nsd


def _lesion_f1(predicted: Mask, true: Mask, spacing: Spacing, settings: Evaluation) -> float:
    return score_lesions(predicted, true, spacing, settings).f1


SCORES: dict[str, Measure] = {"dice": _dice, "iou": _iou, "nsd": _nsd, "lesion_f1": _lesion_f1}
"""Higher is better, 1 is perfect; two empty masks agree perfectly, as in `evaluation.metrics`."""


class Scorer:
    """Scores the class indices of a case.

    Args:
        score: One of `SCORES`.
        labels: Which indices make up which class; classes may overlap.
        settings: Tolerances and limits of the scores.

    Raises:
        ConfigError: There is no such score.
    """

    def __init__(self, score: str, labels: Labels, settings: Evaluation) -> None:
        if score not in SCORES:
            raise ConfigError(unknown("score", score, SCORES), ("score",))
        self._measure, self._settings = SCORES[score], settings
        self._indices = labels.regions

    def __call__(self, labels: Array, truth: Array, spacing: Spacing) -> Array:
        """Score each class.

        Args:
            labels: (I, J, K) class indices.
            truth: The same; voxels of `IGNORE_INDEX` do not count.
            spacing: Voxel size in mm.

        Returns:
            (classes,) float64.
        """
        masks = self.masks(labels, truth)
        return np.array([self._measure(p, t, spacing, self._settings) for p, t in masks])

    def masks(self, labels: Array, truth: Array) -> Iterator[tuple[Mask, Mask]]:
        """The predicted and the true mask of each class, cut to where there is any.

        Args:
            labels: (I, J, K) class indices.
            truth: The same; voxels of `IGNORE_INDEX` are in no mask.
        """
        known = truth != IGNORE_INDEX
        box = bounding_box(((labels != 0) | (truth != 0)) & known)
        labels, truth, known = labels[box], truth[box], known[box]
        for indices in self._indices:
            yield np.isin(labels, indices) & known, np.isin(truth, indices)

    def present(self, truth: Array) -> Array:
        """(classes,) bool: which classes a truth holds."""
        there = np.unique(truth)
        return np.array([bool(np.isin(indices, there).any()) for indices in self._indices])

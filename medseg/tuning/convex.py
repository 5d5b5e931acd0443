"""A convex fit of a CRF's temperature and weights, from one pass of its filters.

Mean field's first update is q(c) ~ exp(b log p(c) + w_s S(c) + w_a A(c)), with b the inverse
temperature and S and A the filtered probabilities: a multinomial logistic model in (b, w_s, w_a),
whose cross-entropy is convex (Boyd and Vandenberghe 2004, Convex Optimization, section 7.1.1).
Further updates sharpen what the first one does, so that the weights found are a direction whose
length has to be tried on the real mean field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from medseg.volumes.image import Array

SHRINKAGE = 0.05
"""What it costs to move a parameter by the whole of its default, as a share of the untouched
cross-entropy and divided by the number of cases: a prior that weighs as much as a tenth of a case
that would like to see its cross-entropy halved."""
LARGEST = 8.0  # times the default: no fit wants more, and all stays finite
LEAST_INVERSE_TEMPERATURE = 0.1
_PRECISE = 1e-7  # relative change of the objective that ends the search


@dataclass(frozen=True, eq=False)
class Sample:
    """Voxels of one case.

    Args:
        features: (3, C, N) float64, contiguous: log p, S and A of each class.
        truth: (N,) class indices.
        weights: (N,), of sum 1.
    """

    features: Array
    truth: Array
    weights: Array


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Args:
        parameters: Inverse temperature, spatial weight, appearance weight.
        cross_entropy: Mean over the cases, without the shrinkage, in nats.
    """

    parameters: tuple[float, float, float]
    cross_entropy: float


def cross_entropy(parameters: Array, samples: Sequence[Sample]) -> tuple[float, Array]:
    """Mean over cases of the weighted cross-entropy in nats, and its gradient (3,)."""
    total, gradient = 0.0, np.zeros(3)
    for sample in samples:
        logits = np.tensordot(parameters, sample.features, 1)
        logits -= logits.max(0)
        voxels = np.arange(logits.shape[1])
        chosen = logits[sample.truth, voxels]
        shares = np.exp(logits, out=logits)
        sums = shares.sum(0)
        total += float(sample.weights @ (np.log(sums) - chosen))
        shares *= sample.weights / sums
        shares[sample.truth, voxels] -= sample.weights
        gradient += sample.features.reshape(3, -1) @ shares.ravel()
    return total / len(samples), gradient / len(samples)


def fit(samples: Sequence[Sample], defaults: Sequence[float], free: Sequence[bool]) -> Fit:
    """Fit on cases, with a pull towards the defaults.

    Args:
        samples: One for each case.
        defaults: Inverse temperature, spatial weight, appearance weight; one that is free is
            above 0.
        free: Which of them may move.
    """
    start = np.asarray(defaults, np.float64)
    unit = np.where(free, start, 1.0)
    untouched, _ = cross_entropy(np.array([start[0], 0, 0]), samples)
    pull = SHRINKAGE * untouched / len(samples)

    def objective(parameters: Array) -> tuple[float, Array]:
        value, gradient = cross_entropy(parameters, samples)
        away = (parameters - start) / unit
        return value + pull * float(away @ away), gradient + 2 * pull * away / unit

    lowest = (LEAST_INVERSE_TEMPERATURE, 0.0, 0.0)
    bounds = [
        (low, LARGEST * value) if is_free else (value, value)
        for low, value, is_free in zip(lowest, start, free, strict=True)
    ]
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": _PRECISE}
    ).x
    inverse, spatial, appearance = found.tolist()
    return Fit((inverse, spatial, appearance), cross_entropy(found, samples)[0])

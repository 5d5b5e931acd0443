"""The convex fit of a CRF's weights: gradient, planted truth, shrinkage, bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize
from scipy.special import log_softmax

from medseg.tuning import convex
from medseg.tuning.convex import LARGEST, Sample, cross_entropy, fit

PLANTED = (0.7, 1.8, 3.0)
DEFAULTS = (1.0, 1.0, 2.0)
FREE = (True, True, True)


def cases(count: int, size: int, planted: Sequence[float] = PLANTED, seed: int = 0) -> list[Sample]:
    """Voxels whose true class is drawn as the model with these parameters says."""
    made = []
    for n in range(count):
        rng = np.random.default_rng([seed, n])
        logs = np.log(rng.dirichlet(np.ones(3), size))
        spatial, appearance = rng.dirichlet(np.ones(3), (2, size))
        features = np.stack([logs, spatial, appearance], -1)
        shares = np.exp(log_softmax(features @ np.array(planted), 1))
        truth = (rng.random((size, 1)) > shares.cumsum(1)[:, :2]).sum(1)
        weights = rng.random(size) + 0.5
        features = np.ascontiguousarray(np.moveaxis(features, (2, 1), (0, 1)))
        made.append(Sample(features, truth, weights / weights.sum()))
    return made


def test_cross_entropy_is_that_of_the_definition() -> None:
    samples = cases(2, 50)
    parameters = np.array([0.3, 0.2, 0.9])
    by_hand = [
        -sum(
            w * log_softmax(f @ parameters)[t]
            for f, t, w in zip(s.features.T, s.truth, s.weights, strict=True)
        )
        for s in samples
    ]
    assert cross_entropy(parameters, samples)[0] == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("at", [(1.0, 0.0, 0.0), (0.3, 2.0, 0.1), PLANTED])
def test_the_gradient_is_that_of_finite_differences(at: Sequence[float]) -> None:
    samples = cases(3, 200)
    wrong = check_grad(
        lambda p: cross_entropy(p, samples)[0], lambda p: cross_entropy(p, samples)[1], np.array(at)
    )
    assert wrong < 1e-6


def test_planted_parameters_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = cases(4, 20_000)
    shrunk = fit(samples, DEFAULTS, FREE).parameters
    monkeypatch.setattr(convex, "SHRINKAGE", 0)
    found = fit(samples, DEFAULTS, FREE).parameters
    assert found == pytest.approx(PLANTED, rel=0.06)
    assert all(
        default < pulled < free
        for default, pulled, free in zip(DEFAULTS[1:], shrunk[1:], found[1:], strict=True)
    )


def test_few_voxels_are_pulled_towards_the_defaults() -> None:
    samples = cases(1, 60)
    alone = minimize(lambda p: cross_entropy(p, samples)[0], np.array(DEFAULTS), method="BFGS").x
    pulled = np.array(fit(samples, DEFAULTS, FREE).parameters)

    def away(parameters: np.ndarray) -> float:
        return float(np.linalg.norm((parameters - DEFAULTS) / DEFAULTS))

    assert away(pulled) < 0.8 * away(alone)


def test_the_pull_fades_with_the_number_of_cases() -> None:
    few, many = (
        np.array(fit(cases(n, 2_000) * times, DEFAULTS, FREE).parameters)
        for n, times in ((2, 1), (2, 50))
    )
    free = minimize(lambda p: cross_entropy(p, cases(2, 2_000))[0], np.array(DEFAULTS)).x
    assert np.linalg.norm(many - free) < 0.1 * np.linalg.norm(few - free)


def test_bounds_and_fixed_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    against = cases(3, 2_000, (1.0, -2.0, -2.0))
    found = fit(against, DEFAULTS, FREE).parameters
    assert found[1:] == (0, 0)
    fixed = fit(against, (1.0, 0.5, 2.0), (True, False, True)).parameters
    assert fixed[1] == 0.5
    certain = cases(3, 2_000, (1.0, 0.0, 500.0))
    assert fit(certain, (1.0, 0.0, 2.0), (True, False, True)).parameters[1] == 0
    monkeypatch.setattr(convex, "SHRINKAGE", 0)
    assert fit(certain, DEFAULTS, FREE).parameters[2] == LARGEST * DEFAULTS[2]

"""Candidates of the CRF: fitted without the case left out, on the scale of the defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import DataError
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.tuning import crf_fit
from medseg.tuning.crf_fit import CrfFit, samples
from medseg.tuning.store import Store
from medseg.volumes.dataset import IGNORE_INDEX

SHAPE = (24, 20, 16)


class Toy:
    """A mean field for images of two intensities, by Gaussian filters and nothing else."""

    needs_probabilities = True

    def __init__(
        self,
        classes: int,
        spatial_mm: float = 1.5,
        appearance_mm: float = 3.0,
        appearance_intensity: float = 0.3,
        spatial_weight: float = 1.0,
        appearance_weight: float = 2.0,
        iterations: int = 3,
        temperature: float = 1.0,
        accuracy: str = "pair",
    ) -> None:
        self.classes, self.iterations, self.temperature = classes, iterations, temperature
        self.deviations = spatial_mm, appearance_mm / (1 + appearance_intensity)
        self.weights, self.crf = (spatial_weight, appearance_weight), self

    def __call__(self, prediction: Prediction) -> Prediction:
        logits = np.log(np.maximum(prediction.need_probabilities(), 1e-6)) / self.temperature
        shares = prediction.need_probabilities()
        for _ in range(self.iterations):
            spatial, appearance = self._send(shares, prediction.image[0])
            energy = logits + self.weights[0] * spatial + self.weights[1] * appearance
            shares = np.exp(energy - energy.max(0))
            shares /= shares.sum(0)
        return prediction.with_probabilities(shares)

    def features(self, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(SHAPE, bool), prediction.image

    def messages(
        self, shares: np.ndarray, image: np.ndarray, spacing: object, roi: object
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._send(shares, image[0])

    def _send(self, shares: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def blur(volume: np.ndarray, mm: float) -> np.ndarray:
            return ndimage.gaussian_filter(volume, mm, mode="constant")

        def send(inside: np.ndarray, mm: float) -> np.ndarray:
            scale = inside / np.sqrt(np.maximum(blur(inside, mm), 1e-6))
            return np.stack([scale * blur(scale * share, mm) for share in shares])

        one, other = (image == 0).astype(np.float32), (image != 0).astype(np.float32)
        near, far = self.deviations
        return send(np.ones_like(one), near), send(one, far) + send(other, far)


def toys() -> Any:
    return [Toy(2)]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSTPROCESSORS._components, "toy", Toy)
    monkeypatch.setattr(crf_fit, "MOST_VOXELS", 1000)


def noisy(n: int, *, speaking: bool = True) -> tuple[Prediction, np.ndarray]:
    """A ball that the image shows, or not; noisy probabilities of it; the truth."""
    rng = np.random.default_rng(n)
    centre = rng.uniform(8, 11, 3)
    far = np.sqrt(((np.moveaxis(np.indices(SHAPE), 0, 3) - centre) ** 2).sum(3))
    truth = (far < 5).astype(np.uint8)
    logit = 3.0 * truth - 1.5 + rng.normal(0, 1.5, SHAPE)
    share = 1 / (1 + np.exp(-logit))
    shares = np.stack([1 - share, share]).astype(np.float32)
    image = truth if speaking else rng.integers(0, 2, SHAPE)
    labels = (share > 0.5).astype(np.uint8)
    return Prediction(labels, image[None].astype(np.float32), np.eye(4), shares), truth


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Store]:
    def keep(truths: dict[int, np.ndarray] | None = None, count: int = 4) -> Store:
        store = Store(tmp_path / str(len(list(tmp_path.iterdir()))))
        for n in range(count):
            prediction, truth = noisy(n)
            store.add(f"case_{n}", prediction, (truths or {}).get(n, truth))
        return store

    return keep


def fitted(store: Store, given: dict[str, Any] | None = None, **fixed: Any) -> CrfFit:
    return CrfFit(store, "toy", given or {}, fixed, 2, quiet=True)


def test_a_case_left_out_has_no_say(stored: Callable[..., Store]) -> None:
    odd = {3: 1 - noisy(3)[1]}
    with_it, without = fitted(stored()), fitted(stored(odd))
    assert with_it([0, 1, 2]) == without([0, 1, 2])
    assert with_it([0, 1, 3]) != without([0, 1, 3])


def test_candidates_go_from_simple_to_far(stored: Callable[..., Store]) -> None:
    propose = fitted(stored(), {"iterations": 2}, accuracy="fast")
    found = propose([0, 1, 2, 3])
    far = [propose._distance(options) for options in found[1:] if options is not None]
    assert far == sorted(far)
    assert far[0] == 0 < far[1] < far[-1]
    assert found[0] is None
    assert found[1] == {"iterations": 2, "accuracy": "fast"}
    assert 3 <= len(found) - 2 <= sum(map(len, crf_fit.STRENGTHS))
    assert all(c is not None and c["iterations"] == 2 for c in found[1:])
    weights = {c["appearance_weight"] for c in found[2:] if c is not None}
    assert max(weights) / min(weights) == pytest.approx(4, rel=0.01)
    powers = [2 * np.log2(weight / 2.0) for weight in weights]
    assert powers == pytest.approx(np.round(powers), abs=0.02)


def test_what_is_fixed_stays(stored: Callable[..., Store]) -> None:
    found = fitted(stored(), spatial_weight=0.7, temperature=1.0, appearance_mm=2.0)([0, 1, 2])
    for candidate in found[1:]:
        assert candidate is not None
        kept = {name: candidate[name] for name in ("spatial_weight", "temperature")}
        assert (kept, candidate["appearance_mm"]) == (
            {"spatial_weight": 0.7, "temperature": 1.0},
            2.0,
        )


def test_the_fit_lowers_the_error_of_real_mean_fields(stored: Callable[..., Store]) -> None:
    store = stored()
    best = fitted(store)([0, 1, 2])[2:]
    prediction, truth = store.prediction(3), store.truth(3)

    def wrong(options: dict[str, Any] | None) -> int:
        step = POSTPROCESSORS.build({"name": "toy", **(options or {})}, classes=2)
        labels = prediction.labels if options is None else step(prediction).labels
        return int((labels != truth).sum())

    assert min(map(wrong, best)) <= wrong({}) < 0.3 * wrong(None)


def test_weights_restore_the_mean_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf_fit, "MOST_VOXELS", 14_000)
    truth = noisy(0)[1]
    share = np.where(truth, 0.97, 0.04).astype(np.float32)
    image = truth[None].astype(np.float32)
    prediction = Prediction(truth, image, np.eye(4), np.stack([1 - share, share]))
    (made,) = samples(prediction, truth, toys(), np.random.default_rng(0))
    assert made.features.shape == (3, 2, 14_000)
    assert made.features.flags.c_contiguous
    assert made.weights.sum() == pytest.approx(1)
    assert (made.weights @ made.truth) == pytest.approx(truth.mean(), rel=0.05)
    mean = np.log(share).mean()
    assert made.weights @ made.features[0, 1] == pytest.approx(mean, rel=0.05)
    assert made.truth.mean() > 1.2 * truth.mean()  # the band is drawn more often


def test_ignored_voxels_and_those_outside_are_not_drawn() -> None:
    prediction, truth = noisy(0)
    ignored = np.where(np.arange(SHAPE[2]) < 8, IGNORE_INDEX, truth).astype(np.uint8)
    (made,) = samples(prediction, ignored, toys(), np.random.default_rng(0))
    assert set(np.unique(made.truth)) == {0, 1}
    nothing = np.full_like(truth, IGNORE_INDEX)
    with pytest.raises(DataError, match="all its voxels"):
        samples(prediction, nothing, toys(), np.random.default_rng(0))


@pytest.mark.parametrize(
    "value, default, rounded",
    [(2.1, 2.0, 2.0), (2.7, 2.0, 2.83), (0.4, 1.0, 0.354), (0.01, 1.0, 0.0), (1e9, 1.0, 16.0),
     (0.3, 0.0, 0.0)],
)  # fmt: skip
def test_fitted_values_lie_on_a_coarse_grid(value: float, default: float, rounded: float) -> None:
    assert crf_fit._on_grid(value, default) == rounded


def test_deviations_of_each_axis_are_scaled_together() -> None:
    assert crf_fit._times((3.0, 3.0, 6.0), 0.5) == (1.5, 1.5, 3.0)
    assert crf_fit._size((2.0, 8.0)) == pytest.approx(4)

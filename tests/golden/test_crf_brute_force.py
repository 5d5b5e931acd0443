"""The dense CRF against all pairs of voxels, written a second time with scipy's distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, softmax

from medseg.postprocess.crf import DenseCRF3D

NARROW: dict[str, Any] = {"appearance_mm": (5.0, 4.0, 3.0), "appearance_intensity": 0.11}
MIDDLE: dict[str, Any] = {"appearance_mm": 8.0, "appearance_intensity": 0.37}
WIDE: dict[str, Any] = {"appearance_mm": (17.0, 12.0, 10.0), "appearance_intensity": 0.98}
THREE = [NARROW, MIDDLE, WIDE]
COSTS = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.3], [2.0, 0.3, 0.0]])
ONE = (1.0, 1.0, 1.0)

Scene = tuple[np.ndarray, np.ndarray]


def scene(shape: tuple[int, int, int], modalities: int = 2, classes: int = 2) -> Scene:
    """A network's probabilities, and z-scores: a level a class, soft edges, a bias and noise."""
    rng = np.random.default_rng(0)
    fields = gaussian_filter(rng.normal(size=(classes, *shape)), (0, 3, 3, 3))
    labels = fields.argmax(0)
    bias = np.linspace(0, 0.5, shape[0])[:, None, None]
    image = np.stack(
        [
            bias
            + gaussian_filter(((m + 1) * labels % classes).astype(float), 0.7)
            + 0.06 * rng.normal(size=shape)  # 0.1 to 0.15 of the z-score
            for m in range(modalities)
        ]
    )
    image -= image.mean((1, 2, 3), keepdims=True)
    image /= image.std((1, 2, 3), keepdims=True)
    logits = 3 * np.moveaxis(np.eye(classes)[labels], 3, 0)
    logits += 2 * rng.normal(size=(classes, *shape))
    return softmax(logits, 0).astype(np.float32), image.astype(np.float32)


def by_all_pairs(
    probabilities: np.ndarray,
    image: np.ndarray,
    spacing: tuple[float, float, float] = ONE,
    spatial_mm: Any = 3.0,
    appearance_mm: Any = 12.0,
    appearance_intensity: Any = 0.3,
    weights: tuple[float, float] = (1.0, 2.0),
    iterations: int = 5,
    compatibility: Any = None,
    exclude_self: bool = False,
) -> np.ndarray:
    """Krähenbühl and Koltun 2011, algorithm 1, with matrices of all pairs."""
    classes, *shape = probabilities.shape
    places = np.moveaxis(np.indices(shape), 0, 3).reshape(-1, 3) * spacing
    values = image.reshape(len(image), -1).T / np.broadcast_to(appearance_intensity, len(image))
    both = np.hstack([places / appearance_mm, values])
    kernel = np.zeros((len(places), len(places)))
    for weight, features in zip(weights, (places / spatial_mm, both), strict=True):
        pairs = cdist(features, features, "sqeuclidean")
        pairs *= -0.5
        np.exp(pairs, out=pairs)
        root = np.sqrt(pairs.sum(1))
        if exclude_self:
            np.fill_diagonal(pairs, 0)
        pairs *= weight
        pairs /= root
        pairs /= root[:, None]
        kernel += pairs
    costs = 1 - np.eye(classes) if compatibility is None else compatibility
    unary = log_softmax(np.log(probabilities.reshape(classes, -1).astype(float)), 0)
    marginals = softmax(unary, 0)
    for _ in range(iterations):
        marginals = softmax(unary - costs @ (marginals @ kernel), 0)
    return marginals.reshape(probabilities.shape)


def compare(
    shape: tuple[int, int, int],
    modalities: int,
    classes: int,
    spacing: tuple[float, float, float] = ONE,
    **options: Any,
) -> tuple[float, float]:
    """Mean difference of the marginals and share of labels that differ, CRF against all pairs."""
    given, image = scene(shape, modalities, classes)
    expected = by_all_pairs(given, image, spacing, **options)
    assert np.abs(expected - given).mean() > 0.05  # there was something to do
    found = DenseCRF3D(**options)(given, image, spacing)
    assert found.dtype == np.float32
    labels = found.argmax(0) != expected.argmax(0)
    return float(np.abs(found - expected).mean()), float(labels.mean())


@pytest.mark.parametrize("options", [
    {},
    {"exclude_self": True},
    {"compatibility": COSTS},
    {"compatibility": COSTS + np.diag([0.5, 0, 0]), "exclude_self": True},
    {"weights": (2.0, 0.0)},
    {"weights": (0.0, 2.0)},
    {"iterations": 1, "spatial_mm": (1.0, 2.0, 4.0)},
])  # fmt: skip
@pytest.mark.parametrize("modalities", [1, 5])
def test_exact_is_all_pairs(modalities: int, options: dict[str, Any]) -> None:
    """Two programs of brute force agree: this one, and the one that is shipped."""
    given, image = scene((8, 7, 6), modalities, 3)
    expected = by_all_pairs(given, image, (1, 0.8, 2.5), **options)
    found = DenseCRF3D(**options, accuracy="exact")(given, image, (1, 0.8, 2.5))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("deviations", THREE)
@pytest.mark.parametrize("modalities", [1, 2])
def test_a_small_crop(modalities: int, deviations: dict[str, Any]) -> None:
    """A crop that is no cube, with voxels that are none."""
    mean, labels = compare((14, 13, 9), modalities, 3, (0.9, 1.2, 2.0), **deviations)
    assert mean <= 1e-3
    assert labels <= 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("deviations", THREE)
@pytest.mark.parametrize("modalities, classes, options", [
    (1, 2, {}),
    (2, 2, {}),
    (3, 2, {}),
    (2, 4, {}),
    (2, 2, {"exclude_self": True}),
    (2, 3, {"compatibility": COSTS}),
])  # fmt: skip
def test_twenty_voxels_a_side(
    modalities: int, classes: int, options: dict[str, Any], deviations: dict[str, Any]
) -> None:
    mean, labels = compare((20, 20, 16), modalities, classes, **deviations, **options)
    assert mean <= 1e-3
    assert labels <= 2e-3


@pytest.mark.parametrize("options", [
    {"exclude_self": True},
    {"compatibility": COSTS},
    {"compatibility": COSTS, "exclude_self": True},
    {"weights": (2.0, 0.0)},
    {"weights": (0.0, 2.0)},
])  # fmt: skip
def test_options_on_a_small_crop(options: dict[str, Any]) -> None:
    given, image = scene((12, 11, 8), 2, 3)
    deviations = NARROW  # where a voxel has few others like it
    plain = by_all_pairs(given, image, **deviations)
    expected = by_all_pairs(given, image, **deviations, **options)
    found = DenseCRF3D(**deviations, **options)(given, image, ONE)
    error = np.abs(found - expected).mean()
    assert error <= 1e-3
    assert np.abs(plain - expected).mean() > 5 * error  # the option matters


@pytest.mark.parametrize("deviations", THREE)
def test_narrower_cells_and_a_second_grid_are_more_exact(deviations: dict[str, Any]) -> None:
    given, image = scene((14, 12, 8), 2, 2)
    expected = by_all_pairs(given, image, **deviations)
    fast, pair, high, exact = (
        np.abs(
            DenseCRF3D(**deviations, accuracy=a, tolerance=0)(given, image, ONE) - expected
        ).mean()
        for a in ("fast", "pair", "high", "exact")
    )
    assert fast > 1.5 * pair
    assert pair > 1.5 * high
    assert exact < 1e-6


def test_four_modalities_are_nearly_all_pairs() -> None:
    """On a lattice: less exact than the grids, far more than nothing."""
    mean, labels = compare((13, 12, 8), 4, 2, **MIDDLE)
    assert mean <= 1e-2
    assert labels <= 1e-2


@pytest.mark.parametrize("deviations", THREE)
@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 2, 3)])
def test_a_flip_moves_no_marginal_by_more_than_a_twentieth(
    axes: tuple[int, ...], deviations: dict[str, Any]
) -> None:
    given, image = scene((20, 20, 16))
    crf = DenseCRF3D(**deviations)
    one = crf(given, image, ONE)
    other = np.flip(crf(np.flip(given, axes), np.flip(image, axes), ONE), axes)
    assert np.abs(one - other).max() <= 0.05
    assert (one.argmax(0) != other.argmax(0)).mean() <= 1e-3

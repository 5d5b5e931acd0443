"""The operator of the dense CRF, and what must not change its result."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.dense import engines
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings

SHAPE = (14, 11, 9)
SPACING = (0.9, 1.0, 1.6)
SPATIAL, APPEARANCE = (2.0, 3.0, 4.0), (5.0, 6.0, 7.0)

Scene = tuple[np.ndarray, np.ndarray]


def scene(shape: tuple[int, ...] = SHAPE, modalities: int = 2, classes: int = 3) -> Scene:
    """Probabilities of a network that doubts, and z-scores with noise."""
    rng = np.random.default_rng(0)
    labels = gaussian_filter(rng.normal(size=(classes, *shape)), (0, 3, 3, 3)).argmax(0)
    image = np.stack(
        [
            2 * gaussian_filter(((m + 1) * labels % classes).astype(float), 0.7)
            + 0.15 * rng.normal(size=shape)
            for m in range(modalities)
        ]
    )
    logits = 2 * np.moveaxis(np.eye(classes)[labels], 3, 0) + rng.normal(size=(classes, *shape))
    return softmax(logits, 0).astype(np.float32), image.astype(np.float32)


def problem(modalities: int, intensity: float, roi: bool) -> Problem:
    shape = (6, 5, 5)
    given, image = scene(shape, modalities, 2)
    kept = np.indices(shape).sum(0) > 3 if roi else np.ones(shape, bool)
    voxels = np.argwhere(kept).T.astype(np.int16)
    odds = np.log(given[1:, kept] / given[0, kept])
    return Problem(shape, voxels, image[:, kept] / intensity, odds, (2, 1.5, 1), (3.3, 2, 1.2))


def operator(
    voxels: Problem, weights: tuple[float, float], way: engines.Way, shifts: Any = (0.0, 0.5)
) -> np.ndarray:
    """D^-1/2 K D^-1/2 as a matrix: what is sent of each unit vector."""
    kernel = engines.pairwise(voxels, Settings(weights, 1, shifts=shifts), way)
    rows = np.eye(voxels.voxels.shape[1], dtype=np.float32)
    return np.hstack([kernel.send(row[:, None], kernel.all, kernel.all) for row in rows])


@pytest.mark.parametrize("intensity, roi", [(0.2, False), (1.0, True)])
@pytest.mark.parametrize("modalities, weights, way", [
    (1, (1.0, 0.0), "grid"),
    (1, (0.0, 1.0), "grid"),
    (2, (0.0, 1.0), "grid"),
    (3, (0.0, 1.0), "grid"),
    (4, (0.0, 1.0), "lattice"),
])  # fmt: skip
def test_the_operator_is_symmetric_and_positive(
    modalities: int, weights: Any, way: Any, intensity: float, roi: bool
) -> None:
    matrix = operator(problem(modalities, intensity, roi), weights, way)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-6)
    values = np.linalg.eigvalsh(matrix.astype(np.float64))
    assert values[0] >= -1e-4  # by the cut tails of the blur
    assert values[-1] == pytest.approx(1, abs=1e-6)


def test_weights_add_kernels_up() -> None:
    voxels = problem(2, 0.5, True)
    both = operator(voxels, (1.5, 2.5), "grid")
    parts = 1.5 * operator(voxels, (1, 0), "grid") + 2.5 * operator(voxels, (0, 1), "grid")
    np.testing.assert_allclose(both, parts, atol=1e-6)


def test_one_own_share_is_the_diagonal() -> None:
    voxels = problem(2, 0.5, True)
    kernel = engines.pairwise(voxels, Settings((1.5, 2.5), 1), "grid")
    diagonal = operator(voxels, (1.5, 2.5), "grid").diagonal()
    np.testing.assert_allclose(kernel.own(), diagonal, rtol=1e-4)


def test_some_sources_and_targets_are_rows_and_columns() -> None:
    """What is skipped for being out of reach, or not asked for, is nothing that counts."""
    voxels = problem(2, 0.2, True)
    matrix = operator(voxels, (1.0, 2.0), "grid")
    kernel = engines.pairwise(voxels, Settings((1.0, 2.0), 1), "grid")
    rng = np.random.default_rng(0)
    for size in (1, 2, 20, 60):
        sources, targets = (
            np.sort(rng.choice(len(matrix), size, replace=False)).astype(np.int32) for _ in "st"
        )
        values = rng.normal(size=(size, 3)).astype(np.float32)
        found = kernel.send(values, sources, targets)
        np.testing.assert_allclose(found, matrix[np.ix_(targets, sources)] @ values, atol=1e-5)


def permuted(order: tuple[int, ...], options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Marginals; and those of the permuted volume, permuted back."""
    given, image = scene()
    one = DenseCRF3D(SPATIAL, APPEARANCE, **options)(given, image, SPACING)
    spatial, appearance, spacing = (
        tuple(three[axis] for axis in order) for three in (SPATIAL, APPEARANCE, SPACING)
    )
    axes = (0, *(1 + axis for axis in order))
    other = DenseCRF3D(spatial, appearance, **options)(
        given.transpose(axes).copy(), image.transpose(axes).copy(), spacing
    )
    return one, other.transpose(0, *(1 + order.index(axis) for axis in range(3)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
@pytest.mark.parametrize("options", [{"tolerance": 0}, {"engine": "torch"}])
def test_the_order_of_axes_does_not_matter(order: tuple[int, ...], options: dict[str, Any]) -> None:
    one, other = permuted(order, options)
    np.testing.assert_allclose(other, one, atol=2e-5)


@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("accuracy, most", [("fast", 0.05), ("pair", 0.02), ("high", 0.01)])
def test_flips_change_little(axes: tuple[int, ...], accuracy: Any, most: float) -> None:
    """The grid starts at the other end, so that other voxels share a cell."""
    given, image = scene()
    crf = DenseCRF3D(SPATIAL, APPEARANCE, accuracy=accuracy)
    one = crf(given, image, SPACING)
    other = np.flip(crf(np.flip(given, axes), np.flip(image, axes), SPACING), axes)
    assert np.abs(one - other).max() <= most


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_classes_can_be_renamed(engine: Any) -> None:
    """Also which of them is the first, against which the odds are."""
    given, image = scene()
    costs = np.array([[0.1, 1, 2], [1, 0, 0.3], [2, 0.3, 0]])
    for order in itertools.permutations(range(3)):
        names = list(order)
        options = {"engine": engine, "tolerance": 0, "exclude_self": True}
        one = DenseCRF3D(**options, compatibility=costs)(given, image, SPACING)
        other = DenseCRF3D(**options, compatibility=costs[np.ix_(names, names)])
        np.testing.assert_allclose(other(given[names], image, SPACING), one[names], atol=2e-5)


def test_the_order_of_modalities_matters_little() -> None:
    """In the grid they are different axes; each with its own deviation."""
    given, image = scene(modalities=3)
    one = DenseCRF3D(appearance_intensity=(0.4, 0.6, 0.9), tolerance=0)
    other = DenseCRF3D(appearance_intensity=(0.9, 0.4, 0.6), tolerance=0)
    expected = one(given, image, SPACING)
    found = other(given, np.roll(image, 1, 0), SPACING)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("accuracy, most", [("exact", 1e-6), ("high", 5e-4), ("pair", 1e-3)])
@pytest.mark.parametrize("deviation", [0.3, 0.8])
def test_a_modality_can_be_given_twice(accuracy: Any, most: float, deviation: float) -> None:
    """With deviations times the root of 2, the distance is the same; the grid is another."""
    given, image = scene(modalities=1)
    one = DenseCRF3D(appearance_intensity=deviation, accuracy=accuracy)
    twice = DenseCRF3D(appearance_intensity=deviation * np.sqrt(2), accuracy=accuracy)
    found = twice(given, np.concatenate([image, image]), SPACING)
    assert np.abs(found - one(given, image, SPACING)).mean() <= most


@pytest.mark.parametrize("accuracy", ["fast", "pair", "high", "exact"])
@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_millimetres_are_only_a_unit(accuracy: Any, factor: float) -> None:
    """A spacing of twice the size, with deviations of twice the size, changes no bit."""
    given, image = scene()
    one = DenseCRF3D(SPATIAL, APPEARANCE, accuracy=accuracy)
    other = DenseCRF3D(
        tuple(factor * mm for mm in SPATIAL),
        tuple(factor * mm for mm in APPEARANCE),
        accuracy=accuracy,
    )
    found = other(given, image, [factor * mm for mm in SPACING])
    np.testing.assert_array_equal(found, one(given, image, SPACING))


def test_intensities_are_only_a_unit() -> None:
    given, image = scene()
    one = DenseCRF3D(appearance_intensity=(0.3, 0.5))(given, image, SPACING)
    other = DenseCRF3D(appearance_intensity=(0.6, 1.0))(given, 2 * image, SPACING)
    np.testing.assert_array_equal(other, one)


def test_another_voxel_size_gives_nearly_the_same() -> None:
    """A ball whose probabilities are too small at one side, on voxels of 1 and of 2 mm."""
    crf = DenseCRF3D(3.0, 8.0, 0.5, (1.0, 2.0), iterations=3)
    fine, coarse = ball(1), ball(2)
    given, expected = means(fine[0], 2), means(crf(*fine, (1, 1, 1)), 2)
    found = crf(*coarse, (2, 2, 2))
    error = np.abs(found - expected).mean()
    assert error < 0.05 * np.abs(expected - given).mean()
    in_voxels = crf(*coarse, (1, 1, 1))  # as if the size were not read
    assert np.abs(in_voxels - expected).mean() > 3 * error


def means(volumes: np.ndarray, of: int) -> np.ndarray:
    """Means over cubes of voxels."""
    channels, i, j, k = volumes.shape
    cubes = volumes.reshape(channels, i // of, of, j // of, of, k // of, of)
    found: np.ndarray = cubes.mean((2, 4, 6))
    return found


def ball(mm: int) -> Scene:
    """Probabilities and an image of one and the same ball, as means over voxels of `mm`."""
    half = np.arange(0.25, 24, 0.5) - 12
    x, y, z = np.meshgrid(half, half, half, indexing="ij")
    inside = (x**2 + y**2 + z**2 < 64).astype(float)
    lesion = 0.3 + 0.4 * gaussian_filter(inside, 4) + x / 60
    both = means(np.stack([lesion, gaussian_filter(inside, 1)]), 2 * mm).astype(np.float32)
    return np.stack([1 - both[0], both[0]]), both[1:]

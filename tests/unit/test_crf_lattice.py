"""The permutohedral lattice against its definition, brute force and torch."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.postprocess.dense import lattice as module
from medseg.postprocess.dense.lattice import WIDTH, Lattice, lattice_bytes, torch_filter
from medseg.volumes.image import Array


def cloud(dimensions: int, points: int, spread: float = 1.0, seed: int = 0) -> Array:
    """Features of points without order."""
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((dimensions, points))).astype(np.float32)


def volume(modalities: int, shape: tuple[int, int, int] = (12, 10, 7)) -> Array:
    """Features of all voxels of a volume of smooth noise with an edge in it."""
    rng = np.random.default_rng(1)
    places = np.indices(shape) / np.array([4.0, 3.0, 2.0])[:, None, None, None]
    noise = [ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(modalities)]
    image = 6 * np.array(noise) + 3 * (places[0] > places[1])
    return np.concatenate([places, image]).reshape(3 + modalities, -1).astype(np.float32)


def gaussian(features: Array) -> Array:
    """(N, N) weights between all points."""
    x = features.astype(np.float64)
    squares = (x**2).sum(0)
    return np.exp(np.minimum(0, x.T @ x - 0.5 * (squares[:, None] + squares)))


def matrix(lattice: Lattice) -> Array:
    """(N, N) weights between all points as the lattice has them."""
    unit = np.eye(len(lattice.vertices), dtype=np.float32)
    return np.stack([lattice.filter(row) for row in unit], 1)


def normalised(kernel: Array) -> Array:
    scale = 1 / np.sqrt(kernel.sum(1, dtype=np.float64))
    return scale[:, None] * kernel * scale


def hats(point: Array) -> dict[tuple[int, ...], float]:
    """Vertices around a point of the hyperplane and their weights, by trying those near.

    A vertex' weight falls linearly to 0 at its neighbours: 1 - (max - min) / (d + 1) of the
    differences between the point and it.
    """
    corners, found = len(point), {}
    for remainder in range(corners):
        below = np.floor((point - remainder) / corners).astype(int)
        for up in itertools.product((0, 1), repeat=corners):
            vertex = remainder + corners * (below + up)
            weight = 1 - np.ptp(point - vertex) / corners
            if vertex.sum() == 0 and weight > 0:
                found[tuple(vertex.tolist())] = weight
    return found


def by_definition(features: Array, width: float, grow: bool) -> Array:
    """(N, N) weights of a lattice, in plain Python and dense matrices."""
    d = len(features)
    basis = np.stack(
        [np.r_[np.ones(i), -i, np.zeros(d - i)] / math.sqrt(i * (i + 1)) for i in range(1, d + 1)]
    )
    points = features.T.astype(np.float64) @ basis * math.sqrt(2 / 3) * (d + 1) / width
    around = [hats(point) for point in points]
    axes = 1 - (d + 1) * np.eye(d + 1, dtype=int)
    names = dict.fromkeys(itertools.chain(*around))
    if grow:
        near = [tuple((np.array(v) + s * a).tolist()) for v in names for a in axes for s in (-1, 1)]
        names = dict.fromkeys([*names, *near])
    place = {name: n for n, name in enumerate(names)}
    spread = np.zeros((len(points), len(place)))
    for n, weights in enumerate(around):
        for name, weight in weights.items():
            spread[n, place[name]] = weight
    # Spreading, reading and both blurs along each axis have to give a variance of 2 / 3 in all.
    variance = (2 / 3 / width**2 - 2 / 12) / 2
    once = np.eye(len(place))
    for axis in axes:
        blur = (1 - variance) * np.eye(len(place))
        for name, n in place.items():
            other = place.get(tuple((np.array(name) + axis).tolist()))
            if other is not None:
                blur[n, other] = blur[other, n] = variance / 2
        once = blur @ once
    volume_of_vertex = (d + 1) ** (d - 0.5)
    height = (2 * math.pi * 2 / 3 * ((d + 1) / width) ** 2) ** (d / 2) / volume_of_vertex
    return height * spread @ once.T @ once @ spread.T


@pytest.mark.parametrize("dimensions", [4, 5, 6, 7, 8])
def test_weights_are_barycentric(dimensions: int) -> None:
    lattice = Lattice(cloud(dimensions, 500, 3.0))
    assert lattice.weights.min() >= 0
    assert lattice.weights.max() <= 1
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-6)
    assert (np.sort(lattice.vertices, 1)[:, 1:] != np.sort(lattice.vertices, 1)[:, :-1]).all()


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize(("dimensions", "width"), [(2, 1.0), (4, WIDTH), (5, 0.7)])
def test_is_the_lattice_of_its_definition(dimensions: int, width: float, grow: bool) -> None:
    features = cloud(dimensions, 16)
    expected = by_definition(features, width, grow)
    found = matrix(Lattice(features, width, grow))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_each_neighbour_has_its_own_way_back() -> None:
    neighbours = Lattice(cloud(6, 300)).neighbours
    count = neighbours.shape[1]
    for on, back in neighbours.transpose(0, 2, 1):
        there = np.flatnonzero(on < count)
        assert len(there) > 0
        np.testing.assert_array_equal(back[on[there]], there)
        assert (back < count).sum() == len(there)


def test_mass_is_that_of_a_gaussian() -> None:
    axis = np.arange(-6, 6.01, 0.3)
    features = np.stack(np.meshgrid(axis, axis, axis)).reshape(3, -1).astype(np.float32)
    inside = np.abs(features).max(0) < 2
    sums = Lattice(features).filter(np.ones(features.shape[1], np.float32))[inside]
    np.testing.assert_allclose(sums.mean(), (math.sqrt(2 * math.pi) / 0.3) ** 3, rtol=2e-3)


def smoothed(lattice: Lattice, masks: Array) -> Array:
    """(N, C) masks through the normalised filter."""
    ones = np.ones(len(masks), np.float32)
    scale = 1 / np.sqrt(lattice.filter(ones))
    rows = (scale * masks.T).astype(np.float32)
    return scale[:, None] * np.stack([lattice.filter(row) for row in rows], 1)


def check(features: Array, masks: Array, mean: float, most: float) -> None:
    """Near brute force, and nearer than with the vertices and the width that were published."""
    expected = normalised(gaussian(features)) @ masks
    error = np.abs(smoothed(Lattice(features), masks) - expected)
    assert error.mean() < mean
    assert error.max() < most
    sparse = smoothed(Lattice(features, 1.0, grow=False), masks)
    assert error.mean() < 0.5 * np.abs(sparse - expected).mean()


@pytest.mark.parametrize(("modalities", "mean", "most"), [(1, 8e-3, 0.05), (3, 1e-2, 0.08)])
def test_is_near_brute_force(modalities: int, mean: float, most: float) -> None:
    features = volume(modalities)
    masks = np.stack([features[0] > features[1], features[2] > 1.5], 1).astype(np.float64)
    check(features, masks, mean, most)


@pytest.mark.slow
@pytest.mark.skipif("MEDSEG_DATA" not in os.environ, reason="needs MEDSEG_DATA")
@pytest.mark.parametrize(("modalities", "mean", "most"), [(3, 9e-3, 0.11), (4, 1.1e-2, 0.14)])
def test_is_near_brute_force_at_a_tumour_border(modalities: int, mean: float, most: float) -> None:
    """A glioma, z-scored; deviations of 17, 12 and 10 voxels and 0.3 of a z-score."""
    folder = Path(os.environ["MEDSEG_DATA"]) / "glioma_case"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    labels = np.asarray(nib.load(folder / "seg-BraTS23_1.nii.gz").dataobj)
    names = ["t2f", "t1c", "t2w", "t1n"][:modalities]
    image = np.stack([np.asarray(nib.load(folder / f"{n}.nii.gz").dataobj) for n in names])
    brain = image[:, (image > 0).any(0)]
    middle = np.argwhere((labels > 0) & (ndimage.binary_erosion(labels > 0) == 0))
    box = tuple(
        slice(c - 9, c + h) for c, h in zip(middle[len(middle) // 2], (7, 9, 8), strict=True)
    )
    crop = image[(slice(None), *box)] - brain.mean(1)[:, None, None, None]
    crop = crop / (0.3 * brain.std(1))[:, None, None, None]
    places = np.indices(crop.shape[1:]) / np.array([17.0, 12.0, 10.0])[:, None, None, None]
    features = np.concatenate([places, crop]).reshape(3 + modalities, -1).astype(np.float32)
    masks = np.stack([labels[box].ravel() == n for n in np.unique(labels[box])], 1).astype(float)
    check(features, masks, mean, most)


@pytest.mark.parametrize("modalities", [1, 3, 5])
def test_is_symmetric_with_eigenvalues_within_0_and_1(modalities: int) -> None:
    kernel = matrix(Lattice(volume(modalities, (6, 5, 4))))
    assert np.abs(kernel - kernel.T).max() < 1e-6 * kernel.max()
    eigenvalues = np.linalg.eigvalsh(normalised((kernel + kernel.T) / 2))
    assert eigenvalues.min() > -1e-6
    assert eigenvalues.max() < 1 + 1e-6


def test_torch_gives_the_same() -> None:
    lattice = Lattice(volume(3))
    values = np.random.default_rng(0).random((len(lattice.vertices), 3), np.float32)
    expected = np.stack([lattice.filter(column) for column in values.T.copy()], 1)
    found = torch_filter(lattice, torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_torch_is_differentiable() -> None:
    lattice = Lattice(cloud(4, 12))
    values = torch.rand(12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch_filter(lattice, x), (values,))


def test_one_point() -> None:
    lattice = Lattice(np.full((7, 1), 0.3, np.float32))
    found = lattice.filter(np.ones(1, np.float32))
    assert 0.5 < found[0] < 1.5
    np.testing.assert_allclose(lattice.diagonal, found, rtol=1e-5)


def test_constant_features_give_the_mean() -> None:
    values = np.random.default_rng(0).random(50, np.float32)
    lattice = Lattice(np.full((6, 50), -2.5, np.float32))
    mean = lattice.filter(values) / lattice.filter(np.ones(50, np.float32))
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-5)


def test_intensities_far_apart_do_not_meet() -> None:
    features = np.zeros((8, 2), np.float32)
    features[3:, 1] = 1e5
    lattice = Lattice(features)
    assert lattice.filter(np.array([1, 0], np.float32))[1] == 0
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-6)


def test_twice_the_same() -> None:
    first, second = Lattice(volume(3)), Lattice(volume(3))
    for name in ("vertices", "weights", "neighbours"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_diagonal_bounds_the_weight_of_oneself() -> None:
    lattice = Lattice(volume(1))
    own = np.diag(matrix(lattice))
    assert (lattice.diagonal >= own * (1 - 1e-5)).all()
    np.testing.assert_allclose(lattice.diagonal, own, rtol=0.1)
    np.testing.assert_allclose(lattice.diagonal.mean(), own.mean(), rtol=0.01)


def test_memory_stays_within_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    features = cloud(7, 400, 3.0)
    lattice, sparse = Lattice(features), Lattice(features, grow=False)
    arrays = (lattice.vertices, lattice.weights, lattice.neighbours)
    assert sum(array.nbytes for array in arrays) < lattice_bytes(400, 7)
    assert lattice.neighbours.shape[1] > 2 * sparse.neighbours.shape[1]
    monkeypatch.setattr(module, "_most", lambda *_: lattice.neighbours.shape[1] - 1)
    np.testing.assert_array_equal(Lattice(features).neighbours, sparse.neighbours)
    monkeypatch.setattr(module, "_most", lambda *_: lattice.neighbours.shape[1])
    np.testing.assert_array_equal(Lattice(features).neighbours, lattice.neighbours)

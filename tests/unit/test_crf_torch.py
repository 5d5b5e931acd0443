"""Mean field in torch against all pairs of voxels, and the operator's own properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medseg.postprocess.dense import brute, engines, torch_field, torch_filters
from medseg.postprocess.dense.plan import plan, taps
from medseg.postprocess.dense.problem import Problem, marginals
from medseg.postprocess.dense.settings import Settings

CPU = torch.device("cpu")
WIDE, MEDIUM, NARROW = (8.0, 8.0, 8.0), (4.0, 4.0, 2.0), (1.5, 1.5, 1.5)


def scene(
    shape: tuple[int, int, int] = (20, 20, 16),
    modalities: int = 2,
    classes: int = 3,
    deviation: float = 0.3,
    appearance: tuple[float, float, float] = MEDIUM,
    roi: bool = False,
) -> Problem:
    """Smooth regions of the classes, each of its own intensity, with noise; doubtful logits."""
    rng = np.random.default_rng(0)
    fields = gaussian_filter(rng.normal(size=(classes, *shape)), (0, 3, 3, 3))
    labels = fields.argmax(0)
    image = [
        gaussian_filter((labels * (m + 1) % classes).astype(float), 0.7)
        + 0.15 * rng.normal(size=shape)
        for m in range(modalities)
    ]
    logits = 2 * np.moveaxis(np.eye(classes)[labels], 3, 0) + rng.normal(size=(classes, *shape))
    kept = np.indices(shape)[0] + np.indices(shape)[2] > 6 if roi else np.ones(shape, bool)
    return Problem(
        shape,
        np.argwhere(kept).T.astype(np.int32),
        (np.stack(image)[:, kept] / deviation).astype(np.float32),
        (logits[1:] - logits[0])[:, kept].astype(np.float32),
        (2.0, 1.5, 1.0),
        appearance,
    )


def truth(problem: Problem, settings: Settings) -> np.ndarray:
    return brute.mean_field(
        problem,
        settings.weights,
        settings.compatibility,
        settings.iterations,
        settings.exclude_self,
    )


def normalised(problem: Problem, kernel: str, **options: Any) -> torch_field.Kernel:
    way: engines.Way = "lattice" if kernel == "lattice" else "grid"
    if kernel == "spatial":
        chosen: Any = torch_filters.Gaussian(problem, CPU, torch.float64)
    else:
        chosen = torch_filters.appearance(problem, Settings((1, 1), 1), way, CPU, torch.float64)
    return torch_field.Kernel(chosen, **options)


def dense(kernel: Any, n: int) -> torch.Tensor:
    """A filter as a matrix: what it makes of every unit vector."""
    matrix: torch.Tensor = kernel(torch.eye(n, dtype=torch.float64))
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize("deviation, appearance", [(0.8, WIDE), (0.3, MEDIUM), (0.2, NARROW)])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_marginals_are_those_of_all_pairs(
    modalities: int, deviation: float, appearance: tuple[float, float, float]
) -> None:
    problem = scene(modalities=modalities, deviation=deviation, appearance=appearance)
    settings = Settings((1.0, 2.0), 5)
    expected = truth(problem, settings)
    got = torch_field.mean_field(problem, settings, CPU)
    assert got.dtype == np.float32
    assert np.abs(got - expected).mean() <= 1e-3
    assert (got.argmax(0) != expected.argmax(0)).mean() <= 2e-3
    assert np.abs(expected - marginals(problem.odds)).mean() > 0.05  # there was something to do


@pytest.mark.parametrize("options", [
    {"exclude_self": True},
    {"compatibility": np.array([[0, 1, 2], [1, 0, 0.3], [2, 0.3, 0]])},
    {"weights": (1.5, 0.0)},
    {"weights": (0.0, 1.5)},
])  # fmt: skip
def test_options_are_those_of_all_pairs(options: dict[str, Any]) -> None:
    """On a region that is no box, with sides that all differ."""
    problem = scene((9, 12, 16), roi=True)
    settings = replace(Settings((1.0, 2.0), 5), **options)
    plain = replace(settings, exclude_self=False, compatibility=None, weights=(1.0, 2.0))
    expected = truth(problem, settings)
    error = np.abs(torch_field.mean_field(problem, settings, CPU) - expected).mean()
    assert error <= 1e-3
    assert np.abs(truth(problem, plain) - expected).mean() > 5 * error  # the option matters


@pytest.mark.parametrize("modalities, way", [(1, "grid"), (2, "grid"), (3, "grid"), (3, "lattice")])
@pytest.mark.parametrize("options", [
    {}, {"exclude_self": True}, {"compatibility": np.array([[0, 1, 2], [1, 0, 0.3], [2, 0.3, 0]])},
])  # fmt: skip
def test_numba_gives_the_same(modalities: int, way: engines.Way, options: dict[str, Any]) -> None:
    problem = scene((9, 12, 16), modalities=modalities, roi=True)
    settings = replace(Settings((1.0, 2.0), 5, tolerance=0.0), **options)
    got = torch_field.mean_field(problem, settings, CPU, way)
    np.testing.assert_allclose(got, engines.run(problem, settings, way, None), atol=1e-5)


def test_the_spatial_kernel_alone_is_exact() -> None:
    """But for its tails."""
    problem, settings = scene((9, 12, 16), roi=True), Settings((1.5, 0.0), 5)
    got = torch_field.mean_field(problem, settings, CPU)
    assert np.abs(got - truth(problem, settings)).max() <= 2e-3


def test_zero_weights_give_softmax() -> None:
    problem = scene((9, 10, 11))
    got = torch_field.mean_field(problem, Settings((0.0, 0.0), 5), CPU)
    np.testing.assert_allclose(got, marginals(problem.odds), atol=1e-6)


def test_a_lattice_takes_the_place_of_the_grids() -> None:
    problem = scene((9, 12, 16), modalities=4)
    settings = Settings((1.0, 2.0), 5)
    got = torch_field.mean_field(problem, settings, CPU, "lattice")
    expected = truth(problem, settings)
    assert np.abs(got - expected).mean() < 0.1 * np.abs(marginals(problem.odds) - expected).mean()


@pytest.mark.parametrize("kernel", ["spatial", "appearance", "lattice"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_the_operator_is_symmetric(kernel: str, exclude_self: bool) -> None:
    problem = scene((9, 12, 16), roi=True)
    operator = normalised(problem, kernel, exclude_self=exclude_self)
    x, y = torch.randn(2, problem.voxels.shape[1], 1, dtype=torch.float64)
    forth, back = float((x * operator(y)).sum()), float((operator(x) * y).sum())
    assert forth == pytest.approx(back, abs=1e-6 * float(x.norm() * y.norm()))


@pytest.mark.parametrize("kernel, appearance", [
    ("spatial", MEDIUM), ("appearance", MEDIUM), ("appearance", NARROW),
])  # fmt: skip
def test_eigenvalues_lie_between_0_and_1(
    kernel: str, appearance: tuple[float, float, float]
) -> None:
    """The taps' cut tails let them go below 0 by as much as was cut."""
    problem = scene((6, 7, 8), appearance=appearance)
    matrix = dense(normalised(problem, kernel), problem.voxels.shape[1])
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() >= -1e-4
    assert values.max() == pytest.approx(1, abs=1e-9)  # its vector is D^1/2 1
    assert (values > 0.5).sum() < len(values) / 2


@pytest.mark.parametrize("kernel", ["spatial", "appearance"])
def test_the_diagonal_is_what_unit_vectors_show(kernel: str) -> None:
    problem = scene((6, 7, 8), modalities=1, roi=True)
    chosen = normalised(problem, kernel)._kernel
    matrix = dense(chosen, problem.voxels.shape[1])
    torch.testing.assert_close(chosen.diagonal, matrix.diagonal())
    without = dense(normalised(problem, kernel, exclude_self=True), len(matrix))
    torch.testing.assert_close(without.diagonal(), torch.zeros(len(matrix)).double())


def test_the_spatial_kernel_is_scipys_gaussian() -> None:
    problem = scene((9, 12, 16))
    values = np.random.default_rng(1).normal(size=problem.shape)
    out = torch_filters.Gaussian(problem, CPU, torch.float64)(
        torch.from_numpy(values.reshape(-1, 1))
    )
    reach = [len(taps(d**2)) - 1 for d in problem.spatial]
    expected = gaussian_filter(values, problem.spatial, mode="constant", radius=reach)
    scale = np.prod([2 * taps(d**2).sum(dtype=float) - 1 for d in problem.spatial])
    np.testing.assert_allclose(out.numpy().reshape(values.shape), scale * expected, atol=1e-5)


def test_a_grid_is_its_plan_as_dense_matrices() -> None:
    """Spread, blur and read, each as a product of one factor an axis, written out for all cells."""
    problem = scene((5, 4, 6), modalities=1, roi=True)
    layout = plan(problem, 1.0, 0.5)
    grid = torch_filters.Grid(layout, problem.voxels, CPU, torch.float64)
    n = problem.voxels.shape[1]
    expected = np.ones((n, n))
    for at, axis in enumerate(layout.axes):
        where = problem.voxels[at] if at < 3 else np.arange(n)
        spread = np.zeros((n, axis.cells))
        spread[np.arange(n), axis.index[where]] = 1 - axis.fraction[where].astype(float)
        spread[np.arange(n), axis.index[where] + 1] += axis.fraction[where]
        half = np.append(axis.taps, np.zeros(axis.cells))
        steps = np.abs(np.subtract.outer(np.arange(axis.cells), np.arange(axis.cells)))
        expected *= spread @ half[steps] @ spread.T
    np.testing.assert_allclose(dense(grid, n).numpy(), expected, rtol=1e-6)


def test_the_first_class_follows_from_the_others() -> None:
    problem = scene((9, 10, 11))
    kernel = normalised(problem, "appearance", exclude_self=True)
    q = torch.from_numpy(marginals(problem.odds.astype(np.float64)).T.copy())
    torch.testing.assert_close(kernel.message(q), kernel(q))


@pytest.mark.parametrize("kernel", ["spatial", "appearance", "lattice"])
def test_filters_are_differentiable_twice(kernel: str) -> None:
    problem = scene((2, 3, 4), modalities=1)
    operator = normalised(problem, kernel)
    values = torch.rand(24, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (values,))
    assert torch.autograd.gradgradcheck(operator, (values,))

"""Mean field by brute force: every pair of voxels, in float64. The truth for all other ways."""

from __future__ import annotations

import numpy as np

from medseg.postprocess.dense.problem import Problem, marginals
from medseg.volumes.image import Array

MOST_VOXELS = 50_000
_BLOCK = 1 << 22


def mean_field(
    problem: Problem,
    weights: tuple[float, float],
    compatibility: Array | None,
    iterations: int,
    exclude_self: bool,
) -> Array:
    """Run mean field with the kernels themselves.

    Args:
        problem: At most `MOST_VOXELS` voxels.
        weights: Of the spatial and of the appearance kernel.
        compatibility: (C, C) cost of two labels beside each other; None: Potts.
        iterations: Updates, of all voxels at once.
        exclude_self: Whether a voxel's own marginal is left out of its message.

    Returns:
        (C, N) float32 marginals.
    """
    places = problem.voxels.T.astype(np.float64)
    colours = problem.intensities.T.astype(np.float64)
    spatial = places / np.asarray(problem.spatial)
    bilateral = np.concatenate([places / np.asarray(problem.appearance), colours], 1)
    kernels = [(w, f) for w, f in zip(weights, (spatial, bilateral), strict=True) if w]
    scales = [1 / np.sqrt(_filter(f, np.ones((len(f), 1)))) for _, f in kernels]
    q = marginals(problem.odds.astype(np.float64))
    for _ in range(iterations):
        message = np.zeros_like(q)
        for (weight, features), scale in zip(kernels, scales, strict=True):
            values = scale * q.T
            filtered = _filter(features, values) - (values if exclude_self else 0)
            message += weight * (scale * filtered).T
        if compatibility is None:
            energy = message
        else:
            energy = -(np.asarray(compatibility, np.float64) @ message)
        q = marginals(problem.odds + energy[1:] - energy[0])
    return q.astype(np.float32)


def _filter(features: Array, values: Array) -> Array:
    """(N, C) values, summed over all voxels with weights exp(-d^2 / 2)."""
    out = np.empty_like(values)
    step = max(1, _BLOCK // len(features))
    squares = (features**2).sum(1)
    for start in range(0, len(features), step):
        part = features[start : start + step]
        distance = squares[start : start + step, None] + squares - 2 * part @ features.T
        out[start : start + step] = np.exp(-0.5 * np.maximum(distance, 0)) @ values
    return out

"""The spatial kernel: a separable Gaussian over the voxels of the box."""

from __future__ import annotations

import numpy as np

from medseg.postprocess.dense import kernels
from medseg.postprocess.dense.grid import Planes
from medseg.postprocess.dense.plan import taps
from medseg.postprocess.dense.problem import Problem
from medseg.volumes.image import Array


class Gaussian:
    """`filter` gives the sum over the sources of exp(-d^2 / 2) times their value.

    Args:
        problem: The voxels.
        several: Whether four values of a voxel should go together, if memory permits.
    """

    def __init__(self, problem: Problem, several: bool = False) -> None:
        rows, columns, length = problem.shape
        i, j, k = (taps(deviation**2) for deviation in problem.spatial)
        one = np.ones(1, np.float32)
        axes = [one, i, j, one, one, k]
        self._planes = Planes((1, rows, columns, 1), 1, length, axes, several)
        self.lanes = self._planes.lanes
        self._flat = problem.flat
        self._rows = (self._flat // length).astype(np.int32)

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        """Filter values; see `Grid.filter`."""
        planes, lanes = self._planes, values.shape[1]
        box = planes.values(lanes)
        kernels.scatter(box, planes.live, values, sources, self._flat, planes.columns)
        planes.blur(lanes, kernels.mark(targets, self._rows, planes.planes))
        out = np.empty((len(targets), lanes), np.float32)
        kernels.gather(box, out, targets, self._flat)
        planes.clear(lanes)
        return out

    def diagonal(self) -> Array:
        """(N,) float32: the weight with which each voxel counts for itself."""
        return np.ones(len(self._flat), np.float32)

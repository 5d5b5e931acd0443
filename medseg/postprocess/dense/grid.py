"""The appearance kernel on a dense bilateral grid.

Its axes: third modality (outermost, where there is one), i, j, k, second and first modality. The
last two form a plane, which stays in the first-level cache while it is blurred. What no source
reaches or no target reads is skipped: planes, and strips (some rows of a plane) without a value.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from medseg.postprocess.dense import kernels
from medseg.postprocess.dense.plan import Axis, Plan
from medseg.postprocess.dense.problem import Problem
from medseg.volumes.image import Array

MOST_MODALITIES = 3
_STRIP = 64  # floats: shorter strips cost more in loops than skipping them saves


class Planes:
    """Values on (outer, i, j, k) planes of (rows, columns), and their separable blur.

    Args:
        shape: Of the planes.
        rows: Of a plane.
        columns: Of a plane.
        taps: Half kernels of the six axes, in this order.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], rows: int, columns: int, taps: list[Array]
    ) -> None:
        high = min(rows, -(-_STRIP // columns))
        self.rows, self.columns = -(-rows // high) * high, columns
        self.shape, self._taps = shape, taps
        self.values = np.zeros(math.prod(shape) * self.rows * columns, np.float32)
        self.live = np.zeros((math.prod(shape), self.rows // high), np.bool_)

    def blur(self, written: Array, read: Array) -> None:
        """Blur in place.

        Args:
            written: bool, the planes that hold values; all others are zero.
            read: bool, the planes whose result is wanted.
        """
        kernels.find(self.values, self.live, written.reshape(-1))
        kernels.blur_planes(self.values, self.live, self.rows, self.columns, *self._taps[4:])
        wanted = [read.reshape(self.shape)]
        for axis in range(3):
            wanted.append(_dilated(wanted[-1], axis, len(self._taps[axis]) - 1))
        for axis in (3, 2, 1, 0):
            if len(self._taps[axis]) > 1:
                flags, taps = wanted[axis].reshape(-1), self._taps[axis]
                kernels.blur(self.values, self.live, flags, self.shape, axis, taps)

    def clear(self) -> None:
        """Set everything back to zero."""
        kernels.clear(self.values, self.live)


class Grid:
    """One grid: `filter` approximates the sum over the sources of exp(-d^2 / 2) times their value.

    Args:
        problem: The voxels, with 1 to 3 modalities.
        plan: The grid's layout.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        i, j, k, *intensities = plan.axes
        first, second, third = (*intensities, *[_absent(problem)] * (3 - len(intensities)))
        self._axes, self._voxels = (third, i, j, k, second, first), problem.voxels
        self._planes = Planes(
            (third.cells, i.cells, j.cells, k.cells), second.cells, first.cells,
            [axis.taps for axis in self._axes],
        )  # fmt: skip
        plane = self._planes.rows * self._planes.columns
        steps = np.array([
            plane * i.cells * j.cells * k.cells * (third.cells > 1),  # 0: not there
            plane * j.cells * k.cells,
            plane * k.cells,
            plane,
            self._planes.columns * (second.cells > 1),
        ])  # fmt: skip
        self._where = kernels.places(
            problem.voxels, *(axis.index for axis in (i, j, k, second, first, third)),
            self._planes.shape, self._planes.columns,
        )  # fmt: skip
        self._corners = (
            *self._where, problem.voxels,
            *(axis.fraction for axis in (i, j, k, second, first, third)), steps,
        )  # fmt: skip

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        """Filter values.

        Args:
            values: (S,) float32, of the sources.
            sources: (S,) int32, which voxels they are.
            targets: (T,) int32, where the result is wanted.

        Returns:
            (T,) float32.
        """
        grid, shape = self._planes.values, self._planes.shape
        written = np.zeros(math.prod(shape), np.bool_)
        kernels.splat(grid, written, values, sources, *self._corners)
        read = kernels.mark(targets, self._where[0], math.prod(shape))
        self._planes.blur(_corners(written.reshape(shape)), _corners(read.reshape(shape)))
        out: Array = kernels.slice_(grid, targets, *self._corners)
        self._planes.clear()
        return out

    def diagonal(self) -> Array:
        """(N,) float32: the weight with which each voxel counts for itself."""
        third, i, j, k, second, first = (_own(axis) for axis in self._axes)
        x, y, z = self._voxels
        own: Array = third * i[x] * j[y] * k[z] * second * first
        return own


def _own(axis: Axis) -> Array:
    """What an axis contributes to the diagonal: its factors multiply."""
    shared = 2 * axis.fraction * (1 - axis.fraction)
    near, next_ = axis.taps[0], axis.taps[1] if len(axis.taps) > 1 else np.float32(0)
    own: Array = (1 - shared) * near + shared * next_
    return own


def _absent(problem: Problem) -> Axis:
    """The axis of a modality that is not there."""
    n = problem.voxels.shape[1]
    return Axis(1, np.zeros(n, np.int32), np.zeros(n, np.float32), np.ones(1, np.float32))


def _corners(lowest: Array) -> Array:
    """The planes around voxels whose lowest planes these are."""
    for axis in range(4):
        lowest = _dilated(lowest, axis, 1)  # also downwards: more than is needed, never less
    return lowest


def _dilated(flags: Array, axis: int, reach: int) -> Array:
    if reach == 0:
        return flags
    size = np.ones(4, int)
    size[axis] = 2 * reach + 1
    dilated: Array = ndimage.maximum_filter(flags, size=tuple(size), mode="constant")
    return dilated

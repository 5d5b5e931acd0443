"""The appearance kernel on a dense bilateral grid.

Its axes: third modality (outermost, where there is one), i, j, k, second and first modality. The
last two form a plane, which stays in the first-level cache while it is blurred. What no source
reaches or no target reads is skipped: planes, and strips (some rows of a plane) without a value.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from medseg.postprocess.dense import blurs, kernels
from medseg.postprocess.dense.plan import LANES, Axis, Plan, lanes, strips
from medseg.postprocess.dense.problem import Problem
from medseg.volumes.image import Array


class Planes:
    """Values on (outer, i, j, k) planes of (rows, columns), and their separable blur.

    Args:
        shape: Of the planes.
        rows: Of a plane.
        columns: Of a plane.
        taps: Half kernels of the six axes, in this order.
        several: Whether cells should have four lanes, if they do not get too many.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        rows: int,
        columns: int,
        taps: list[Array],
        several: bool,
    ) -> None:
        high, self.rows = strips(rows, columns)
        self.shape, self.columns = shape, columns
        self.planes = math.prod(shape)
        self._cells = self.planes * self.rows * columns
        self.lanes = lanes(self._cells, several)
        self._values = np.zeros(self._cells * self.lanes, np.float32)
        self.live = np.zeros((self.planes, self.rows // high), np.bool_)
        """Which strips hold values; false between filters."""
        self._taps = taps

    def values(self, lanes: int) -> Array:
        """All cells, flat, with so many lanes; zero between filters."""
        return self._values[: self._cells * lanes]

    def blur(self, lanes: int, read: Array) -> None:
        """Blur what is live, in place.

        Args:
            lanes: How many there are.
            read: bool, the planes whose result is wanted.
        """
        values, live = self.values(lanes), self.live
        blurs.blur_planes(values, live, self.rows, self.columns * lanes, lanes, *self._taps[4:])
        wanted = [read.reshape(self.shape)]
        for axis in range(3):
            wanted.append(_dilated(wanted[-1], axis, len(self._taps[axis]) - 1))
        for axis in (3, 2, 1, 0):
            if len(self._taps[axis]) > 1:
                flags, taps = wanted[axis].reshape(-1), self._taps[axis]
                blurs.blur(values, live, flags, self.shape, axis, taps)

    def clear(self, lanes: int) -> None:
        """Set everything back to zero."""
        blurs.clear(self.values(lanes), self.live)
        self.live[:] = False


class Grid:
    """One grid: `filter` approximates the sum over the sources of exp(-d^2 / 2) times their value.

    Args:
        problem: The voxels, with 1 to 3 modalities.
        plan: The grid's layout.
        several: Whether four values of a voxel should go together, if memory permits.
    """

    def __init__(self, problem: Problem, plan: Plan, several: bool = False) -> None:
        i, j, k, *intensities = plan.axes
        first, second, third = (*intensities, *[_absent(problem)] * (3 - len(intensities)))
        axes, self._voxels = (third, i, j, k, second, first), problem.voxels
        self._planes = Planes(
            (third.cells, i.cells, j.cells, k.cells), second.cells, first.cells,
            [axis.taps for axis in axes], several,
        )  # fmt: skip
        self.lanes = self._planes.lanes
        plane = self._planes.rows * self._planes.columns
        steps = np.array([
            plane * i.cells * j.cells * k.cells * (third.cells > 1),  # 0: not there
            plane * j.cells * k.cells,
            plane * k.cells,
            plane,
            self._planes.columns * (second.cells > 1),
        ])  # fmt: skip
        strip = self._planes.rows // self._planes.live.shape[1]
        self._where, offsets, self._strips = kernels.places(
            problem.voxels, *(axis.index for axis in (i, j, k, second, first, third)),
            self._planes.shape, self._planes.columns, strip,
        )  # fmt: skip
        self._corners = (
            self._where, offsets, problem.voxels,
            *(axis.fraction for axis in (i, j, k, second, first, third)), steps,
        )  # fmt: skip
        self._shares = [(axis.fraction, axis.taps) for axis in axes]

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        """Filter values.

        Args:
            values: (S, 1) float32, of the sources, or (S, 4) if `lanes` is 4.
            sources: (S,) int32, which voxels they are.
            targets: (T,) int32, where the result is wanted.

        Returns:
            (T, 1) or (T, 4) float32.
        """
        planes, width = self._planes, values.shape[1]
        splat = kernels.splat4 if width == LANES else kernels.splat
        slice_ = kernels.slice4 if width == LANES else kernels.slice_
        grid, shape = planes.values(width), planes.shape
        splat(grid, planes.live, values, sources, self._strips, *self._corners)
        _reach_corners(planes.live.reshape(*shape, -1), axes=5)
        read = kernels.mark(targets, self._where, planes.planes)
        _reach_corners(read.reshape(shape), axes=4)
        planes.blur(width, read)
        out = np.empty((len(targets), width), np.float32)
        slice_(grid, out, targets, *self._corners)
        planes.clear(width)
        return out

    def diagonal(self) -> Array:
        """(N,) float32: the weight with which each voxel counts for itself."""
        third, i, j, k, second, first = (_own(*share) for share in self._shares)
        x, y, z = self._voxels
        own: Array = third * i[x] * j[y] * k[z] * second * first
        return own


def _own(fraction: Array, taps: Array) -> Array:
    """What an axis contributes to the diagonal: its factors multiply."""
    shared = 2 * fraction * (1 - fraction)
    own: Array = (1 - shared) * taps[0]
    return own + shared * taps[1] if len(taps) > 1 else own


def _absent(problem: Problem) -> Axis:
    """The axis of a modality that is not there."""
    n = problem.voxels.shape[1]
    return Axis(1, np.zeros(n, np.int32), np.zeros(n, np.float32), np.ones(1, np.float32))


def _reach_corners(lowest: Array, axes: int) -> None:
    """Mark, in place, the neighbours one step on along each axis, and along several."""
    for axis in range(axes):
        along = np.moveaxis(lowest, axis, 0)
        along[1:] |= along[:-1].copy()


def _dilated(flags: Array, axis: int, reach: int) -> Array:
    if reach == 0:
        return flags
    size = np.ones(4, int)
    size[axis] = 2 * reach + 1
    dilated: Array = ndimage.maximum_filter(flags, size=tuple(size), mode="constant")
    return dilated

"""How voxels fall into the cells of a bilateral grid; numba and torch build theirs from this.

A dense grid over (i, j, k, intensities) stands for the appearance kernel (Paris and Durand 2006,
doi:10.1007/11744085_44; Chen, Paris and Durand 2007, doi:10.1145/1276377.1276506): a value is
spread over the 2^D cells around a voxel by multilinear weights, the cells are blurred along each
axis, and read with the same weights. The weights widen the kernel: a voxel at fraction f of a cell
is spread with variance f (1 - f), once on the way in and once on the way out. The blur has the
variance that remains, so that the whole has the one asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medseg.postprocess.dense.problem import Problem
from medseg.volumes.image import Array

LANES = 4
"""Values of a voxel that may go through a filter together, as one SIMD register holds."""
_MOST_VALUES = 1 << 24  # in all lanes, 64 MiB: of a larger grid, classes take turns
_STRIP = 64  # cells: shorter strips cost more in loops than skipping them saves
TAIL = 1e-4
"""Taps of a Gaussian below this share of its peak are left out."""
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a grid.

    Args:
        cells: How many there are; the last one is only ever reached by interpolation.
        index: int32, the lower cell of each coordinate (spatial axes) or voxel (intensities).
        fraction: float32, how far it is from there to the next cell.
        taps: float32, half of the blur: tap 0 is the centre.
    """

    cells: int
    index: Array
    fraction: Array
    taps: Array


@dataclass(frozen=True, eq=False)
class Plan:
    """A grid: three spatial axes, then one for each modality."""

    axes: tuple[Axis, ...]

    @property
    def cells(self) -> int:
        """Of the whole grid."""
        return math.prod(axis.cells for axis in self.axes)


def plan(problem: Problem, width: float, shift: float) -> Plan:
    """Lay a grid.

    Args:
        problem: The voxels.
        width: Of a cell, in standard deviations.
        shift: Where the grid starts, in cells.
    """
    spatial = [
        _spatial(n, deviation, width, shift)
        for n, deviation in zip(problem.shape, problem.appearance, strict=True)
    ]
    return Plan((*spatial, *(_intensity(x, width, shift) for x in problem.intensities)))


def cells(problem: Problem, width: float) -> tuple[int, ...]:
    """The most cells along each axis of a grid of this width, before any of it is there."""
    spatial = [
        n // _whole_voxels(deviation, width) + 3
        for n, deviation in zip(problem.shape, problem.appearance, strict=True)
    ]
    intensities = [int(np.ptp(x) / width) + 3 for x in problem.intensities]
    return (*spatial, *intensities)


def strips(rows: int, columns: int) -> tuple[int, int]:
    """How a plane is cut: rows of a strip, and rows of the plane, padded to whole strips."""
    high = min(rows, -(-_STRIP // columns))
    return high, -(-rows // high) * high


def lanes(cells: int, several: bool) -> int:
    """How many values each of so many cells gets, if several are wanted."""
    return LANES if several and cells * LANES <= _MOST_VALUES else 1


def most_values(cells: int, several: bool) -> int:
    """The most values that up to so many cells get: fewer cells may have more lanes."""
    return max(cells, min(cells * LANES, _MOST_VALUES)) if several else cells


def taps(variance: float, scale: float = 1.0) -> Array:
    """Half of a Gaussian of this variance (in steps), from its centre, times a scale."""
    if variance < _LEAST_VARIANCE:
        return np.array([scale], np.float32)
    reach = max(1, math.floor(math.sqrt(-2 * variance * math.log(TAIL))))
    half: Array = scale * np.exp(-0.5 * np.arange(reach + 1) ** 2 / variance)
    return half.astype(np.float32)


def _whole_voxels(deviation: float, width: float) -> int:
    return max(1, round(width * deviation))


def _spatial(n: int, deviation: float, width: float, shift: float) -> Axis:
    cell = _whole_voxels(deviation, width)
    positions = np.arange(n) + round(shift * cell)
    return _axis(positions / cell, deviation / cell)


def _intensity(values: Array, width: float, shift: float) -> Axis:
    return _axis((values - values.min()) / np.float32(width) + np.float32(shift), 1 / width)


def _axis(positions: Array, deviation: float) -> Axis:
    """An axis for positions in cells and a standard deviation in cells."""
    index = np.floor(positions).astype(np.int32)
    fraction = (positions - index).astype(np.float32)
    index -= index.min()
    spread = 2 * float(np.mean(fraction * (1 - fraction), dtype=np.float64))
    variance = max(deviation**2 - spread, _LEAST_VARIANCE)
    return Axis(
        int(index.max()) + 2, index, fraction, taps(variance, deviation / math.sqrt(variance))
    )

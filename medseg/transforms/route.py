"""From an input's grid to a network's and back: linear interpolation, axis by axis, in parts.

Along one axis, a row of the new grid is a weighted sum of a few rows of the old one (its taps), and
the axes are independent: any box of the new grid can be made from a box of the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medseg.volumes.geometry import Reorient
from medseg.volumes.image import Array

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

_FEW = 4  # taps; with more of them a product of matrices is faster than a sum of rows
_LEAST_SIGMA = 0.25  # voxels; less smoothing changes nothing that could be seen


@dataclass(frozen=True, eq=False)
class Taps:
    """How the rows of an axis come from the rows of another.

    Args:
        index: (rows, taps) int64, the rows that each new row is made of.
        weight: (rows, taps) float32, whose sum over the taps is 1; None: rows are taken as they
            are, one for each.
    """

    index: Tensor
    weight: Tensor | None = None

    @classmethod
    def linear(cls, old: int, new: int) -> Taps:
        """Linear interpolation from `old` rows to `new` ones of the same extent, edges aligned.

        Where rows become fewer they are smoothed first, so that thin structures fade rather than
        alias: by a Gaussian, as long as scipy's, with the edge mirrored. Beyond the outermost
        centres the outermost row is repeated.
        """
        if old == new:
            return cls(torch.arange(new)[:, None])
        place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, old - 1)
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new), low), 1 - (place - low))
        np.add.at(matrix, (np.arange(new), high), place - low)
        sigma = (old / new - 1) / 2
        return cls._banded(matrix @ _gaussian(old, sigma) if sigma > _LEAST_SIGMA else matrix)

    @classmethod
    def _banded(cls, matrix: Array) -> Taps:
        """From (new rows, old rows), of which only a band is not 0."""
        used = matrix != 0
        first = used.argmax(1)
        taps = int((matrix.shape[1] - used[:, ::-1].argmax(1) - first).max())
        first = np.minimum(first, matrix.shape[1] - taps)
        index = first[:, None] + np.arange(taps)
        weight = np.take_along_axis(matrix, index, 1).astype(np.float32)
        return cls(torch.from_numpy(index), torch.from_numpy(weight))

    @property
    def reach(self) -> int:
        """How many rows, at most, a new row is made of."""
        return self.index.shape[1]

    def mirrored(self) -> Taps:
        """The same for new rows that are counted from the other end."""
        weight = None if self.weight is None else self.weight.flip(0)
        return Taps(self.index.flip(0), weight)

    def part(self, rows: slice) -> Taps:
        """Some of the new rows."""
        return Taps(self.index[rows], None if self.weight is None else self.weight[rows])

    def needs(self, rows: slice) -> slice:
        """The old rows from which new ones are made."""
        index = self.index[rows]
        return slice(int(index.min()), int(index.max()) + 1)

    def __call__(self, x: Tensor, axis: int, start: int = 0) -> Tensor:
        """Make the new rows along an axis of x, whose first row is the old grid's row `start`."""
        if self.weight is None and bool((self.index[1:] - self.index[:-1] == 1).all()):
            return x.narrow(axis, int(self.index[0]) - start, len(self.index))
        index = (self.index - start).to(x.device)
        if self.weight is None:
            return x.index_select(axis, index[:, 0])
        if self.reach > _FEW:
            matrix = torch.zeros(len(index), x.shape[axis], device=x.device, dtype=x.dtype)
            matrix.scatter_add_(1, index, self.weight.to(x))
            return (x.transpose(axis, -1) @ matrix.T).transpose(axis, -1)
        shape = [-1 if n == axis else 1 for n in range(x.dim())]
        weight = self.weight.to(x)
        total = x.index_select(axis, index[:, 0]).mul_(weight[:, 0].view(shape))
        for tap in range(1, self.reach):
            total.addcmul_(x.index_select(axis, index[:, tap]), weight[:, tap].view(shape))
        return total


@dataclass(frozen=True)
class Route:
    """How a volume came to the network's grid.

    Args:
        shape: The input's voxels (I, J, K).
        reorient: The exchange and mirroring of axes.
        box: The part that was kept, in the oriented grid.
        resampled: Voxels of the network's grid.
    """

    shape: Shape
    reorient: Reorient
    box: Box
    resampled: Shape

    @classmethod
    def identity(cls, shape: Sequence[int]) -> Route:
        """The route of a volume (I, J, K) that is the network's as it is."""
        i, j, k = shape
        whole = (slice(0, i), slice(0, j), slice(0, k))
        return cls((i, j, k), Reorient((0, 1, 2), (False, False, False)), whole, (i, j, k))

    @cached_property
    def kept(self) -> Box:
        """The part that was kept, in the input's grid."""
        found = [slice(0)] * 3
        for axis, flip, part in zip(self.reorient.axes, self.reorient.flips, self.box, strict=True):
            n = self.shape[axis]
            found[axis] = slice(n - part.stop, n - part.start) if flip else part
        i, j, k = found
        return i, j, k

    @cached_property
    def taps(self) -> tuple[Taps, Taps, Taps]:
        """Of each axis of the network's grid: the rows of the kept part, in the input's order."""
        i, j, k = (
            taps.mirrored() if flip else taps
            for flip, taps in zip(
                self.reorient.flips,
                (
                    Taps.linear(n, part.stop - part.start)
                    for n, part in zip(self.resampled, self.box, strict=True)
                ),
                strict=True,
            )
        )
        return i, j, k

    @property
    def is_plain(self) -> bool:
        """Whether nothing is interpolated."""
        return all(taps.weight is None for taps in self.taps)

    def resized(self, resampled: Shape) -> Route:
        """The same route from another size of the network's grid."""
        return Route(self.shape, self.reorient, self.box, resampled)

    def rows(self, box: Box, axis: int) -> slice:
        """Along an axis of the network's grid: the rows, of the kept part, of a box of the input.

        Args:
            box: In the input's grid, inside `kept`.
            axis: Of the network's grid.
        """
        whole, part = self.kept[self.reorient.axes[axis]], box[self.reorient.axes[axis]]
        return slice(part.start - whole.start, part.stop - whole.start)

    def source(self, box: Box) -> Box:
        """The box of the network's grid from which a box of the input is made."""
        i, j, k = (taps.needs(self.rows(box, n)) for n, taps in enumerate(self.taps))
        return i, j, k

    def part(self, values: Tensor, box: Box) -> Tensor:
        """Take values to a box of the input's grid, linearly interpolated.

        Args:
            values: (C, *source(box)), on the network's grid.
            box: In the input's grid, inside `kept`.

        Returns:
            (C, *box).
        """
        for axis, (taps, old) in enumerate(zip(self.taps, self.source(box), strict=True)):
            values = taps.part(self.rows(box, axis))(values, axis + 1, old.start)
        return values.permute(0, *(1 + self.reorient.axes.index(axis) for axis in range(3)))

    def back(self, probabilities: Array) -> Array:
        """Take (C, I, J, K) class probabilities to the input's grid, linearly interpolated.

        Outside the cropped box the background (class 0) is certain. Probabilities rather than
        labels are resampled: a label's edge then falls where the classes are equally likely.
        """
        inner = self.part(_tensor(probabilities), self.kept).numpy()
        if inner.shape[1:] == self.shape:
            return inner
        whole: Array = np.zeros((len(inner), *self.shape), dtype=inner.dtype)
        whole[0] = 1
        whole[(slice(None), *self.kept)] = inner
        return whole


def resample(volume: Array, shape: Sequence[int]) -> Array:
    """Resample (C, I, J, K) to (C, *shape) over the same extent, as `Taps.linear` says."""
    if volume.shape[1:] == tuple(shape):
        return volume
    values = _tensor(volume)
    for axis in sorted(range(3), key=lambda n: shape[n] / volume.shape[n + 1]):  # shrink first
        values = Taps.linear(volume.shape[axis + 1], shape[axis])(values, axis + 1)
    result: Array = values.numpy()
    return result


def _tensor(array: Array) -> Tensor:
    """The same values, without a copy where torch can do without."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array.copy() if min(array.strides) < 0 else array)


def _gaussian(rows: int, sigma: float) -> Array:
    """(rows, rows): smoothing by a Gaussian cut off at 4 deviations, the edge mirrored."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((rows, rows))
    place = (np.arange(rows)[:, None] + offsets) % (2 * rows)
    place = np.where(place < rows, place, 2 * rows - 1 - place)  # d c b a | a b c d | d c b a
    np.add.at(matrix, (np.arange(rows)[:, None], place), np.broadcast_to(weights, place.shape))
    return matrix

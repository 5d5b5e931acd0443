"""The kernels of the dense CRF as torch filters: those of numba, but differentiable, on any device.

The features of a kernel are constants; gradients flow through the values that it filters. All are
symmetric, so that their gradient is the filter itself, and no step is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medseg.postprocess.dense import engines
from medseg.postprocess.dense.lattice import Lattice, torch_filter
from medseg.postprocess.dense.plan import Axis, Plan, plan, taps
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings
from medseg.volumes.image import Array


class Filter(Protocol):
    """A linear filter over N voxels: `filter(values)` maps (N, C) to (N, C)."""

    @property
    def diagonal(self) -> Tensor:
        """(N,) what each voxel gives to itself."""
        ...

    def __call__(self, values: Tensor) -> Tensor:
        """Sum values (N, C) over all voxels, weighted by the kernel."""
        ...


class Gaussian:
    """The spatial kernel: a separable Gaussian over the box, zero outside its voxels.

    Args:
        problem: The voxels; `problem.spatial` are the standard deviations in voxels.
        device: Where it runs.
        dtype: Of the values that it takes.
    """

    def __init__(
        self, problem: Problem, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._flat = torch.from_numpy(problem.flat).to(device)
        self._bands = [
            _band(n, taps(deviation**2)).to(device, dtype)
            for n, deviation in zip(problem.shape, problem.spatial, strict=True)
        ]
        self.diagonal = torch.ones(len(self._flat), device=device, dtype=dtype)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) values."""
        return _symmetric(values, self._filter)

    def _filter(self, values: Tensor) -> Tensor:
        box = values.new_zeros(values.shape[1], math.prod(map(len, self._bands)))
        box[:, self._flat] = values.t()
        return _blurred(box, self._bands)[:, self._flat].t()


class Grid:
    """The appearance kernel, by one bilateral grid.

    Args:
        layout: The grid.
        voxels: (3, N) indices within the box.
        device: Where it runs.
        dtype: Of the values that it takes.
    """

    def __init__(
        self,
        layout: Plan,
        voxels: Array,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._bands = [_band(axis.cells, axis.taps).to(device, dtype) for axis in layout.axes]
        self._cells = layout.cells
        self._corners: list[tuple[int, Tensor]] = []
        self._base = torch.zeros(voxels.shape[1], dtype=torch.int64, device=device)
        self.diagonal = torch.ones(voxels.shape[1], dtype=dtype, device=device)
        stride = 1
        for at in reversed(range(len(layout.axes))):
            axis = layout.axes[at]
            index, fraction = _of_voxels(axis, voxels[at] if at < 3 else None)
            share = torch.from_numpy(fraction).to(device, dtype)
            self._base += stride * torch.from_numpy(index).to(device, torch.int64)
            self.diagonal *= _own(axis, share)
            if fraction.any():  # else its upper cells hold nothing
                self._corners.append((stride, share))
            stride *= axis.cells

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) values."""
        return _symmetric(values, self._filter)

    def _filter(self, values: Tensor) -> Tensor:
        columns = values.t().contiguous()
        cells = columns.new_zeros(len(columns), self._cells)
        for offset, weight in self._weights(0, 0, torch.ones_like(columns[0])):
            cells[:, offset:].index_add_(1, self._base, weight * columns)
        cells = _blurred(cells, self._bands)
        out = torch.zeros_like(columns)
        for offset, weight in self._weights(0, 0, torch.ones_like(columns[0])):
            for row, cell in zip(out, cells, strict=True):
                row.addcmul_(weight, cell[offset:].index_select(0, self._base))
        return out.t()

    def _weights(self, at: int, offset: int, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each corner of the voxels' cells, as an offset from the lowest, with its weights (N,)."""
        if at == len(self._corners):
            yield offset, weight
            return
        stride, share = self._corners[at]
        upper = weight * share
        yield from self._weights(at + 1, offset, weight - upper)
        yield from self._weights(at + 1, offset + stride, upper)


class Mean:
    """The mean of filters of the same voxels."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = filters
        self.diagonal = torch.stack([one.diagonal for one in filters]).mean(0)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) values."""
        out = self._filters[0](values)
        for one in self._filters[1:]:
            out = out + one(values)
        return out / len(self._filters)


class Permutohedral:
    """The appearance kernel, by a permutohedral lattice.

    Args:
        layout: The lattice.
        device: Where it runs.
        dtype: Of the values that it takes.
    """

    def __init__(
        self, layout: Lattice, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._layout = layout
        self.diagonal = torch.from_numpy(layout.diagonal).to(device, dtype)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter (N, C) values."""
        return _symmetric(values, lambda given: torch_filter(self._layout, given))


def appearance(
    problem: Problem,
    settings: Settings,
    way: engines.Way,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Filter:
    """The appearance kernel: a bilateral grid for each of `settings.shifts`, or a lattice."""
    if way == "lattice":
        return Permutohedral(engines.lattice(problem), device, dtype)
    layouts = [plan(problem, settings.width, shift) for shift in settings.shifts]
    return Mean([Grid(layout, problem.voxels, device, dtype) for layout in layouts])


class _Symmetric(torch.autograd.Function):
    """A symmetric linear operator; its gradient is the operator again, of any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.operator = operator
        with torch.autocast(values.device.type, enabled=False):
            return operator(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _symmetric(gradients[0], ctx.operator), None


def _symmetric(values: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    out: Tensor = _Symmetric.apply(values, operator)  # type: ignore[no-untyped-call]
    return out


def _band(n: int, half: Array) -> Tensor:
    """(n, n), a blur of n cells by symmetric taps as a matrix."""
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return torch.from_numpy(np.append(half, np.float32(0))[np.minimum(distance, len(half))])


def _blurred(cells: Tensor, bands: Sequence[Tensor]) -> Tensor:
    """(C, cells) blurred along each axis; the last axis runs fastest."""
    shape, inner = cells.shape, 1
    for band in reversed(bands):
        cells = torch.matmul(band, cells.reshape(-1, len(band), inner))
        inner *= len(band)
    return cells.reshape(shape)


def _of_voxels(axis: Axis, place: Array | None) -> tuple[Array, Array]:
    """Index and fraction of each voxel; a spatial axis holds them by coordinate."""
    if place is None:
        return axis.index, axis.fraction
    return axis.index[place], axis.fraction[place]


def _own(axis: Axis, share: Tensor) -> Tensor:
    """An axis' factor of the diagonal: spread, blurred and read at the same fraction."""
    centre, beside = (float(tap) for tap in np.append(axis.taps, np.float32(0))[:2])
    mixed = 2 * share * (1 - share)
    return (1 - mixed) * centre + mixed * beside

"""Mean field on the CPU: what has not moved is not sent again, what is settled is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from medseg.postprocess.dense import updates
from medseg.postprocess.dense.problem import marginals
from medseg.postprocess.dense.settings import Settings
from medseg.volumes.image import Array

_SETTLED = 12.0  # a lead in log-odds that the last movements of neighbours do not undo
_LEAD = 7.0  # with it after all neighbours are against a voxel, its marginals move by < 1e-3
_MOST_ROW = 1.25  # rows of D^-1/2 K D^-1/2 sum to about 1


class Filter(Protocol):
    """A symmetric linear filter over the voxels of a problem."""

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        """Sum the (S,) values of the sources into (T,) targets, weighted by the kernel."""

    def diagonal(self) -> Array:
        """(N,) weights with which voxels count for themselves."""


class Pairwise:
    """The weighted sum of normalised kernels, D^-1/2 K D^-1/2.

    Args:
        kernels: Weight and filters of each kernel; the mean of its filters stands for it.
        voxels: How many there are.
        threads: Filters that may run side by side.
    """

    def __init__(
        self, kernels: Sequence[tuple[float, Sequence[Filter]]], voxels: int, threads: int
    ) -> None:
        self._threads = threads
        self.all = np.arange(voxels, dtype=np.int32)
        self._parts = [
            (kernel, weight / len(filters), filter_)
            for kernel, (weight, filters) in enumerate(kernels)
            for filter_ in filters
        ]
        ones = np.ones(voxels, np.float32)
        self._scales = [np.zeros(voxels, np.float32) for _ in kernels]
        sums = self._each(lambda part: part[2].filter(ones, self.all, self.all))
        for (kernel, _, _), rows in zip(self._parts, sums, strict=True):
            self._scales[kernel] += rows / len(kernels[kernel][1])
        for scale in self._scales:
            np.sqrt(scale, out=scale)
            np.divide(1, scale, out=scale)

    def send(self, values: Sequence[Array], sources: Sequence[Array], targets: Array) -> Array:
        """(C, T) messages to the targets, of the values of C classes at their sources."""

        def one(part: tuple[int, float, Filter]) -> Array:
            kernel, weight, filter_ = part
            scale, found = self._scales[kernel], np.empty((len(values), len(targets)), np.float32)
            for value, source, to in zip(values, sources, found, strict=True):
                scaled = updates.scaled(value, scale, source, np.float32(1))
                filtered = filter_.filter(scaled, source, targets)
                to[:] = updates.scaled(filtered, scale, targets, np.float32(weight))
            return found

        total = np.zeros((len(values), len(targets)), np.float32)
        for found in self._each(one):
            total += found
        return total

    def own(self) -> Array:
        """(N,) share of a voxel's own marginal in its message."""
        shares = [
            np.float32(weight) * self._scales[kernel] ** 2 * filter_.diagonal()
            for kernel, weight, filter_ in self._parts
        ]
        return sum(shares, np.zeros(len(self.all), np.float32))

    def _each(self, job: Callable[[tuple[int, float, Filter]], Array]) -> list[Array]:
        """Do a job for every filter, in any order; the results are in theirs."""
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(job, self._parts))


def mean_field(odds: Array, pairwise: Pairwise, settings: Settings) -> Array:
    """Run mean field.

    Args:
        odds: (C - 1, N) float32 log-odds of the network.
        pairwise: The kernels.
        settings: Iterations, compatibility, tolerance.

    Returns:
        (C, N) float32 marginals.
    """
    q = marginals(odds)[1:]
    messages, sent = np.zeros_like(odds), np.zeros_like(odds)
    voxels, changes = np.empty_like(pairwise.all), np.empty(odds.shape[1], np.float32)
    reach = _MOST_ROW * sum(settings.weights) * _span(settings)
    targets = np.empty_like(pairwise.all)
    open_ = updates.unsettled(odds, np.float32(_LEAD + reach), targets)
    rows = np.zeros(odds.shape[1], np.float32)
    rows[targets[:open_]] = pairwise.send([np.ones_like(rows)], [pairwise.all], targets[:open_])[0]
    own = pairwise.own() if settings.exclude_self else np.empty(0, np.float32)
    costs = _costs(settings, len(odds) + 1)
    for _ in range(settings.iterations):
        values, sources = [], []
        for c in range(len(odds)):
            n = updates.moved(q[c], sent[c], np.float32(settings.tolerance), voxels, changes)
            values.append(changes[:n].copy())
            sources.append(voxels[:n].copy())
        if not open_ or not any(map(len, sources)):
            break
        updates.add(messages, targets[:open_], pairwise.send(values, sources, targets[:open_]))
        open_ = updates.update(
            targets[:open_], odds, messages, rows, own, costs, np.float32(_SETTLED), q
        )
    first = 1 - q.sum(0, keepdims=True)
    return np.concatenate([np.maximum(first, 0), q])


def _costs(settings: Settings, classes: int) -> Array:
    """(C - 1, C) what a message of each class costs another class, beyond the first class."""
    matrix = 1 - np.eye(classes) if settings.compatibility is None else settings.compatibility
    costs: Array = matrix[1:] - matrix[0]
    return costs.astype(np.float32)


def _span(settings: Settings) -> float:
    return 1.0 if settings.compatibility is None else float(np.ptp(settings.compatibility))

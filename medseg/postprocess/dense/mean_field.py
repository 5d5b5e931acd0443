"""Mean field on the CPU: what has not moved is not sent again, what is settled is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from medseg.postprocess.dense import updates
from medseg.postprocess.dense.settings import Settings
from medseg.volumes.image import Array

_LEAD = 7.0  # in log-odds: marginals beyond it are within 1e-3 of 0 or 1
_MOST_ROW = 1.4  # rows of D^-1/2 K D^-1/2 sum to about 1
_LATE = 0.5  # the share of all that neighbours can say which may still come after a first message


class Filter(Protocol):
    """A symmetric linear filter over the voxels of a problem.

    Attributes:
        lanes: How many values of a voxel it takes together: as many, or one.
    """

    lanes: int

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        """Sum (S, lanes) values of the sources into (T, lanes), weighted by the kernel."""

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
        ones = np.ones((voxels, 1), np.float32)
        self._scales = [np.zeros(voxels, np.float32) for _ in kernels]
        sums = self._each(lambda part: part[2].filter(ones, self.all, self.all))
        for (kernel, _, _), rows in zip(self._parts, sums, strict=True):
            self._scales[kernel] += rows[:, 0] / len(kernels[kernel][1])
        for scale in self._scales:
            np.sqrt(scale, out=scale)
            np.divide(1, scale, out=scale)

    def send(self, values: Array, sources: Array, targets: Array) -> Array:
        """(T, C) messages to the targets, of the (S, C) values of the sources."""

        def one(part: tuple[int, float, Filter]) -> Array:
            kernel, weight, filter_ = part
            scale = self._scales[kernel]
            scaled = updates.scaled(values, scale, sources, np.float32(1))
            found = np.empty((len(targets), values.shape[1]), np.float32)
            for c in range(0, values.shape[1], filter_.lanes):
                group = slice(c, c + filter_.lanes)
                found[:, group] = _filtered(filter_, scaled[:, group], sources, targets)
            sent: Array = updates.scaled(found, scale, targets, np.float32(weight))
            return sent

        first, *rest = self._each(one) or [np.zeros((len(targets), values.shape[1]), np.float32)]
        for found in rest:
            first += found
        return first

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

    The first class is what remains, so that C - 1 messages do: of all voxels' marginals together
    comes a message that never changes, of which the others take their part.

    Args:
        odds: (C - 1, N) float32 log-odds of the network.
        pairwise: The kernels.
        settings: Iterations, compatibility, tolerance.

    Returns:
        (C, N) float32 marginals.
    """
    odds = np.ascontiguousarray(odds.T)
    q, messages = np.empty_like(odds), np.zeros_like(odds)
    targets = np.empty_like(pairwise.all)
    always, pull = _pull(settings, odds.shape[1] + 1)
    lead, settled = _leads(settings)
    open_ = targets[: updates.start(odds, lead, q, targets)]
    own = np.empty(0, np.float32)
    if settings.exclude_self:
        own = pairwise.own()
        odds -= own[:, None] * always
    tolerance = np.float32(settings.tolerance)
    if len(pull) == 1 and pull[0, 0]:  # one message: what never changes goes with it
        sent, sources, values = q.copy(), pairwise.all, q + always / pull[0, 0]
    else:
        ones = np.ones((len(q), 1), np.float32)
        odds[open_] += pairwise.send(ones, pairwise.all, open_) * always
        sent = np.zeros_like(q)
        sources, values = updates.moved(q, sent, tolerance, pairwise.all)
    for _ in range(settings.iterations):
        if not len(open_) or not len(sources):
            break
        parts = pairwise.send(values, sources, open_)
        last = open_.copy()
        still = updates.update(open_, odds, messages, parts, own, pull, settled, q)
        open_ = open_[:still]
        sources, values = updates.moved(q, sent, tolerance, last)
    first = np.maximum(1 - q.sum(1), 0)
    return np.concatenate([first[None], q.T])


def _leads(settings: Settings) -> tuple[np.float32, np.float32]:
    """Leads beyond which a voxel is left alone: before any message, and after all have come."""
    if not settings.tolerance:
        return np.float32(np.inf), np.float32(np.inf)
    cost = settings.compatibility
    most = _MOST_ROW * sum(settings.weights) * (1 if cost is None else float(np.ptp(cost)))
    return np.float32(_LEAD + most), np.float32(_LEAD + _LATE * most)


def _filtered(filter_: Filter, values: Array, sources: Array, targets: Array) -> Array:
    """Filter as many values as there are lanes, or fewer."""
    if filter_.lanes == 1:
        some = np.flatnonzero(values[:, 0])
        if len(some) == len(values):
            return filter_.filter(values, sources, targets)
        return filter_.filter(np.ascontiguousarray(values[some]), sources[some], targets)
    missing = filter_.lanes - values.shape[1] if values.shape[1] > 1 else 0
    padded = np.ascontiguousarray(np.pad(values, ((0, 0), (0, missing))))
    return filter_.filter(padded, sources, targets)[:, : values.shape[1]]


def _pull(settings: Settings, classes: int) -> tuple[Array, Array]:
    """What messages add to the log-odds of the classes but the first.

    Returns:
        (C - 1,) what the message of all classes together adds, and (C - 1, C - 1) what that of each
        class but the first adds beyond.
    """
    cost = 1 - np.eye(classes) if settings.compatibility is None else settings.compatibility
    pull = (cost[0] - cost[1:]).astype(np.float32)
    return pull[:, 0], pull[:, 1:] - pull[:, :1]

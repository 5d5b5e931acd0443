"""What a dense CRF works on: the voxels of a region, their features and their log-odds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.volumes.image import Array

Shape = tuple[int, int, int]
FLOOR = 1e-6
"""Probabilities below it count as it: a probability of 0 would be deaf to all evidence."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The voxels that take part, in order of i, j, k.

    Args:
        shape: (I, J, K) of the box that holds them.
        voxels: (3, N) int16, indices within the box.
        intensities: (M, N) float32, each modality divided by its standard deviation.
        odds: (C - 1, N) float32, log p_c - log p_0 of the classes beyond the first.
        spatial: Standard deviations of the spatial kernel, in voxels, per axis.
        appearance: Those of the appearance kernel's positions, in voxels, per axis.
    """

    shape: Shape
    voxels: Array
    intensities: Array
    odds: Array
    spatial: tuple[float, float, float]
    appearance: tuple[float, float, float]

    @property
    def flat(self) -> Array:
        """(N,) index of each voxel in the flattened box."""
        i, j, k = self.voxels
        _, J, K = self.shape
        flat: Array = (i.astype(_index_type(self.shape)) * J + j) * K + k
        return flat


@dataclass(frozen=True, eq=False)
class Region:
    """The voxels of a volume that take part, within their box.

    Args:
        index: (N,) int32 or int64, in the flattened volume, ascending.
        voxels: (3, N) int16, within the box.
        shape: Of the box.
    """

    index: Array
    voxels: Array
    shape: Shape

    @classmethod
    def of(cls, mask: Array | None, shape: Shape) -> Region:
        """The region of a bool (I, J, K) mask; None: the whole volume."""
        sides = [np.arange(n) for n in shape]
        if mask is not None:
            sides = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        if not len(sides[0]):
            return cls(np.empty(0, np.int64), np.empty((3, 0), np.int16), (0, 0, 0))
        i, j, k = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
        box = (i.stop - i.start, j.stop - j.start, k.stop - k.start)
        inside = np.ones(box, bool) if mask is None else mask[i, j, k].astype(bool)
        from medseg.postprocess.dense.kernels import listed  # numba is slow to import

        index, voxels = listed(
            np.ascontiguousarray(inside),
            (i.start, j.start, k.start),
            shape,
            np.empty(inside.sum(), _index_type(shape)),
        )
        return cls(index, voxels, box)

    def take(self, volumes: Array) -> Array:
        """(X, I, J, K) volumes to (X, N) values."""
        taken: Array = volumes.reshape(len(volumes), -1).take(self.index, axis=1)
        return taken

    def put(self, volumes: Array, values: Array) -> None:
        """Write (X, N) values into contiguous (X, I, J, K) volumes."""
        flat = volumes.reshape(len(volumes), -1)
        for channel, row in zip(flat, values, strict=True):
            channel[self.index] = row


def _index_type(shape: Shape) -> type[np.signedinteger[Any]]:
    """What holds an index of a flattened volume; half the memory if half will do."""
    return np.int32 if math.prod(shape) < 2**31 else np.int64


def log_odds(logits: Array) -> Array:
    """(C, N) logits to (C - 1, N) log-odds against the first class, bounded as by `FLOOR`."""
    shifted = logits - logits.max(0)
    shifted -= np.log(np.exp(shifted).sum(0))
    np.maximum(shifted, np.float32(np.log(FLOOR)), out=shifted)
    odds: Array = shifted[1:] - shifted[0]
    return odds


def marginals(odds: Array) -> Array:
    """(C - 1, N) log-odds to (C, N) probabilities."""
    logits = np.concatenate([np.zeros_like(odds[:1]), odds])
    logits -= logits.max(0)
    np.exp(logits, out=logits)
    logits /= logits.sum(0)
    return logits

"""Which patch is the n-th of a training: a pure function of the seed and n.

No generator lives from one patch to the next, so that a resumed run, and any number of workers,
sees the very same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medseg.volumes.image import Array

Start = tuple[int, int, int]
_ORDER, _PATCH = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn.

    Args:
        patch: Voxels (i, j, k).
        foreground: Share of patches placed on a voxel of a class, the class drawn evenly.
        seed: All draws come from it.
    """

    patch: tuple[int, int, int]
    foreground: float
    seed: int

    def case(self, n: int, cases: int) -> int:
        """The case of the n-th patch: each once an epoch, in a new order."""
        epoch, position = divmod(n, cases)
        return int(_order(self.seed, epoch, cases)[position])

    def generator(self, n: int) -> np.random.Generator:
        """The random numbers of the n-th patch."""
        return np.random.default_rng([self.seed, _PATCH, n])

    def start(self, rng: np.random.Generator, shape: Sequence[int], voxels: Array) -> Start:
        """The first voxel of a patch; negative or overhanging where the volume is smaller.

        Args:
            rng: Of this patch.
            shape: Voxels of the volume (I, J, K).
            voxels: (V, 2) class and flat index of some voxels of each class.
        """
        if rng.random() < self.foreground and len(voxels):
            chosen = rng.choice(np.unique(voxels[:, 0]))
            index = rng.choice(voxels[voxels[:, 0] == chosen, 1])
            centre = np.unravel_index(int(index), tuple(shape))
            wanted = [
                int(c - rng.integers(p // 4, min(p - p // 4 + 1, p)))
                for c, p in zip(centre, self.patch, strict=True)
            ]
        else:
            wanted = [
                int(rng.integers(0, max(n - p, 0) + 1))
                for n, p in zip(shape, self.patch, strict=True)
            ]
        i, j, k = (
            min(max(w, 0), n - p) if n >= p else (n - p) // 2
            for w, n, p in zip(wanted, shape, self.patch, strict=True)
        )
        return i, j, k


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, cases: int) -> Array:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(cases)


def cut(volume: Array, start: Start, patch: Sequence[int], *, edge: bool) -> Array:
    """Cut a patch out of (..., I, J, K); what overhangs repeats the edge, or is 0."""
    kept = tuple(
        slice(max(s, 0), min(s + p, n))
        for s, p, n in zip(start, patch, volume.shape[-3:], strict=True)
    )
    inner = np.asarray(volume[..., kept[0], kept[1], kept[2]])
    missing = [
        (max(-s, 0), max(s + p - n, 0))
        for s, p, n in zip(start, patch, volume.shape[-3:], strict=True)
    ]
    if not any(map(any, missing)):
        return inner
    pads = [(0, 0)] * (volume.ndim - 3) + missing
    return np.pad(inner, pads, mode="edge" if edge else "constant")

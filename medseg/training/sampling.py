"""Which patch is the n-th of a training: a pure function of the seed and n.

No generator lives from one patch to the next, so that a resumed run, and any number of workers,
sees the very same patches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medseg.errors import MedsegError, PluginError
from medseg.training.samplers import Site, Start
from medseg.volumes.image import Array

Sampler = Callable[[np.random.Generator, Site], Start]
_ORDER, _PATCH, _SPREAD = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn.

    Args:
        patch: Voxels (i, j, k).
        seed: All draws come from it.
        margin: Voxels of context around the patch that the image has and the label has not.
        roi: Whether to sample in the region of interest.
    """

    patch: tuple[int, int, int]
    seed: int
    margin: tuple[int, int, int] = (0, 0, 0)
    roi: bool = False

    def case(self, n: int, cases: int) -> int:
        """The case of the n-th patch: each once an epoch, in a new order."""
        epoch, position = divmod(n, cases)
        return int(_order(self.seed, epoch, cases)[position])

    def generator(self, n: int) -> np.random.Generator:
        """The random numbers of the n-th patch."""
        return np.random.default_rng([self.seed, _PATCH, n])

    def start(self, sampler: Sampler, rng: np.random.Generator, site: Site) -> Start:
        """The first voxel of a patch; negative or overhanging where the volume is smaller.

        Raises:
            PluginError: The sampler gave something else than three whole numbers, or failed.
        """
        name = type(sampler).__name__
        try:
            wanted = [operator.index(at) for at in sampler(rng, site)]
        except MedsegError:
            raise
        except Exception as error:
            raise PluginError(f"sampler {name} failed: {error!r}") from error
        if len(wanted) != 3:
            raise PluginError(
                f"sampler {name} gave {wanted}; expected a patch's first voxel (i, j, k)"
            )
        i, j, k = (
            min(max(w, 0), n - p) if n >= p else (n - p) // 2
            for w, n, p in zip(wanted, site.shape, self.patch, strict=True)
        )
        return i, j, k

    def grown(self, start: Start) -> tuple[Start, tuple[int, int, int]]:
        """The first voxel and the size of a patch with its margin."""
        i, j, k = (s - m for s, m in zip(start, self.margin, strict=True))
        a, b, c = (p + 2 * m for p, m in zip(self.patch, self.margin, strict=True))
        return (i, j, k), (a, b, c)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, cases: int) -> Array:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(cases)


def cut(volume: Array, start: Start, patch: Sequence[int], *, edge: bool) -> Array:
    """Cut a patch out of (..., I, J, K); what overhangs repeats the edge, or is 0.

    A patch within the volume is a view of it.
    """
    sizes = list(zip(start, patch, volume.shape[-3:], strict=True))
    if all(s >= 0 and s + p <= n for s, p, n in sizes):
        i, j, k = (slice(s, s + p) for s, p, _ in sizes)
        view: Array = volume[..., i, j, k]
        return view
    out = np.empty((*volume.shape[:-3], *patch), volume.dtype)
    copy_patch(out, volume, start, edge=edge)
    return out


def copy_patch(out: Array, volume: Array, start: Start, *, edge: bool) -> None:
    """As `cut`, into an array (..., i, j, k)."""
    sizes = list(zip(start, out.shape[-3:], volume.shape[-3:], strict=True))
    i, j, k = (slice(max(s, 0), min(s + p, n)) for s, p, n in sizes)
    a, b, c = (slice(max(-s, 0), min(p, n - s)) for s, p, n in sizes)
    out[..., a, b, c] = volume[..., i, j, k]
    for rows, kept, axis in ((out[..., a, b, :], c, -1), (out[..., a, :, :], b, -2), (out, a, -3)):
        if kept.start > 0 or kept.stop < out.shape[axis]:
            along = np.moveaxis(rows, axis, 0)
            along[: kept.start] = along[kept.start] if edge else 0
            along[kept.stop :] = along[kept.stop - 1] if edge else 0


def spread(weights: Array, most: int) -> Array:
    """Flat indices of voxels, each as often as its weight asks.

    One is drawn from each of `most` strata of equal weight, by a generator of its own, so that the
    same come each time; at even steps they would fall into the rhythm of the volume's rows.

    Args:
        weights: At least 0, not all 0; any shape. Of a mask, all its voxels come as often.
        most: How many indices; of a mask no more than it has voxels.
    """
    places = np.flatnonzero(weights)
    if weights.dtype == bool and len(places) <= most:
        return places
    ticks = (np.arange(most) + np.random.default_rng(_SPREAD).random(most)) / most
    if weights.dtype == bool:
        evenly: Array = places[(ticks * len(places)).astype(np.int64)]
        return evenly
    mass = np.cumsum(weights.ravel()[places], dtype=np.float64)
    picked: Array = places[np.searchsorted(mass, ticks * mass[-1], side="right")]
    return picked

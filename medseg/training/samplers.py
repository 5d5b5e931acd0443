"""Where in a case a training patch lies: components of `train.sampler`.

A sampler maps a seeded generator and a `Site` to the wanted first voxel of a patch; `Sampling`
moves it into the volume where the volume is large enough. With `train.roi`, what would lie anywhere
is centred on a voxel of the region of interest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from medseg.errors import ConfigError
from medseg.inference.boxes import starts
from medseg.registry import SAMPLERS
from medseg.volumes.image import Array

Start = tuple[int, int, int]
_TRIES = 100  # for a background voxel; where nearly all is lesion, a lesion voxel will do


@dataclass(frozen=True, eq=False)
class Site:
    """What a sampler sees of a case.

    Args:
        shape: Voxels of the volume (I, J, K).
        patch: Voxels of the patch (i, j, k).
        voxels: (V, 2) class and flat index of some voxels of each foreground class, sorted by
            class.
        label: (I, J, K) class indices.
        inside: Flat indices of some voxels of the region of interest; None: everywhere.
        weighted: Flat indices of voxels, as often as a weight map has them; None: no map.
        turn: How many patches the case has given before.
    """

    shape: Sequence[int]
    patch: Sequence[int]
    voxels: Array
    label: Array
    inside: Array | None = None
    weighted: Array | None = None
    turn: int = 0

    def by_class(self) -> Mapping[int, Array]:
        """Flat indices of some voxels of each foreground class that the case has."""
        column, at = self.voxels[:, 0], 0
        found: dict[int, Array] = {}
        while at < len(column):
            end = bisect_right(column, column[at], at)
            found[int(column[at])] = self.voxels[at:end, 1]
            at = end
        return found

    def anywhere(self, rng: np.random.Generator) -> Start:
        """A patch anywhere in the volume, or centred anywhere in the region of interest."""
        if self.inside is not None:
            return self.centred(rng.choice(self.inside))
        i, j, k = (
            int(rng.integers(0, max(n - p, 0) + 1))
            for n, p in zip(self.shape, self.patch, strict=True)
        )
        return i, j, k

    def around(self, voxel: int, rng: np.random.Generator) -> Start:
        """A patch that has a voxel in its inner half, or nearly so."""
        i, j, k = (
            int(c - rng.integers(p // 4, min(p - p // 4 + 1, p)))
            for c, p in zip(self._place(voxel), self.patch, strict=True)
        )
        return i, j, k

    def centred(self, voxel: int) -> Start:
        """The patch whose middle is a voxel."""
        i, j, k = (c - p // 2 for c, p in zip(self._place(voxel), self.patch, strict=True))
        return i, j, k

    def background(self, rng: np.random.Generator) -> int:
        """A voxel of the background, in the region of interest."""
        flat, voxel = self.label.reshape(-1), 0
        for _ in range(_TRIES):
            here = self.inside
            voxel = int(rng.integers(flat.size) if here is None else rng.choice(here))
            if flat[voxel] == 0:
                break
        return voxel

    def _place(self, voxel: int) -> Sequence[int]:
        return [int(c) for c in np.unravel_index(int(voxel), tuple(self.shape))]


@SAMPLERS.register("uniform")
class Uniform:
    """Patches anywhere."""

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:
        """Return the wanted first voxel."""
        return site.anywhere(rng)


@SAMPLERS.register("balanced")
class Balanced:
    """A share of patches around a voxel of a class, each class as often; the rest anywhere.

    A class that a case lacks leaves its part to the others; a case without any is sampled anywhere.

    Args:
        foreground: Share of patches around a voxel of a class.
    """

    def __init__(self, foreground: float = 0.5) -> None:
        _check_share("foreground", foreground)
        self.foreground = foreground

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:
        """Return the wanted first voxel."""
        if rng.random() < self.foreground and len(site.voxels):
            places = site.by_class()
            return site.around(rng.choice(places[int(rng.choice(list(places)))]), rng)
        return site.anywhere(rng)


@SAMPLERS.register("lesion")
class Lesion:
    """Patches centred on lesion, of whatever class, and on background, in a fixed ratio.

    DeepMedic's scheme (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004, section 2.3). A
    case without lesion gives background only.

    Args:
        share: Share of patches centred on a lesion voxel.
    """

    def __init__(self, share: float = 0.5) -> None:
        _check_share("share", share)
        self.share = share

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:
        """Return the wanted first voxel."""
        if rng.random() < self.share and len(site.voxels):
            return site.centred(rng.choice(site.voxels[:, 1]))
        return site.centred(site.background(rng))


@SAMPLERS.register("per_class")
class PerClass:
    """Patches centred on voxels of each class, background included, in given proportions.

    A class that a case lacks leaves its part to the others, in their proportions.

    Args:
        weights: One for each class, background first; null: all as often.
    """

    def __init__(self, classes: int, weights: tuple[float, ...] | None = None) -> None:
        weights = (1.0,) * classes if weights is None else weights
        if len(weights) != classes:
            raise ValueError(
                f"weights needs {classes} values, background first, got {len(weights)}"
            )
        if min(weights) < 0 or not sum(weights):
            raise ValueError(f"weights must be at least 0 and not all 0, got {list(weights)}")
        self.weights = np.asarray(weights)

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:
        """Return the wanted first voxel."""
        places = site.by_class()
        there = np.array([0, *places])
        shares = self.weights[there]
        if not shares.any():  # the case has none of the classes that are wanted
            return site.anywhere(rng)
        chosen = int(rng.choice(there, p=shares / shares.sum()))
        if chosen == 0:
            return site.centred(site.background(rng))
        return site.centred(rng.choice(places[chosen]))


@SAMPLERS.register("weighted")
class Weighted:
    """Patches centred on voxels as often as a map of weights says (`data.weights`)."""

    needs_weights: ClassVar[bool] = True

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:
        """Return the wanted first voxel."""
        if site.weighted is None:
            raise ConfigError("the sampler 'weighted' needs data.weights, a map for each case")
        return site.centred(rng.choice(site.weighted))


@SAMPLERS.register("grid")
class Grid:
    """Patches at regular places: each place of a case once, in a mixed order, before any again.

    Args:
        overlap: Overlap of neighbours, as a share of the patch.
    """

    def __init__(self, overlap: float = 0.0) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}")
        self.overlap = overlap

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:  # noqa: ARG002
        """Return the wanted first voxel."""
        sizes = zip(site.shape, site.patch, strict=True)
        places = list(product(*(starts(n, p, self.overlap) for n, p in sizes)))
        order = np.random.default_rng(len(places)).permutation(len(places))
        i, j, k = places[order[site.turn % len(places)]]
        return i, j, k


@SAMPLERS.register("resize")
class Resize:
    """The whole volume, resized to the patch: for small inputs and coarse tasks.

    Predict with `inference.mode: resize`. (NiftyNet: Gibson et al. 2018,
    doi:10.1016/j.cmpb.2018.01.025.)
    """

    resizes: ClassVar[bool] = True

    def __call__(self, rng: np.random.Generator, site: Site) -> Start:  # noqa: ARG002
        """Return the first voxel of all."""
        return 0, 0, 0


def _check_share(option: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{option} must be from 0 to 1, got {share}")

"""Which filters stand for the kernels, what they would take, and who runs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseg.errors import ConfigError, DataError
from medseg.postprocess.dense import brute
from medseg.postprocess.dense.plan import cells, most_values, plan, strips
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings
from medseg.volumes.image import Array

if TYPE_CHECKING:  # numba and torch are imported by whoever needs them
    from medseg.postprocess.dense.lattice import Lattice
    from medseg.postprocess.dense.mean_field import Filter, Pairwise

Way = Literal["grid", "lattice"]
_GRID_MODALITIES = 3
_TORCH_COPIES = 3  # of a grid's cells while it is blurred
_MOST_CELLS = 1 << 27  # of a grid of three modalities: beyond, a lattice is faster
_GIB = 1 << 30


def choose(problem: Problem, settings: Settings, memory_gib: float, torch: bool = False) -> Way:
    """The way that fits: a dense grid where memory allows, else a lattice.

    Args:
        problem: The voxels.
        settings: The pairwise part.
        memory_gib: What may be taken.
        torch: Whether torch runs it, which takes all classes of a grid at once.

    Raises:
        DataError: Neither fits; no filter has been built yet.
    """
    modalities, voxels = problem.intensities.shape
    classes = len(problem.odds)
    size = cells(problem, settings.width) if settings.weights[1] else ()
    state = voxels * (64 + 8 * modalities + 56 * classes) + _held(
        (*problem.shape[:2], 1, problem.shape[2]), classes > 1
    )
    needs: dict[Way, int] = {}
    if modalities <= _GRID_MODALITIES - (math.prod(size) > _MOST_CELLS) or not size:
        grid = _held(size, classes > 1) + voxels * (8 * modalities + 16) if size else 0
        needs["grid"] = state + len(settings.shifts) * grid
        if torch and size:
            needs["grid"] += _TORCH_COPIES * 4 * math.prod(size) * classes
    if modalities >= _GRID_MODALITIES and size:
        from medseg.postprocess.dense.lattice import lattice_bytes

        needs["lattice"] = state + lattice_bytes(voxels, 3 + modalities)
    for way, need in needs.items():
        if need <= memory_gib * _GIB:
            return way
    raise DataError(
        "CRF",
        f"would take {min(needs.values()) / _GIB:.3g} GiB beside its input, but memory_gib is "
        f"{memory_gib:g}: allow more, cut outliers of the image, or take larger deviations, a "
        "smaller roi, fewer modalities",
    )


def _held(size: Sequence[int], several: bool) -> int:
    """Bytes of planes: spatial cells, then columns and, of more modalities, rows and planes."""
    columns, rows, *more = (*size[3:], 1, 1)
    cells_ = math.prod(size[:3]) * strips(rows, columns)[1] * columns * math.prod(more)
    return 4 * most_values(cells_, several) + (1 << 16)


def checked_device(name: str) -> str:
    """The name of a device of torch that is there.

    Raises:
        ConfigError: It is not.
    """
    import torch

    try:
        torch.empty(1, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name}: {str(error).splitlines()[0]}", ("device",)) from error
    return name


def pairwise(problem: Problem, settings: Settings, way: Way) -> Pairwise:
    """Build the kernels for numba."""
    from medseg.postprocess.dense.gaussian import Gaussian
    from medseg.postprocess.dense.grid import Grid
    from medseg.postprocess.dense.mean_field import Pairwise

    spatial, appearance = settings.weights
    several = len(problem.odds) > 1
    kernels: list[tuple[float, Sequence[Filter]]] = []
    if spatial:
        kernels.append((spatial, [Gaussian(problem, several)]))
    if appearance and way == "lattice":
        kernels.append((appearance, [_Everywhere(lattice(problem))]))
    elif appearance:
        plans = [plan(problem, settings.width, shift) for shift in settings.shifts]
        kernels.append((appearance, [Grid(problem, laid, several) for laid in plans]))
    return Pairwise(kernels, problem.voxels.shape[1], settings.threads)


def run(problem: Problem, settings: Settings, way: Way, device: str | None) -> Array:
    """Run mean field: (C, N) float32 marginals.

    Args:
        problem: The voxels.
        settings: The pairwise part.
        way: What stands for the appearance kernel.
        device: Of torch; None: numba.
    """
    if device is None:
        from medseg.postprocess.dense.mean_field import mean_field

        return mean_field(problem.odds, pairwise(problem, settings, way), settings)
    import torch

    from medseg.postprocess.dense import torch_field

    found: Array = torch_field.mean_field(problem, settings, torch.device(device), way)
    return found


def exact(problem: Problem, settings: Settings) -> Array:
    """Run mean field over all pairs of voxels.

    Raises:
        DataError: There are too many.
    """
    voxels = problem.voxels.shape[1]
    if voxels > brute.MOST_VOXELS:
        raise DataError(
            "CRF",
            f"accuracy exact compares all pairs: at most {brute.MOST_VOXELS:,} voxels, got "
            f"{voxels:,}; take high, or a smaller roi",
        )
    return brute.mean_field(
        problem, settings.weights, settings.compatibility, settings.iterations,
        settings.exclude_self,
    )  # fmt: skip


def lattice(problem: Problem) -> Lattice:
    """A permutohedral lattice of the appearance kernel."""
    from medseg.postprocess.dense.lattice import Lattice

    places = problem.voxels / np.asarray(problem.appearance, np.float32)[:, None]
    return Lattice(np.concatenate([places.astype(np.float32), problem.intensities]))


class _Everywhere:
    """A filter of all voxels to all voxels, for some of them."""

    lanes = 1

    def __init__(self, lattice: Lattice) -> None:
        self._lattice = lattice

    def filter(self, values: Array, sources: Array, targets: Array) -> Array:
        spread = np.zeros(len(self._lattice.vertices), np.float32)
        spread[sources] = values[:, 0]
        found: Array = self._lattice.filter(spread)[targets]
        return found[:, None]

    def diagonal(self) -> Array:
        return self._lattice.diagonal

"""Depth, steps, kernels and patch: what a network of some size looks like on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, prod

from medseg.planning import rules
from medseg.planning.choice import Choice, Choices, by
from medseg.planning.fingerprint import Fingerprint, Triple
from medseg.planning.grid import Grid
from medseg.planning.rules import Size

Whole = tuple[int, int, int]
_HALVINGS = 60  # of the interval in which the edge of a patch is sought


@dataclass(frozen=True)
class Shape:
    """A network's levels and the patch that it is trained on.

    Args:
        size: Widths and limits.
        strides: Step into each level, per axis.
        kernels: Kernel of each level, per axis.
        patch: Voxels.
    """

    size: Size
    strides: tuple[Whole, ...]
    kernels: tuple[Whole, ...]
    patch: Whole

    @property
    def voxels(self) -> int:
        """Of the patch."""
        return prod(self.patch)


def shape(grid: Grid, size: Size, voxels: float | None = None) -> Shape:
    """The levels and the patch of a network of some size.

    Args:
        grid: Of the data.
        size: Of the network.
        voxels: That a patch may have at most; None: as the size says.
    """
    wanted = _box(grid, size.voxels if voxels is None else voxels)
    strides, kernels = _levels(wanted, grid.spacing, size)
    divisor = [prod(steps) for steps in zip(*strides, strict=True)]
    i, j, k = (_fitting(length, step) for length, step in zip(wanted, divisor, strict=True))
    return Shape(size, strides, kernels, (i, j, k))


def choices(shape: Shape, grid: Grid, batch: int) -> Choices:
    """What a shape says for `model` and for the patch."""
    levels = len(shape.strides)
    total = [prod(steps) for steps in zip(*shape.strides, strict=True)]
    coarsest = tuple(n / step for n, step in zip(shape.patch, total, strict=True))
    size = shape.size
    widths = f"the {size.name} network ({size.source})"
    steps = (
        f"{levels} levels: the coarsest map of a patch is {by(coarsest)} voxels, and would be "
        f"below {rules.LEAST_MAP} with one more"
    )
    if levels == len(size.widths):
        steps = (
            f"as deep as the {size.name} network goes: the coarsest map is {by(coarsest)} voxels"
        )
    made: Choices = {
        "model.encoder.name": Choice("resnet"),
        "model.encoder.widths": Choice(list(size.widths[:levels]), widths),
        "model.encoder.strides": Choice(_lists(shape.strides), steps + _halved(size)),
        "model.decoder.name": Choice("unet"),
    }
    if any(1 in kernel for kernel in shape.kernels):
        why = (
            f"1 long where an axis is {rules.COARSE:g} times coarser than the finest or more "
            f"({by(grid.spacing)} mm); nothing is halved there until the others have caught up"
        )
        made["model.encoder.kernels"] = Choice(_lists(shape.kernels), why)
        made["model.decoder.kernels"] = Choice(_lists(shape.kernels[:-1]))
    supervised = max(0, min(rules.MOST_SUPERVISED, levels - 2))
    made["model.deep_supervision"] = Choice(
        supervised,
        f"{levels} levels leave {max(0, levels - 2)} between the finest and the coarsest",
    )
    made["train.patch"] = Choice(list(shape.patch), _patch_why(shape, grid, total))
    made["train.batch"] = Choice(batch, _batch_why(shape, batch))
    return made


def batch_for(shape: Shape) -> int:
    """Patches of a step: more of them where they are small."""
    return min(rules.MOST_BATCH, max(rules.BATCH, floor(rules.LEAST_STEP / shape.voxels)))


def sizes_for(fingerprint: Fingerprint, grid: Grid) -> tuple[tuple[Size, ...], str]:
    """Sizes of networks to consider, the cheapest first, and what the lesions say to that."""
    voxel = prod(grid.spacing)
    across = min(
        (6 / 3.1416 * found.mean_mm3 / voxel) ** (1 / 3) for found in fingerprint.classes
    )  # of balls of the same volume
    told = f"the mean lesion of the smallest class is {across:.1f} voxels across"
    if across < rules.LEAST_ACROSS:
        return (rules.SMALL, rules.FINE, rules.LARGE), told
    return rules.SIZES, told


def _box(grid: Grid, voxels: float) -> Triple:
    """The volume, cut to a cube in mm where it has too many voxels."""
    low, high = 0.0, max(n * mm for n, mm in zip(grid.size, grid.spacing, strict=True))
    if prod(grid.size) <= voxels:
        return grid.size
    for _ in range(_HALVINGS):
        edge = (low + high) / 2
        low, high = (edge, high) if prod(_cube(grid, edge)) <= voxels else (low, edge)
    return _cube(grid, low)


def _cube(grid: Grid, edge: float) -> Triple:
    i, j, k = (min(n, edge / mm) for n, mm in zip(grid.size, grid.spacing, strict=True))
    return i, j, k


def _levels(
    wanted: Triple, spacing: Triple, size: Size
) -> tuple[tuple[Whole, ...], tuple[Whole, ...]]:
    """Steps and kernels: an axis is halved while it is long enough and no coarser than others."""
    now, mm = list(wanted), list(spacing)
    strides: list[Whole] = []
    kernels: list[Whole] = []
    deep = [False] * 3  # whether an axis has been convolved: it goes on being
    for level in range(len(size.widths)):
        stride = _step(now, mm) if level or size.halves_first else (1, 1, 1)
        if level and prod(stride) == 1:
            break
        now = [n / step for n, step in zip(now, stride, strict=True)]
        mm = [m * step for m, step in zip(mm, stride, strict=True)]
        deep = [
            was or step > 1 or m < rules.COARSE * min(mm)
            for was, step, m in zip(deep, stride, mm, strict=True)
        ]
        i, j, k = (3 if is_deep else 1 for is_deep in deep)
        strides.append(stride)
        kernels.append((i, j, k))
    return tuple(strides), tuple(kernels)


def _step(now: list[float], mm: list[float]) -> Whole:
    long = [n / 2 >= rules.LEAST_MAP for n in now]
    finest = min((m for m, is_long in zip(mm, long, strict=True) if is_long), default=0.0)
    i, j, k = (
        2 if is_long and m < rules.COARSE * finest else 1
        for m, is_long in zip(mm, long, strict=True)
    )
    return i, j, k


def _fitting(length: float, step: int) -> int:
    """The multiple of a step that a patch has along an axis: below the length, if it is near."""
    below = floor(length / step + 1e-6) * step
    return below if below >= (1 - rules.CUT) * length else ceil(length / step) * step


def _lists(triples: tuple[Whole, ...]) -> list[list[int]]:
    return [list(triple) for triple in triples]


def _halved(size: Size) -> str:
    if not size.halves_first:
        return ""
    return "; the first convolution halves the grid, an eighth of the work"


def _patch_why(shape: Shape, grid: Grid, total: list[int]) -> str:
    median = by(tuple(round(n) for n in grid.size))
    told = f"the median volume is {median} voxels on this grid"
    if prod(grid.size) > shape.size.voxels:
        told += f"; a cube in mm of at most {shape.size.voxels:,} voxels"
    return f"{told}; multiples of {by(tuple(total))}, as the network's steps ask"


def _batch_why(shape: Shape, batch: int) -> str:
    if batch > rules.BATCH:
        return f"patches of {shape.voxels:,} voxels are small: so many see {rules.LEAST_STEP:,}"
    return f"{batch} patches of {shape.voxels:,} voxels: more steps learn more than larger ones"

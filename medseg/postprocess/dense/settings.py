"""How mean field is run: what all engines take."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.volumes.image import Array


@dataclass(frozen=True, eq=False)
class Settings:
    """The pairwise part of a CRF and how far to go with it.

    Args:
        weights: Of the spatial and of the appearance kernel.
        iterations: Updates, of all voxels at once.
        compatibility: (C, C) cost of two labels beside each other; None: Potts.
        exclude_self: Whether a voxel's own marginal is left out of its message.
        width: Cells of a bilateral grid, in standard deviations.
        shifts: The grids that are averaged: where each starts, in cells.
        tolerance: Marginals that moved less are not sent again; 0: all are, every time.
        threads: For the parts that may run side by side.
    """

    weights: tuple[float, float]
    iterations: int
    compatibility: Array | None = None
    exclude_self: bool = False
    width: float = 1.0
    shifts: tuple[float, ...] = (0.0, 0.5)
    tolerance: float = 1e-3
    threads: int = 2

"""A volume as it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Image:
    """One volume in memory, with where it lies in the patient.

    Args:
        data: Voxels (I, J, K), or (C, I, J, K) when a 4D file was asked for.
        affine: (4, 4), voxel index (i, j, k) to RAS+ millimetres.
        header: The file's raw NIfTI header, from which an output's geometry is copied.
        path: The file it came from; for messages.
        notes: What was odd but accepted, with figures; each was also a warning.
    """

    data: Array
    affine: Affine
    header: Any
    path: Path
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (i, j, k)."""
        i, j, k = self.data.shape[-3:]
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along (i, j, k)."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return i, j, k

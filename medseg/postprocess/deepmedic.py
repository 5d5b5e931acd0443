"""DeepMedic's parameters of its CRF, turned into ours.

Its CRF (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004, section 2.4; program dense3dCrf)
takes standard deviations in voxels, and intensities cut to a range that is then spread over 0 to
254. Its example cuts at -3.1 and 3.1 standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg.errors import ConfigError

_LEVELS = 254.0
RANGE = (-3.1, 3.1)
"""Where the example of dense3dCrf cuts normalised intensities."""

Voxels = tuple[float, float, float]

PRESETS: dict[str, dict[str, Any]] = {
    "deepmedic_example": {
        "positions": (3.0, 3.0, 3.0),
        "bilateral": (17.0, 12.0, 10.0),
        "intensities": (4.5, 3.5),
        "weights": (3.0, 5.0),
        "iterations": 2,
    },
    "deepmedic_default": {
        "positions": (3.0, 3.0, 3.0),
        "bilateral": (5.0, 5.0, 5.0),
        "intensities": 3.0,
        "weights": (3.0, 5.0),
        "iterations": 5,
    },
}
"""The example of its README (Flair and T1c), and what its code falls back to."""


def from_deepmedic(
    positions: Voxels,
    bilateral: Voxels,
    intensities: float | Sequence[float],
    weights: tuple[float, float],
    iterations: int,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    intensity_range: tuple[float, float] = RANGE,
) -> dict[str, Any]:
    """Convert parameters of dense3dCrf into those of `DenseCRF3D`, exactly.

    Args:
        positions: Standard deviations of the smoothness kernel, in voxels.
        bilateral: Those of the positions in the appearance kernel, in voxels.
        intensities: Those of its intensities, of 254; one, or one for each modality.
        weights: Of the smoothness and of the appearance kernel.
        iterations: Of mean field.
        spacing: Voxel size in mm of the volumes that they were chosen for.
        intensity_range: The normalised intensities that became 0 and 254; cut yours there too.

    Returns:
        Keyword arguments of `DenseCRF3D`, for intensities in units of `intensity_range`.

    Raises:
        ConfigError: The range is empty.
    """
    low, high = intensity_range
    if not low < high:
        raise ConfigError(f"intensity_range must rise, got {intensity_range}", ("intensity_range",))
    level = (high - low) / _LEVELS
    steps = np.atleast_1d(np.asarray(intensities, np.float64)).tolist()
    deviations = tuple(n * level for n in steps)
    return {
        "spatial_mm": tuple(n * mm for n, mm in zip(positions, spacing, strict=True)),
        "appearance_mm": tuple(n * mm for n, mm in zip(bilateral, spacing, strict=True)),
        "appearance_intensity": deviations,
        "weights": weights,
        "iterations": iterations,
    }


def preset(name: str, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    """The arguments of `DenseCRF3D` for a published setting.

    Args:
        name: "deepmedic_example" or "deepmedic_default".
        spacing: Voxel size in mm of the volumes that it was chosen for; BraTS has 1 mm.

    Raises:
        ConfigError: There is no such setting.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}", ("preset",))
    return from_deepmedic(**PRESETS[name], spacing=spacing)

"""Distances between the surfaces of two masks, in mm.

A surface voxel is a voxel of the mask with a face neighbour outside it; what lies beyond the volume
counts as outside. Distances run between the centres of surface voxels. This is the convention of
MONAI (`get_mask_edges` without subvoxels), so that numbers can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]
Spacing = tuple[float, float, float]

ROUNDING_MM = 1e-6  # a distance of 10 steps of 0.1 mm must pass a tolerance of 1 mm


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far each surface voxel of one mask lies from the nearest surface voxel of the other.

    Args:
        to_truth: (P,), from each of the prediction's surface voxels, in mm.
        to_prediction: (T,), from each of the truth's surface voxels, in mm.
    """

    to_truth: Distances
    to_prediction: Distances

    def hausdorff(self, percentile: float) -> float:
        """The larger of the two directed percentiles, in mm.

        This is MONAI's definition and, but for the weights of surface elements, that of DeepMind's
        surface-distance (Nikolov et al. 2021, doi:10.2196/26151). Others take the percentile of
        both sets together, which lets a large well-drawn surface hide a small ill-drawn one.
        """
        directed = (np.percentile(d, percentile) for d in (self.to_truth, self.to_prediction))
        return float(max(directed))

    def average(self) -> float:
        """ASSD: the mean over the surface voxels of both masks, in mm."""
        return float(np.concatenate((self.to_truth, self.to_prediction)).mean())

    def within(self, tolerance_mm: float) -> float:
        """NSD: the share of all surface voxels no farther than the tolerance, in mm.

        Nikolov et al. 2021, doi:10.2196/26151, each voxel counted once as in Seidlitz et al. 2022,
        arXiv:2111.05408.
        """
        distances = np.concatenate((self.to_truth, self.to_prediction))
        return float((distances <= tolerance_mm + ROUNDING_MM).mean())


def surface_distances(prediction: Mask, truth: Mask, spacing: Spacing) -> SurfaceDistances:
    """Measure all surface distances of two masks, neither of them empty.

    A k-d tree of the surface voxels instead of a distance transform of the volume: its cost follows
    the surfaces, so one stray voxel in a far corner does not multiply it.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        spacing: Voxel size in mm, (i, j, k).
    """
    here, there = surface_points(prediction, spacing), surface_points(truth, spacing)
    return SurfaceDistances(KDTree(there).query(here)[0], KDTree(here).query(there)[0])


def surface_points(mask: Mask, spacing: Spacing) -> npt.NDArray[np.float64]:
    """The places (N, 3) of a mask's surface voxels, in mm from voxel (0, 0, 0)."""
    surface = mask & ~ndimage.binary_erosion(mask)
    return np.argwhere(surface).astype(np.float64) @ np.diag(spacing)

"""Exact Euclidean distances of a batch of masks: by scipy on a CPU, by torch on other devices."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

VoxelSize = tuple[float, float, float]


@torch.no_grad()
def distances(masks: Tensor, known: Tensor, voxel: VoxelSize) -> tuple[Tensor, Tensor]:
    """For each voxel inside, how far the outside is, and the other way round; else 0.

    Distances are between voxel centres, and an unknown voxel is neither inside nor outside. Both
    are 0 where a mask has no inside or no outside.

    Args:
        masks: (N, parts, I, J, K), 0 or 1; 0 at unknown voxels.
        known: (N, 1, I, J, K).
        voxel: Edges of a voxel (i, j, k), in any unit.
    """
    inside = masks.bool()
    outside = ~inside & known
    both = torch.stack([outside, inside])  # where to, from the other
    measure = _by_scipy if masks.device.type == "cpu" else by_torch
    exists = both.flatten(3).any(-1).all(0)[..., None, None, None]
    found = measure(both, voxel)
    to_outside, to_inside = found.where(exists & both.flip(0), 0.0)
    return to_outside, to_inside


def _by_scipy(goals: Tensor, voxel: VoxelSize) -> Tensor:
    shape = goals.shape
    found = np.zeros((shape[:-3].numel(), *shape[-3:]), np.float32)
    for mask, distance in zip(goals.flatten(0, -4).numpy(), found, strict=True):
        if mask.any():
            distance[...] = ndimage.distance_transform_edt(~mask, sampling=voxel)
    return torch.from_numpy(found).view(shape)


def by_torch(goals: Tensor, voxel: VoxelSize) -> Tensor:
    """The distance of each voxel to the nearest one of the goal, infinite where there is none.

    Axis by axis the least of squared distance so far plus squared step (Saito and Toriwaki 1994,
    doi:10.1016/0031-3203(94)90133-3), all masks at once and without a word to the host.

    Args:
        goals: (..., I, J, K), boolean.
        voxel: Edges of a voxel (i, j, k), in any unit.
    """
    squared = torch.zeros(goals.shape, device=goals.device).masked_fill(~goals, torch.inf)
    for axis, edge in zip((-3, -2, -1), voxel, strict=True):
        lines = squared.movedim(axis, 0).contiguous()
        least = lines.clone()
        for step in range(1, len(lines)):
            further = (step * edge) ** 2
            torch.minimum(least[step:], lines[:-step] + further, out=least[step:])
            torch.minimum(least[:-step], lines[step:] + further, out=least[:-step])
        squared = least.movedim(0, axis)
    return squared.sqrt()

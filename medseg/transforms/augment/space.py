"""What a draw does to space: flips, rotation, scaling and elastic deformation in one resampling.

Rotation and scaling are one affine map about the centre, in millimetres, so that anisotropic
voxels are not sheared; flips are part of the same map. A deformation comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medseg.transforms.augment.drawing import Draw


def move(change: Draw, image: Tensor, label: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """The spatial part of a draw. What comes from outside repeats the border; its label is 0.

    Args:
        change: The draw.
        image: (N, C, I, J, K) float.
        label: (N, I, J, K) class indices.
        spacing: (N, 3) voxel size in mm.
    """
    is_resampled = change.is_moved | (change.elastic > 0)
    is_mirrored = (change.matrix.diagonal(dim1=1, dim2=2) < 0).any(1)
    if not bool((is_resampled | is_mirrored).any()):
        return image, label
    images, labels = torch.empty_like(image), torch.empty_like(label)
    rows = is_resampled.nonzero()[:, 0]
    if len(rows):
        grid = _grid(change, image.shape[2:], spacing, rows, image.device)
        rows = rows.to(image.device)
        images[rows], labels[rows] = _resampled(image[rows], label[rows], grid)
    for n in (~is_resampled).nonzero()[:, 0].tolist():
        axes = [axis for axis in range(3) if change.matrix[n, axis, axis] < 0]
        images[n] = image[n].flip([axis + 1 for axis in axes])  # exact: nothing is interpolated
        labels[n] = label[n].flip(axes)
    return images, labels


def _resampled(image: Tensor, label: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    moved = functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    nearest = functional.grid_sample(
        label[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, nearest[:, 0].to(label.dtype)


def _grid(
    change: Draw, shape: Sequence[int], spacing: Tensor, rows: Tensor, device: torch.device
) -> Tensor:
    """(M, I, J, K, 3) where `grid_sample` finds the voxels of M of the samples.

    It counts from -1 to 1 along each axis, and names the axes k, j, i.
    """
    size = torch.tensor(shape, dtype=torch.float32) * spacing.cpu().float()
    matrix = change.matrix * size[:, None, :] / size[:, :, None]
    theta = matrix[rows].flip(1, 2).to(device)
    grid = torch.zeros((), device=device)
    for axis, length in enumerate(shape):  # one term an axis: much faster than `affine_grid`
        places = (2 * torch.arange(length, device=device) + 1) / length - 1
        column = theta[:, None, None, None, :, 2 - axis]
        grid = grid + column * places.view([-1 if a == axis else 1 for a in range(3)] + [1])
    if bool((change.elastic > 0).any()):
        steps = size / change.elastic_grid
        points = _control_points(change, matrix, size, steps)[rows].to(device)
        weights = (
            _spline(steps[rows, axis], length, points.shape[axis + 2]).to(device)
            for axis, length in enumerate(shape)
        )
        grid = grid + torch.einsum("nxabc,nia,njb,nkc->nijkx", points, *weights)
    return grid


def _control_points(change: Draw, matrix: Tensor, size: Tensor, steps: Tensor) -> Tensor:
    """(N, 3, A, B, C) displacements of control points on the grid, axes k, j, i.

    Each is up to `change.elastic` mm along each axis. Cubic B-splines spread them, so that no voxel
    goes farther. A spline is linear: the affine map takes the few points instead of all voxels.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284.

    Args:
        change: The draw.
        matrix: (N, 3, 3) affine map in units of the patch.
        size: (N, 3) size of the patch in mm.
        steps: (N, 3) the same in distances of control points.
    """
    counts = [int(n) + 4 for n in steps.amax(0)]  # a spline reaches two points to either side
    generator = torch.Generator().manual_seed(change.elastic_seed)
    points = torch.rand(len(size), 3, *counts, generator=generator) * 2 - 1
    reach = 2 * change.elastic[:, None] / size  # the grid is 2 long
    return torch.einsum("nxy,ny,nyabc->nxabc", matrix, reach, points).flip(1)


def _spline(steps: Tensor, length: int, count: int) -> Tensor:
    """(M, L, count) cubic B-spline weights of control points at the voxels' centres.

    Args:
        steps: (M,) length of the patch in distances of control points; one point lies before it.
        length: L, voxels along the axis.
        count: Control points along the axis.
    """
    place = (torch.arange(length) + 0.5) / length * steps[:, None] + 1
    t = (place[:, :, None] - torch.arange(count)).abs()
    near = 2 / 3 - t**2 + t**3 / 2
    return torch.where(t < 1, near, (2 - t).clamp_min(0) ** 3 / 6)

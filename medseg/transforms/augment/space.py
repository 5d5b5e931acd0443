"""What a draw does to space: flips, rotation, scaling and elastic deformation in one resampling.

Rotation and scaling are one affine map about the centre, in millimetres, so that anisotropic
voxels are not sheared; flips are part of the same map. A deformation comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.transforms.augment.drawing import Draw
from medseg.transforms.augment.interpolate import interpolate


def move(change: Draw, image: Tensor, label: Tensor, spacing: Tensor) -> tuple[Tensor, Tensor]:
    """The spatial part of a draw. What comes from outside repeats the border; its label is 0.

    Args:
        change: The draw.
        image: (N, C, I, J, K) float.
        label: (N, I, J, K) class indices.
        spacing: (N, 3) voxel size in mm.
    """
    is_resampled = change.is_moved | (change.elastic > 0)
    mirrored = (change.matrix.diagonal(dim1=1, dim2=2) < 0).tolist()
    rows = is_resampled.nonzero()[:, 0]
    if not len(rows) and not any(map(any, mirrored)):
        return image, label
    images, labels = torch.empty_like(image), torch.empty_like(label)
    if len(rows):
        places = _places(change, image.shape[2:], spacing, rows, image.device)
        for n, place in zip(rows.tolist(), places, strict=True):
            images[n], labels[n] = interpolate(image[n], label[n], place)
    for n in (~is_resampled).nonzero()[:, 0].tolist():
        axes = [axis for axis in range(3) if mirrored[n][axis]]
        images[n] = image[n].flip([axis + 1 for axis in axes])  # exact: nothing is interpolated
        labels[n] = label[n].flip(axes)
    return images, labels


def _places(
    change: Draw, shape: Sequence[int], spacing: Tensor, rows: Tensor, device: torch.device
) -> Tensor:
    """(M, 3, I, J, K) where the voxels of M of the samples come from, in voxels (i, j, k)."""
    spacing = spacing.cpu().float()
    matrix = (change.matrix * spacing[:, None, :] / spacing[:, :, None])[rows].to(device)
    places = torch.zeros((), device=device)
    for axis, length in enumerate(shape):  # one term an axis: three numbers a voxel, not twelve
        offsets = torch.arange(length, device=device) - (length - 1) / 2
        column = matrix[:, :, axis, None, None, None]
        places = places + column * offsets.view([-1 if a == axis else 1 for a in range(3)])
    middle = torch.tensor([(length - 1) / 2 for length in shape], device=device)
    places += middle[:, None, None, None]
    if bool((change.elastic > 0).any()):
        size = torch.tensor(shape, dtype=torch.float32) * spacing
        steps = size / change.elastic_grid
        points = _control_points(change, spacing, steps)[rows].to(device)
        weights = (
            _spline(steps[rows, axis], length, points.shape[axis + 2]).to(device)
            for axis, length in enumerate(shape)
        )
        places += torch.einsum("nxabc,nia,njb,nkc->nxijk", points, *weights)
    return places


def _control_points(change: Draw, spacing: Tensor, steps: Tensor) -> Tensor:
    """(N, 3, A, B, C) displacements of control points, in voxels (i, j, k).

    Each is up to `change.elastic` mm along each axis. Cubic B-splines spread them, so that no voxel
    goes farther. A spline is linear: the affine map takes the few points instead of all voxels.

    Source: Rueckert et al. 1999, doi:10.1109/42.796284.

    Args:
        change: The draw.
        spacing: (N, 3) voxel size in mm.
        steps: (N, 3) size of the patch in distances of control points.
    """
    counts = [int(n) + 4 for n in steps.amax(0)]  # a spline reaches two points to either side
    generator = torch.Generator().manual_seed(change.elastic_seed)
    points = torch.rand(len(steps), 3, *counts, generator=generator) * 2 - 1
    matrix = change.matrix * change.elastic[:, None, None] / spacing[:, :, None]
    return torch.einsum("nxy,nyabc->nxabc", matrix, points)


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

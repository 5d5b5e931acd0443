"""A volume brought onto the grid of another, by where both lie in the patient.

This changes the grid only: volumes of one patient that are not registered stay so.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.errors import DataError
from medseg.volumes.geometry import TOLERANCE_MM
from medseg.volumes.image import Affine, Array, Image

LEAST_OVERLAP = 0.5  # of the reference's grid; less is another part of the body, or a wrong header
_RIM = 0.5 + 1e-6  # voxels from a centre to the voxel's edge, with room for rounding


def onto(image: Image, reference: Image, differ: str) -> Image:
    """Resample a volume onto another's grid, linearly, in world coordinates (RAS+ mm).

    Along axes on which the new voxels are larger, the volume is smoothed first. New voxels whose
    centre lies outside the volume (beyond the edges of its outermost voxels) take its background:
    the median of its eight corners.

    Args:
        image: (I, J, K) float32.
        reference: Any volume on the wanted grid.
        differ: How the two grids differ, in words; for the note.

    Returns:
        The volume on the reference's grid, with a note that tells what was done.

    Raises:
        DataError: Less than half of the reference's grid lies in the volume.
    """
    index = np.linalg.inv(image.affine) @ reference.affine  # takes a new index to an old one
    inside = _inside(index, reference.shape, image.shape)
    share = float(inside.mean())
    if share < LEAST_OVERLAP:
        raise DataError(
            image.path,
            f"covers only {share:.1%} of the grid of {reference.path}, {LEAST_OVERLAP:.0%} are "
            "needed: is it of another place of the body, or its header wrong? If both are right, "
            "name the channel with the smaller field of view in data.reference",
        )
    data = ndimage.affine_transform(
        _smooth(image.data, index),
        index[:3, :3],
        index[:3, 3],
        output_shape=reference.shape,
        order=1,
        mode="nearest",
        prefilter=False,
    )
    background = np.float32(np.median(image.data[np.ix_(*[(0, -1)] * 3)]))
    data[~inside] = background
    note = (
        f"resampled onto the grid of {reference.path}: {differ} (tolerance {TOLERANCE_MM:g} mm), "
        f"corners up to {_apart(image, reference):.4g} mm apart, voxels of {_mm(image)} to "
        f"{_mm(reference)} mm; {1 - share:.2%} of the new voxels lie outside and "
        f"take its background, {background:g}"
    )
    return replace(
        image, data=data, affine=reference.affine, header=reference.header,
        notes=(*image.notes, note),
    )  # fmt: skip


def _inside(
    index: Affine, shape: tuple[int, int, int], old: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """Which new voxels have their centre in an old one."""
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = np.ones(shape, dtype=bool)
    for (a, b, c, start), length in zip(index[:3].tolist(), old, strict=True):
        place = (a * i + start) + b * j + c * k
        inside &= (place >= -_RIM) & (place <= length - 1 + _RIM)
    return inside


def _smooth(volume: Array, index: Affine) -> Array:
    """Low-pass along axes on which voxels grow, so that thin structures fade rather than alias.

    The row norms of `index` are the new voxel's extents along the old axes, in old voxels: the
    deviation of a box along a line through it is that of its sides, squared and summed.
    """
    extent = np.sqrt((index[:3, :3] ** 2).sum(axis=1))
    sigma = np.maximum(0, (extent - 1) / 2)
    if sigma.max() <= 0.25:
        return volume
    smooth: Array = ndimage.gaussian_filter(volume, sigma, mode="nearest")
    return smooth


def _apart(image: Image, reference: Image) -> float:
    """How far in mm a corner of the reference's field of view is from the image's nearest one."""
    ours, theirs = _corners(image), _corners(reference)
    return float(np.linalg.norm(ours[None] - theirs[:, None], axis=2).min(axis=1).max())


def _corners(image: Image) -> Affine:
    """(8, 3) corners of the field of view, at the edges of the outermost voxels, in mm."""
    ends = np.array([*product(*((-0.5, size - 0.5) for size in image.shape))])
    places: Affine = ends @ image.affine[:3, :3].T + image.affine[:3, 3]
    return places


def _mm(image: Image) -> str:
    return " x ".join(f"{size:.4g}" for size in image.spacing)

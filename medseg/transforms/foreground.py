"""The region of interest of a case: read from its file, or found in its image.

A computed region is that of the case as stored, before anything is turned, cropped or resampled.
Each channel is cut by a threshold of its own; a voxel belongs to the region if any channel says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import ndimage

from medseg.errors import DataError
from medseg.volumes.image import Array
from medseg.volumes.load import LoadedCase

Rule = Literal["file", "nonzero", "not_corner", "otsu_plus", "otsu_largest", "mean_plus"]
_BINS = 256
_DILATED = 2  # voxels, as NiftyNet dilates


def with_mask(case: LoadedCase, rule: Rule | None) -> LoadedCase:
    """Give a case the region of interest that a rule asks for.

    Args:
        case: As loaded; a mask of its own gives way to a computed one.
        rule: `preprocess.mask`. "file": the case's own, which it must have. None: its own, if any.

    Raises:
        DataError: It has no mask but needs one, or nothing of its image is foreground.
    """
    if rule is None:
        return case
    path = case.reference.path
    if rule == "file":
        if case.mask is None:
            reason = "comes without the region of interest that preprocess.mask: file asks for"
            raise DataError(path, f"{reason}; set data.mask, or let preprocess.mask compute one")
        return case
    mask = foreground(case.image, rule)
    if not mask.any():
        raise DataError(
            path,
            f"preprocess.mask: {rule} finds no foreground, as in an image whose channels are all "
            "constant; mend the image, set another rule, or give a mask by data.mask",
        )
    return replace(case, mask=mask)


def foreground(image: Array, rule: Rule) -> Array:
    """Find the foreground of an image (C, I, J, K): bool (I, J, K), empty if there is none.

    Args:
        image: Finite values.
        rule: "nonzero": whatever is not 0. "not_corner": whatever differs from the first voxel of
            its channel, for stripped images whose background is not 0. "otsu_plus": above Otsu's
            threshold, dilated by two voxels, holes filled (NiftyNet's, Gibson et al. 2018,
            doi:10.1016/j.cmpb.2018.01.025).
            "otsu_largest": its largest part, e.g. a head without the table that it lies on.
            "mean_plus": as "otsu_plus", above the mean instead.
    """
    if rule == "nonzero":
        return np.asarray(np.not_equal(image, 0).any(axis=0))
    if rule == "not_corner":
        return np.asarray(np.not_equal(image, image[:, :1, :1, :1]).any(axis=0))
    threshold = _mean if rule == "mean_plus" else otsu
    found: Array = np.zeros(image.shape[1:], dtype=bool)
    for channel in image:
        found |= _above(channel, threshold)
    return _largest(found) if rule == "otsu_largest" else found


def otsu(values: Array) -> float:
    """Otsu's threshold: between two groups of values that differ most for how far each spreads.

    Otsu 1979, doi:10.1109/TSMC.1979.4310076, over a histogram of 256 bins from least to greatest.

    Args:
        values: Any shape, finite.

    Returns:
        The edge between the last bin of the lower group and the first of the upper.
    """
    counts, edges = np.histogram(values, bins=_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    sums = np.cumsum(counts * centres)
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (means[0] - means[1]) ** 2
    return float(edges[1:-1][int(between.argmax())])


def _mean(values: Array) -> float:
    return float(values.mean(dtype=np.float64))


def _above(channel: Array, threshold: Callable[[Array], float]) -> Array:
    """The filled foreground of one channel; empty where it is constant."""
    if channel.min() == channel.max():
        return np.zeros(channel.shape, dtype=bool)
    inside = ndimage.binary_dilation(channel > threshold(channel), iterations=_DILATED)
    filled: Array = ndimage.binary_fill_holes(inside)
    return filled


def _largest(mask: Array) -> Array:
    """The largest of the parts that touch nowhere, not even at a corner."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    largest: Array = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return largest

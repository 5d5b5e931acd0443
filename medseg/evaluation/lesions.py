"""Lesions counted: which were found, which were missed, which are false.

A lesion is a connected component. A predicted and a true lesion make a pair when their IoU reaches
the asked overlap (at overlap 0: when they share a voxel). Each lesion enters one pair at most, and
the pairs are chosen so that as many true lesions as possible are found (maximum bipartite matching,
Hopcroft and Karp 1973, doi:10.1137/0202019). From an overlap of 0.5 on at most one partner exists
and the choice is forced (Kirillov et al. 2019, panoptic quality, arXiv:1801.00868); below it,
one-to-one matching keeps a single large prediction from finding ten lesions at once and ten crumbs
from counting as ten finds (Metrics Reloaded, Maier-Hein et al. 2024,
doi:10.1038/s41592-023-02151-z).

True lesions under the minimum size are not counted. Neither are predicted ones under it that found
nothing, nor those of any size that would make a pair with an uncounted true lesion: a size limit
must not turn a good mask of a small lesion into a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medseg.evaluation.metrics import bounding_box, ratio
from medseg.evaluation.surfaces import Mask, Spacing

Connectivity = Literal[6, 18, 26]
Labels = npt.NDArray[np.int32]

_NEIGHBOURS = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True)
class LesionScores:
    """The lesions of one class of one case, as their volumes.

    Args:
        found_mm3: True lesions with a predicted partner.
        missed_mm3: True lesions without.
        false_mm3: Predicted lesions without a true partner.
    """

    found_mm3: tuple[float, ...]
    missed_mm3: tuple[float, ...]
    false_mm3: tuple[float, ...]

    @property
    def tp(self) -> int:
        """True lesions found."""
        return len(self.found_mm3)

    @property
    def fn(self) -> int:
        """True lesions missed."""
        return len(self.missed_mm3)

    @property
    def fp(self) -> int:
        """Predicted lesions that are none."""
        return len(self.false_mm3)

    @property
    def sensitivity(self) -> float:
        """Found of all true lesions; without any, 1 if none is predicted, else 0."""
        return ratio(self.tp, self.tp + self.fn, empty=float(not self.fp))

    @property
    def precision(self) -> float:
        """Found of found and false lesions; with neither, 1 if nothing was missed, else 0."""
        return ratio(self.tp, self.tp + self.fp, empty=float(not self.fn))

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn); 1 where there is nothing to find and nothing predicted."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def match(
    prediction: Mask,
    truth: Mask,
    spacing: Spacing,
    *,
    connectivity: Connectivity,
    min_mm3: float,
    overlap: float,
) -> LesionScores:
    """Pair predicted with true lesions by the rule at the top of this file.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        spacing: Voxel size in mm, (i, j, k).
        connectivity: Neighbours of a voxel that belong to its lesion: 6, 18 or 26.
        min_mm3: Least volume of a lesion that counts, in mm3.
        overlap: Least IoU of a pair, from 0 (one common voxel) to 1.
    """
    box = bounding_box(prediction | truth)
    true, true_count = components(truth[box], connectivity)
    predicted, predicted_count = components(prediction[box], connectivity)
    voxel = float(np.prod(spacing))
    true_voxels = np.bincount(true.ravel(), minlength=true_count + 1)[1:]
    predicted_voxels = np.bincount(predicted.ravel(), minlength=predicted_count + 1)[1:]
    pairs = _pairs(true, predicted, true_voxels, predicted_voxels, overlap)

    counted = true_voxels * voxel >= min_mm3
    partner = maximum_bipartite_matching(_rows(pairs, counted), perm_type="column")
    found = partner >= 0
    excused = np.zeros(predicted_count, dtype=bool)
    excused[partner[found]] = True
    excused[_rows(pairs, ~counted).indices] = True
    false = ~excused & (predicted_voxels * voxel >= min_mm3)
    return LesionScores(
        found_mm3=_volumes(true_voxels[found], voxel),
        missed_mm3=_volumes(true_voxels[counted & ~found], voxel),
        false_mm3=_volumes(predicted_voxels[false], voxel),
    )


def components(mask: Mask, connectivity: Connectivity) -> tuple[Labels, int]:
    """Number a mask's connected components from 1; return the numbers and how many there are."""
    structure = ndimage.generate_binary_structure(3, _NEIGHBOURS[connectivity])
    labels = np.zeros(mask.shape, dtype=np.int32)
    return labels, ndimage.label(mask, structure, output=labels)


def _pairs(
    true: Labels,
    predicted: Labels,
    true_voxels: npt.NDArray[np.int64],
    predicted_voxels: npt.NDArray[np.int64],
    overlap: float,
) -> Any:
    """A sparse 0/1 matrix (true lesions, predicted lesions) of the pairs with enough overlap."""
    both = (true > 0) & (predicted > 0)
    encoded = (true[both] - 1) * np.int64(predicted_voxels.size) + predicted[both] - 1
    codes, common = np.unique(encoded, return_counts=True)
    t, p = np.divmod(codes, max(predicted_voxels.size, 1))
    iou = common / (true_voxels[t] + predicted_voxels[p] - common)
    enough = iou >= overlap
    ones = np.ones(int(enough.sum()), dtype=np.int8)
    shape = (true_voxels.size, predicted_voxels.size)
    return csr_array((ones, (t[enough], p[enough])), shape=shape)


def _rows(pairs: Any, kept: npt.NDArray[np.bool_]) -> Any:
    """The pairs of some true lesions alone; the matrix keeps its shape."""
    coordinates = pairs.tocoo()
    mine = kept[coordinates.row]
    place = (coordinates.row[mine], coordinates.col[mine])
    return csr_array((coordinates.data[mine], place), shape=pairs.shape)


def _volumes(voxels: npt.NDArray[np.int64], voxel_mm3: float) -> tuple[float, ...]:
    return tuple((voxels * voxel_mm3).tolist())

"""Lesions counted: which were found, which were missed, which are false.

A lesion is a connected component: neighbours share a face (6), also an edge (18), or also a corner
(26). There are two rules; `docs/lesions.md` shows both on examples.

`one_to_one`, the default. A predicted and a true lesion make a pair when their IoU reaches the
asked overlap (at overlap 0: when they share a voxel). Each lesion enters one pair at most, and the
pairs are chosen so that as many true lesions as possible are found (maximum bipartite matching);
the surest predicted lesions (without probabilities: those of the greatest IoU) get theirs first.
From an overlap of 0.5 on at most one partner exists and the choice is forced (Kirillov et al. 2019,
panoptic quality, arXiv:1801.00868); below it, one-to-one matching keeps a single large prediction
from finding ten lesions at once and ten crumbs from counting as ten finds (Metrics Reloaded,
Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z). So of a true lesion that is split among
several predicted ones, one is a find and the others are false; of several true lesions that one
predicted lesion merges, one is found and the others are missed.

`any_overlap`. A true lesion is found when all predictions together cover at least the asked share
of it, and a predicted lesion is false when less than that share of it is true (at overlap 0: one
voxel is enough). So all parts of a split lesion are right, and one prediction may find several
lesions. At 0 this is the rule of the WMH and ISLES challenges (Kuijf et al. 2019,
doi:10.1109/TMI.2019.2905770; Hernandez Petzsche et al. 2022, doi:10.1038/s41597-022-01875-5); at
0.1 it is close to MSSEG's (Commowick et al. 2018, doi:10.1038/s41598-018-31911-7), whose F1 this is
too: the harmonic mean of the shares of true lesions found and of predicted lesions that are right.

Under both rules, true lesions that two or more predicted ones touch are counted as `split`, and
predicted lesions that touch two or more true ones as `merged`; to touch is to share a voxel.

True lesions under the minimum size are not counted. Neither are predicted ones under it that found
nothing, nor those of any size that belong to an uncounted true lesion alone: a size limit must not
turn a good mask of a small lesion into a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.config.schema import Evaluation
from medseg.evaluation.lesion_matching import (
    Flags,
    Floats,
    Integers,
    Labels,
    Overlaps,
    Partners,
    any_overlap,
    one_to_one,
)
from medseg.evaluation.metrics import bounding_box, ratio
from medseg.evaluation.surfaces import Mask, Spacing

Connectivity = Literal[6, 18, 26]
RuleName = Literal["one_to_one", "any_overlap"]

_NEIGHBOURS = {6: 1, 18: 2, 26: 3}
_RULES = {"one_to_one": one_to_one, "any_overlap": any_overlap}
_NEARLY = 1 - 1e-6  # voxel sizes are rounded: 4 voxels of 3 mm3 may come to a little less than 12


@dataclass(frozen=True)
class Rule:
    """How lesions are counted.

    Args:
        connectivity: Neighbours of a voxel that belong to its lesion: 6, 18 or 26.
        min_mm3: Least volume of a lesion that counts, in mm3.
        overlap: Least overlap, as the rule takes it.
        name: One of the two rules.
    """

    connectivity: Connectivity
    min_mm3: float
    overlap: float
    name: RuleName = "one_to_one"

    @classmethod
    def of(cls, settings: Evaluation) -> Rule:
        """As the settings say."""
        return cls(
            settings.connectivity,
            settings.min_lesion_mm3,
            settings.lesion_overlap,
            settings.lesion_rule,
        )


@dataclass(frozen=True)
class LesionScores:
    """The lesions of one class of one case, as their volumes.

    Args:
        found_mm3: True lesions that were found.
        missed_mm3: True lesions that were not.
        false_mm3: Predicted lesions that are none.
        right_mm3: Predicted lesions that found one; of the rule `one_to_one` as many as were found.
        split: True lesions that two or more predicted ones touch.
        merged: Predicted lesions that touch two or more true ones.
    """

    found_mm3: tuple[float, ...]
    missed_mm3: tuple[float, ...]
    false_mm3: tuple[float, ...]
    right_mm3: tuple[float, ...]
    split: int = 0
    merged: int = 0

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
        """Right of right and false predicted lesions; with neither, 1 if nothing was missed."""
        right = len(self.right_mm3)
        return ratio(right, right + self.fp, empty=float(not self.fn))

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 1 where there is nothing to find and nothing predicted.

        Where as many are right as were found this is 2 tp / (2 tp + fp + fn).
        """
        right, true = len(self.right_mm3), self.tp + self.fn
        if not self.tp or not right:
            return float(not true and not right and not self.fp)
        return 2 * self.tp * right / (self.tp * (right + self.fp) + right * true)


@dataclass(frozen=True, eq=False)
class Matching:
    """The lesions of one class of one case and what became of each: T true, P predicted.

    Args:
        box: Where in the volume the two maps lie.
        true: Lesion numbers from 1, within the box.
        predicted: The same.
        voxel_mm3: Volume of a voxel.
        overlaps: Which share voxels.
        partners: Which belong together.
        counted: (T,) bool, the true lesions that are large enough.
        false: (P,) bool.
        confidence: (P,), the mean probability of the class in each predicted lesion; None: unknown.
    """

    box: tuple[slice, slice, slice]
    true: Labels
    predicted: Labels
    voxel_mm3: float
    overlaps: Overlaps
    partners: Partners
    counted: Flags
    false: Flags
    confidence: Floats | None

    @property
    def scores(self) -> LesionScores:
        """The counts, as volumes."""
        found, true = self.partners.found, self.overlaps.true_voxels
        predicted = self.overlaps.predicted_voxels
        touched, touching = self.touched
        return LesionScores(
            found_mm3=self._volumes(true[found]),
            missed_mm3=self._volumes(true[self.counted & ~found]),
            false_mm3=self._volumes(predicted[self.false]),
            right_mm3=self._volumes(predicted[self.partners.right]),
            split=int((touched[self.counted] > 1).sum()),
            merged=int((touching > 1).sum()),
        )

    @property
    def touched(self) -> tuple[Integers, Integers]:
        """How many predicted lesions touch each true one (T,), and the other way round (P,).

        True lesions that are not counted do not count here either.
        """
        overlaps, counts = self.overlaps, self.counted[self.overlaps.true]
        return (
            np.bincount(overlaps.true, minlength=overlaps.true_voxels.size),
            np.bincount(overlaps.predicted[counts], minlength=overlaps.predicted_voxels.size),
        )

    def _volumes(self, voxels: Integers) -> tuple[float, ...]:
        return tuple((voxels * self.voxel_mm3).tolist())


def match(
    prediction: Mask,
    truth: Mask,
    spacing: Spacing,
    rule: Rule,
    probability: npt.NDArray[np.floating] | None = None,
) -> Matching:
    """Find the lesions of two masks, and what became of each, by the rules at the top of this file.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        spacing: Voxel size in mm, (i, j, k).
        rule: What counts as a lesion, and as found.
        probability: (I, J, K), of the class; None: unknown.
    """
    box = bounding_box(prediction | truth)
    true, true_count = components(truth[box], rule.connectivity)
    predicted, predicted_count = components(prediction[box], rule.connectivity)
    overlaps = Overlaps.of(true, predicted, (true_count, predicted_count))
    confidence = None
    if probability is not None:
        sums = np.bincount(predicted.ravel(), probability[box].ravel(), predicted_count + 1)
        confidence = sums[1:] / overlaps.predicted_voxels
    voxel = float(np.prod(spacing))
    least = rule.min_mm3 * _NEARLY
    counted = overlaps.true_voxels * voxel >= least
    partners = _RULES[rule.name](overlaps, counted, rule.overlap, confidence)
    is_large = overlaps.predicted_voxels * voxel >= least
    false = ~partners.right & ~partners.excused & is_large
    return Matching(box, true, predicted, voxel, overlaps, partners, counted, false, confidence)


def components(mask: Mask, connectivity: Connectivity) -> tuple[Labels, int]:
    """Number a mask's connected components from 1; return the numbers and how many there are."""
    structure = ndimage.generate_binary_structure(3, _NEIGHBOURS[connectivity])
    labels = np.zeros(mask.shape, dtype=np.int32)
    return labels, ndimage.label(mask, structure, output=labels)

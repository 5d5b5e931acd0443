"""How common each class is in whole volumes, and in the patches that a network is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.networks.checkpoint import Priors
from medseg.training.cache import CachedCase
from medseg.training.dataset import Patches
from medseg.volumes.dataset import IGNORE_INDEX
from medseg.volumes.image import Array

_PATCHES = 256


def measure(patches: Patches, cases: Sequence[CachedCase], *, roi: bool) -> Priors:
    """Count the classes of the training cases, and of the first patches that a run draws.

    Args:
        patches: As the run draws them; the count does not disturb its draws.
        cases: The training cases.
        roi: Whether to count in volumes only what lies in the region of interest, since nothing
            else will be predicted.
    """
    classes = patches.recipe.classes
    true = sum((case.counts()[int(roi), :classes] for case in cases), np.zeros(classes))
    seen = sum((_count(patches.target(n))[:classes] for n in range(_PATCHES)), np.zeros(classes))
    return Priors(_shares(true), _shares(seen), roi)


def _count(label: Array) -> Array:
    return np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)


def _shares(counts: Array) -> tuple[float, ...]:
    """Shares that sum to 1; a class of which there is nothing counts as one voxel."""
    counts = np.maximum(counts, 1)
    return tuple((counts / counts.sum()).tolist())

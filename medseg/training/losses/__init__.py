"""Losses: `(logits (N, C, I, J, K), target (N, I, J, K) class indices) -> scalar`.

Voxels whose target is IGNORE_INDEX count nowhere. All is computed in float32, whatever the logits
are. docs/losses.md tells which loss is for what.
"""

from __future__ import annotations

from medseg.training.losses.boundary import Boundary, Hausdorff
from medseg.training.losses.compound import DiceCrossEntropy, DiceFocal, DiceTopK
from medseg.training.losses.entropy import CrossEntropy, Focal, TopK
from medseg.training.losses.overlap import (
    GeneralisedDice,
    SensitivitySpecificity,
    SoftDice,
    Tversky,
)
from medseg.training.losses.supervision import DeepSupervision
from medseg.training.losses.volume import VolumeEnforcement
from medseg.training.losses.wasserstein import WassersteinDice

__all__ = [
    "Boundary",
    "CrossEntropy",
    "DeepSupervision",
    "DiceCrossEntropy",
    "DiceFocal",
    "DiceTopK",
    "Focal",
    "GeneralisedDice",
    "Hausdorff",
    "SensitivitySpecificity",
    "SoftDice",
    "TopK",
    "Tversky",
    "VolumeEnforcement",
    "WassersteinDice",
]

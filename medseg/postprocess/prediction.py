"""What a postprocessor takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medseg.volumes.image import Affine, Array


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction on the input's own grid.

    Args:
        labels: (I, J, K) uint8 class indices; 0 is background.
        image: (C, I, J, K) float32, the input as read.
        affine: (4, 4) voxel index to RAS+ mm.
        probabilities: (classes, I, J, K) float32, where they were asked for.
    """

    labels: Array
    image: Array
    affine: Affine
    probabilities: Array | None = None

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm3."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    def with_labels(self, labels: Array) -> Prediction:
        """The same prediction with other labels."""
        return replace(self, labels=labels)

"""What a postprocessor takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medseg.errors import DataError
from medseg.volumes.geometry import voxel_size
from medseg.volumes.image import Affine, Array
from medseg.volumes.stack import Stack


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction on the input's own grid.

    Args:
        labels: (I, J, K) uint8 class indices; 0 is background.
        image: (C, I, J, K) float32, the input as read.
        affine: (4, 4) voxel index to RAS+ mm.
        probabilities: (classes, I, J, K) float32, where they were asked for, or a step to come
            needs them.
        mask: (I, J, K) bool, the case's region of interest, where it has one.
        stack: The probabilities on disk, where they are only to be written.
        uncertainty: (I, J, K) float32, where it was asked for.
        made: How it was made, for the record: precision, windows, parts.
    """

    labels: Array
    image: Array
    affine: Affine
    probabilities: Array | None = None
    mask: Array | None = None
    stack: Stack | None = None
    uncertainty: Array | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along (i, j, k)."""
        return voxel_size(self.affine)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm3."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    def with_labels(self, labels: Array) -> Prediction:
        """The same prediction with other labels."""
        return replace(self, labels=labels)

    def with_probabilities(self, probabilities: Array) -> Prediction:
        """The same prediction with other probabilities, and the likeliest class of each voxel.

        Args:
            probabilities: (classes, I, J, K).
        """
        labels = probabilities.argmax(0).astype(np.uint8)
        return replace(self, labels=labels, probabilities=probabilities)

    def need_probabilities(self) -> Array:
        """The probabilities, for a step that cannot do without.

        Raises:
            DataError: There are none.
        """
        if self.probabilities is None:
            raise DataError("prediction", "has no class probabilities, which this step needs")
        return self.probabilities


Step = Callable[[Prediction], Prediction]


def needs_probabilities(step: object) -> bool:
    """Whether a postprocessor, or its class, says that it needs class probabilities."""
    return bool(getattr(step, "needs_probabilities", False))


def is_pointwise(step: object) -> bool:
    """Whether what a postprocessor makes of a voxel depends on that voxel's probabilities alone."""
    return bool(getattr(step, "pointwise", False))

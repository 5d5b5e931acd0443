"""Postprocessors on connected components: components of `postprocess` in a config."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from medseg.evaluation.lesions import Connectivity, components
from medseg.postprocess.options import check_range
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.volumes.image import Array

NEARLY = 1 - 1e-6  # voxel sizes are rounded: 4 voxels of 3 mm3 may come to a little less than 12


@POSTPROCESSORS.register("min_volume")
class MinVolume:
    """Remove connected components that are too small to be believed.

    Args:
        mm3: Least volume that stays, in mm3.
        connectivity: Neighbours of a voxel: 6, 18 or 26.
        together: Whether the foreground classes form components together.
    """

    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mm3": (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    }

    def __init__(self, mm3: float, connectivity: Connectivity = 26, together: bool = True) -> None:
        check_range("mm3", mm3)
        self.mm3, self.connectivity, self.together = mm3, connectivity, together

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction without the small components."""
        labels = prediction.labels.copy()
        for mask in _masks(labels, self.together):
            numbers, sizes = _sized(mask, self.connectivity)
            is_small = sizes * prediction.voxel_mm3 < self.mm3 * NEARLY
            is_small[0] = False
            labels[is_small[numbers]] = 0
        return prediction.with_labels(labels)


@POSTPROCESSORS.register("largest_component")
class LargestComponent:
    """Keep only the largest connected component, for organs of which there is one.

    Args:
        connectivity: Neighbours of a voxel: 6, 18 or 26.
        together: Whether the foreground classes form one component together; else each class keeps
            its own.
    """

    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {"together": (False, True)}

    def __init__(self, connectivity: Connectivity = 26, together: bool = False) -> None:
        self.connectivity, self.together = connectivity, together

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with one component (a class)."""
        labels = prediction.labels.copy()
        for mask in _masks(labels, self.together):
            numbers, sizes = _sized(mask, self.connectivity)
            sizes[0] = 0
            labels[mask & (numbers != int(sizes.argmax()))] = 0
        return prediction.with_labels(labels)


@POSTPROCESSORS.register("fill_holes")
class FillHoles:
    """Fill background that a class encloses wholly.

    A hole is a 6-connected component of what is not the class and does not reach the border. Other
    classes within it stay, and count to its volume.

    Args:
        max_mm3: Volume of the largest hole that is filled, in mm3; null: any.
    """

    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {"max_mm3": (None, 10.0, 100.0, 1000.0)}

    def __init__(self, max_mm3: float | None = None) -> None:
        if max_mm3 is not None:
            check_range("max_mm3", max_mm3)
        self.max_mm3 = np.inf if max_mm3 is None else max_mm3

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction without holes."""
        labels = prediction.labels.copy()
        for mask in _masks(labels, together=False):
            value = labels[mask][0]
            numbers, sizes = _sized(~mask, 6)
            is_hole = sizes * prediction.voxel_mm3 * NEARLY <= self.max_mm3
            is_hole[0] = False
            for axis in range(3):
                is_hole[numbers.take((0, -1), axis)] = False
            labels[is_hole[numbers] & (labels == 0)] = value
        return prediction.with_labels(labels)


def _masks(labels: Array, together: bool) -> list[Array]:
    """The masks whose components count: the foreground as one, or each class there is."""
    if together:
        return [labels > 0] if labels.any() else []
    return [labels == value for value in np.unique(labels) if value]


def _sized(mask: Array, connectivity: Connectivity) -> tuple[Array, Array]:
    """Number the components and count their voxels; entry 0 is what the mask leaves out."""
    numbers, count = components(mask, connectivity)
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)

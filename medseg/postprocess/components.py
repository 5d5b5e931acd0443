"""Postprocessors on connected components: components of `postprocess` in a config."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.volumes.image import Array

Connectivity = Literal[6, 18, 26]
_NEARLY = 1 - 1e-6  # voxel sizes are rounded: 4 voxels of 3 mm3 may come to a little less than 12


@POSTPROCESSORS.register("min_volume")
class MinVolume:
    """Remove connected components that are too small to be believed.

    Args:
        mm3: Least volume that stays, in mm3.
        connectivity: Neighbours of a voxel: 6, 18 or 26.
        together: Whether the foreground classes form components together.
    """

    def __init__(self, mm3: float, connectivity: Connectivity = 26, together: bool = True) -> None:
        self.mm3, self.connectivity, self.together = mm3, connectivity, together

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction without the small components."""
        labels = prediction.labels.copy()
        for mask in _masks(labels, self.together):
            components, sizes = _components(mask, self.connectivity)
            is_small = sizes * prediction.voxel_mm3 < self.mm3 * _NEARLY
            is_small[0] = False
            labels[is_small[components]] = 0
        return prediction.with_labels(labels)


@POSTPROCESSORS.register("largest_component")
class LargestComponent:
    """Keep only the largest connected component, for organs of which there is one.

    Args:
        connectivity: Neighbours of a voxel: 6, 18 or 26.
        together: Whether the foreground classes form one component together.
    """

    def __init__(self, connectivity: Connectivity = 26, together: bool = False) -> None:
        self.connectivity, self.together = connectivity, together

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with one component (a class)."""
        labels = prediction.labels.copy()
        for mask in _masks(labels, self.together):
            components, sizes = _components(mask, self.connectivity)
            sizes[0] = 0
            labels[mask & (components != int(sizes.argmax()))] = 0
        return prediction.with_labels(labels)


@POSTPROCESSORS.register("fill_holes")
class FillHoles:
    """Fill background that a class encloses wholly (6-connected background)."""

    def __init__(self) -> None:
        pass

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction without holes."""
        labels = prediction.labels.copy()
        for value in range(1, int(labels.max(initial=0)) + 1):
            filled = ndimage.binary_fill_holes(labels == value)
            labels[filled & (labels == 0)] = value
        return prediction.with_labels(labels)


def _masks(labels: Array, together: bool) -> list[Array]:
    """The masks whose components count: the foreground as one, or each class there is."""
    if together:
        return [labels > 0] if labels.any() else []
    return [
        labels == value
        for value in range(1, int(labels.max(initial=0)) + 1)
        if (labels == value).any()
    ]


def _components(mask: Array, connectivity: int) -> tuple[Array, Array]:
    """Number the components and count their voxels; entry 0 is the background."""
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    components, _ = ndimage.label(mask, structure)
    return components, np.bincount(components.ravel())

"""Smooth surfaces, in mm: a component of `postprocess` in a config."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from scipy import ndimage

from medseg.errors import ConfigError
from medseg.evaluation.lesions import components
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.volumes.image import Array


@POSTPROCESSORS.register("smooth_surface")
class SmoothSurface:
    """Smooth the surfaces of the classes with a Gaussian in mm, and take the likeliest class.

    A surface moves towards its centre of curvature: a confident ball of radius r shrinks by about
    mm^2 / r, and one with r below 1.54 mm (1.54 of the option's: the median of the chi distribution
    with 3 degrees of freedom) would vanish. Lesions that would vanish stay as they were.

    Args:
        mm: Standard deviation of the Gaussian, in mm, the same along all axes in the patient. An
            axis with voxels more than twice as long hardly changes.
        of: What is smoothed: class probabilities, or the labels as earlier steps left them (then
            the probabilities stay as they were).
        keep_small: Whether a lesion (a 26-connected component of the foreground) that would vanish
            wholly stays as it was.
    """

    needs_probabilities = True
    gives_probabilities = True
    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {"mm": (0.5, 1.0, 1.5, 2.0, 3.0)}

    def __init__(
        self,
        classes: int,
        mm: float = 1.0,
        of: Literal["probabilities", "labels"] = "probabilities",
        keep_small: bool = True,
    ) -> None:
        if not 0 < mm <= 100:
            raise ConfigError(f"mm must be above 0, and 100 at most, got {mm:g}", ("mm",))
        self.classes, self.mm, self.of, self.keep_small = classes, mm, of, keep_small

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with smooth surfaces."""
        shares = self._shares(prediction)
        sigma = [self.mm / size for size in prediction.spacing]
        smooth = np.stack([ndimage.gaussian_filter(s, sigma, mode="nearest") for s in shares])
        if self.keep_small:
            vanished = _vanished(shares.argmax(0) > 0, smooth.argmax(0) > 0)
            smooth[:, vanished] = shares[:, vanished]
        if self.of == "labels":
            return prediction.with_labels(smooth.argmax(0).astype(np.uint8))
        return prediction.with_probabilities(smooth)

    def _shares(self, prediction: Prediction) -> Array:
        if self.of == "probabilities":
            return prediction.need_probabilities()
        indices = np.arange(self.classes, dtype=np.uint8)[:, None, None, None]
        indicators: Array = (prediction.labels == indices).astype(np.float32)
        return indicators


def _vanished(before: Array, after: Array) -> Array:
    """Components of one mask of which another has no voxel."""
    numbers, count = components(before, 26)
    is_there = np.zeros(count + 1, dtype=bool)
    is_there[numbers[after]] = True
    is_there[0] = True
    vanished: Array = ~is_there[numbers]
    return vanished

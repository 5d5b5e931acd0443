"""Postprocessors that decide anew from the class probabilities.

They read probabilities, not labels: what an earlier step did to labels alone is lost, so they come
before steps on components; and those that give probabilities, before those that give labels alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from medseg.errors import ConfigError
from medseg.evaluation.lesions import Connectivity, components
from medseg.postprocess.components import NEARLY, MinVolume
from medseg.postprocess.options import check_range
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.volumes.image import Array

_LEAST = 1e-6  # of a threshold: 0 would call every voxel foreground
_MOST = 20.0  # log-odds; e^-20 of a probability is still far above the least float32


@POSTPROCESSORS.register("hysteresis")
class Hysteresis:
    """Keep connected components of likely foreground that are surely foreground somewhere.

    The probability of foreground is that of all its classes together; a voxel that stays gets the
    likeliest of them (Canny 1986, doi:10.1109/TPAMI.1986.4767851, thresholds edges so).

    Args:
        low: Least probability of the voxels of a component.
        high: Probability that at least one of its voxels must reach; `low` or more.
        high_mm3: Least volume, in mm3, of its voxels that reach `high`; 0: one voxel will do.
        connectivity: Neighbours of a voxel: 6, 18 or 26.
    """

    needs_probabilities = True
    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {
        "low": (0.2, 0.3, 0.4, 0.5),
        "high": (0.5, 0.6, 0.7, 0.8, 0.9),
    }

    def __init__(
        self,
        low: float = 0.4,
        high: float = 0.7,
        high_mm3: float = 0.0,
        connectivity: Connectivity = 26,
    ) -> None:
        check_range("low", low, 0, 1)
        check_range("high", high, 0, 1)
        check_range("high_mm3", high_mm3)
        if low > high:
            raise ConfigError(f"low {low:g} must not be above high {high:g}", ("low",))
        self.low, self.high, self.high_mm3, self.connectivity = low, high, high_mm3, connectivity

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the components that have a sure core."""
        shares = prediction.need_probabilities()
        foreground = 1 - shares[0]
        numbers, count = components(foreground >= self.low, self.connectivity)
        sure = np.bincount(numbers[foreground >= self.high], minlength=count + 1)
        stays = (sure > 0) & (sure * prediction.voxel_mm3 >= self.high_mm3 * NEARLY)
        stays[0] = False
        return prediction.with_labels(np.where(stays[numbers], _likeliest(shares), np.uint8(0)))


@POSTPROCESSORS.register("operating_point")
class OperatingPoint:
    """Call foreground what is likely enough and large enough: the point of work on an FROC curve.

    With one threshold, a voxel is foreground where the probabilities of all foreground classes
    together reach it, and gets the likeliest of them; components count over all classes together.
    With a threshold for each class, it gets the class that exceeds its own threshold by the largest
    factor, and components count within each class.

    Args:
        threshold: Least probability; one, or one for each foreground class.
        min_mm3: Least volume of a component that stays, in mm3.
        connectivity: Neighbours of a voxel: 6, 18 or 26.
    """

    needs_probabilities = True
    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {
        "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "min_mm3": (0.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
    }

    def __init__(
        self,
        classes: int,
        threshold: float | tuple[float, ...] = 0.5,
        min_mm3: float = 0.0,
        connectivity: Connectivity = 26,
    ) -> None:
        thresholds = threshold if isinstance(threshold, tuple) else (threshold,)
        if isinstance(threshold, tuple) and len(threshold) != classes - 1:
            raise ConfigError(
                f"threshold needs 1 value, or {classes - 1}, one for each foreground class, "
                f"got {len(threshold)}",
                ("threshold",),
            )
        for value in thresholds:
            check_range("threshold", value, _LEAST, 1)
        check_range("min_mm3", min_mm3)
        self.is_each = isinstance(threshold, tuple)
        self.thresholds = np.asarray(thresholds, np.float32)[:, None, None, None]
        self.small = MinVolume(min_mm3, connectivity, together=not self.is_each)
        self.pointwise = not min_mm3

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with what is likely and large enough."""
        shares = prediction.need_probabilities()
        if self.is_each:
            margin = shares[1:] / self.thresholds
            likeliest, is_in = (1 + margin.argmax(0)).astype(np.uint8), margin.max(0) >= 1
        else:
            likeliest, is_in = _likeliest(shares), 1 - shares[0] >= self.thresholds[0]
        return self.small(prediction.with_labels(np.where(is_in, likeliest, np.uint8(0))))


@POSTPROCESSORS.register("prior_correction")
class PriorCorrection:
    """Correct for classes being rarer or commoner than in training, as patches show them.

    Probabilities are multiplied by a factor for each class, that of its prior here over its prior
    in training, and brought back to a sum of 1 (Saerens, Latinne and Decaestecker 2002,
    doi:10.1162/089976602753284446, equation 2.4).

    Args:
        log_odds: Added to the natural log-odds of each foreground class against background;
            negative: less foreground.
        factors: Instead: a factor for each class, background first, e.g. `[1, 0.5, 2]`.
    """

    needs_probabilities = True
    gives_probabilities = True
    pointwise = True
    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {
        "log_odds": (-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0),
    }

    def __init__(
        self, classes: int, log_odds: float = 0.0, factors: tuple[float, ...] | None = None
    ) -> None:
        check_range("log_odds", log_odds, -_MOST, _MOST)
        if factors is None:
            factors = (1.0, *[float(np.exp(log_odds))] * (classes - 1))
        elif log_odds:
            raise ConfigError("give either log_odds or factors, not both", ("factors",))
        if len(factors) != classes:
            raise ConfigError(
                f"factors needs {classes} values, background first, got {len(factors)}",
                ("factors",),
            )
        for factor in factors:
            check_range("factors", factor, float(np.exp(-_MOST)), float(np.exp(_MOST)))
        self.factors = np.asarray(factors, np.float32)

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction with the corrected probabilities and their likeliest classes."""
        shares = prediction.need_probabilities() * self.factors[:, None, None, None]
        shares /= shares.sum(0)
        return prediction.with_probabilities(shares)


@POSTPROCESSORS.register("regions")
class Regions:
    """Decide by regions, which are unions of classes and may overlap, and give classes back.

    The probability of a region is the sum of those of its classes. Where it reaches the threshold,
    the voxel belongs to the region, and gets the likeliest of the classes that the region has and
    no later one has; a later region overwrites an earlier one. With classes 1 core, 2 oedema and 3
    enhancing, `[[1, 2, 3], [1, 3], [3]]` are whole tumour, tumour core and enhancing tumour
    (BraTS, Menze et al. 2015, doi:10.1109/TMI.2014.2377694).

    Args:
        regions: The classes of each region, the outermost first; 1 is the class of the smallest
            label value.
        threshold: Least probability of a region; one, or one for each.
    """

    needs_probabilities = True
    pointwise = True
    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {"threshold": (0.3, 0.4, 0.5, 0.6, 0.7)}

    def __init__(
        self,
        classes: int,
        regions: tuple[tuple[int, ...], ...],
        threshold: float | tuple[float, ...] = 0.5,
    ) -> None:
        thresholds = threshold if isinstance(threshold, tuple) else (threshold,) * len(regions)
        if len(thresholds) != len(regions):
            raise ConfigError(
                f"{len(thresholds)} thresholds for {len(regions)} regions", ("threshold",)
            )
        for value in thresholds:
            check_range("threshold", value, 0, 1)
        _check_regions(regions, classes)
        self.regions = list(zip(regions, _own(regions), thresholds, strict=True))

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the prediction composed of the regions, in order."""
        shares = prediction.need_probabilities()
        labels = np.zeros_like(prediction.labels)
        for region, own, threshold in self.regions:
            inside = shares[list(region)].sum(0) >= threshold
            choice = np.asarray(own, np.uint8)[shares[own].argmax(0)]
            labels[inside] = choice[inside]
        return prediction.with_labels(labels)


def _own(regions: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """The classes that each region has and no later one has."""
    return [
        [index for index in region if not any(index in later for later in regions[n + 1 :])]
        for n, region in enumerate(regions)
    ]


def _check_regions(regions: tuple[tuple[int, ...], ...], classes: int) -> None:
    named = {index for region in regions for index in region}
    foreground = set(range(1, classes))
    if named - foreground:
        got = ", ".join(map(str, sorted(named - foreground)))
        raise ConfigError(f"regions may hold classes 1 to {classes - 1}, got {got}", ("regions",))
    if foreground - named:
        lost = ", ".join(map(str, sorted(foreground - named)))
        raise ConfigError(f"no region holds class {lost}, which would vanish", ("regions",))
    for n, (region, own) in enumerate(zip(regions, _own(regions), strict=True)):
        if len(set(region)) < len(region):
            raise ConfigError(f"regions name a class twice: {list(region)}", ("regions", n))
        if not own:
            raise ConfigError(
                f"all classes of {list(region)} are in later regions, so none is left for it: "
                "put the outermost region first",
                ("regions", n),
            )


def _likeliest(shares: Array) -> Array:
    """The likeliest foreground class of each voxel, uint8."""
    likeliest: Array = (1 + shares[1:].argmax(0)).astype(np.uint8)
    return likeliest

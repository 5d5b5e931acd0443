"""Intensity normalisation of one case: components of `preprocess.normalise`.

Each takes and returns a dict with "image" (C, I, J, K) float32 and, where the data has a region of
interest, "mask" (I, J, K) bool. Statistics are of each channel by itself.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from medseg.registry import TRANSFORMS
from medseg.volumes.image import Array

Sample = dict[str, Any]
Region = Literal["all", "nonzero", "mask"]


@TRANSFORMS.register("zscore")
class ZScore:
    """Zero mean and unit variance.

    Args:
        region: Voxels that the statistics are of: all, those that are not 0, or the data's mask
            (all, where a case has none). Outside the region a voxel becomes 0.
        clip: Percentiles of the region to clip to first, e.g. `(0.5, 99.5)`.
    """

    def __init__(self, region: Region = "all", clip: tuple[float, float] | None = None) -> None:
        self.region, self.clip = region, clip

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        image = np.stack([self._channel(c, data.get("mask")) for c in data["image"]])
        return {**data, "image": image}

    def _channel(self, channel: Array, mask: Array | None) -> Array:
        inside = _region(channel, self.region, mask)
        values = channel[inside]
        if values.size == 0:
            return np.zeros_like(channel)
        if self.clip is not None:
            channel = np.clip(channel, *np.percentile(values, self.clip))
            values = channel[inside]
        mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        scaled = (channel - mean) / max(deviation, 1e-6)
        result: Array = np.where(inside, scaled, 0).astype(np.float32)
        return result


@TRANSFORMS.register("window")
class Window:
    """Clip to a fixed range and map it to -1..1: Hounsfield windows of CT, SUV ranges of PET.

    Args:
        low: Value that becomes -1.
        high: Value that becomes 1.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(f"low {low} must be below high {high}")
        self.low, self.high = low, high

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        clipped = np.clip(data["image"], self.low, self.high)
        scaled = (clipped - self.low) * (2 / (self.high - self.low)) - 1
        return {**data, "image": scaled.astype(np.float32)}


@TRANSFORMS.register("percentiles")
class Percentiles:
    """Map two percentiles of a region to 0 and 1, and clip what lies beyond.

    Args:
        low: Percentile that becomes 0.
        high: Percentile that becomes 1.
        region: Voxels that the percentiles are of.
    """

    def __init__(self, low: float = 1.0, high: float = 99.0, region: Region = "all") -> None:
        if not 0 <= low < high <= 100:
            raise ValueError(f"0 <= low < high <= 100 expected, got {low} and {high}")
        self.low, self.high, self.region = low, high, region

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        image = np.stack([self._channel(c, data.get("mask")) for c in data["image"]])
        return {**data, "image": image}

    def _channel(self, channel: Array, mask: Array | None) -> Array:
        values = channel[_region(channel, self.region, mask)]
        if values.size == 0:
            return np.zeros_like(channel)
        low, high = np.percentile(values, (self.low, self.high))
        scaled: Array = np.clip((channel - low) / max(high - low, 1e-6), 0, 1)
        return scaled.astype(np.float32)


def _region(channel: Array, region: Region, mask: Array | None) -> Array:
    if region == "nonzero":
        return np.not_equal(channel, 0)
    if region == "mask" and mask is not None:
        return mask
    return np.ones(channel.shape, dtype=bool)

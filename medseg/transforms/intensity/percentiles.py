"""Ranges that a case's own percentiles give: mapped to 0..1, or only clipped to."""

from __future__ import annotations

import numpy as np

from medseg.registry import TRANSFORMS
from medseg.transforms.intensity.region import (
    Channels,
    Region,
    Sample,
    changed,
    check_percentiles,
    inside,
)
from medseg.volumes.image import Array


@TRANSFORMS.register("percentiles")
class Percentiles:
    """Map two percentiles of a region to 0 and 1, and clip what lies beyond.

    Args:
        low: Percentile that becomes 0.
        high: Percentile that becomes 1.
        region: Voxels that the percentiles are of: all, those that are not 0, or the region of
            interest (all, where a case has none). Those outside are mapped and clipped alike.
        channels: Channels that are changed, from 0; None: all.
    """

    def __init__(
        self,
        low: float = 1.0,
        high: float = 99.0,
        region: Region = "all",
        channels: tuple[int, ...] | None = None,
    ) -> None:
        check_percentiles(low, high)
        self.low, self.high, self.region = low, high, region
        self.channels: Channels = channels

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        return changed(data, self.channels, lambda _, c: self._channel(c, data))

    def _channel(self, channel: Array, data: Sample) -> Array:
        values = channel[inside(channel, data, self.region)]
        if values.size == 0:
            return np.zeros_like(channel)
        low, high = np.percentile(values, (self.low, self.high))
        scaled: Array = np.clip((channel - low) / max(high - low, 1e-6), 0, 1)
        return scaled


@TRANSFORMS.register("clip_percentiles")
class ClipPercentiles:
    """Clip to two percentiles of a region, and leave the scale as it is.

    Args:
        low: Percentile of the least value that stays.
        high: Percentile of the greatest.
        region: Voxels that the percentiles are of, as for `percentiles`; all are clipped.
        channels: Channels that are changed, from 0; None: all.
    """

    def __init__(
        self,
        low: float = 0.5,
        high: float = 99.5,
        region: Region = "all",
        channels: tuple[int, ...] | None = None,
    ) -> None:
        check_percentiles(low, high)
        self.low, self.high, self.region = low, high, region
        self.channels: Channels = channels

    def __call__(self, data: Sample) -> Sample:
        """Clip every channel."""
        return changed(data, self.channels, lambda _, c: self._channel(c, data))

    def _channel(self, channel: Array, data: Sample) -> Array:
        values = channel[inside(channel, data, self.region)]
        if values.size == 0:
            return channel
        clipped: Array = np.clip(channel, *np.percentile(values, (self.low, self.high)))
        return clipped

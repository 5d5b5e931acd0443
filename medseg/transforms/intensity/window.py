"""Fixed windows of calibrated images: Hounsfield units of CT, SUV of PET."""

from __future__ import annotations

import numpy as np

from medseg.registry import TRANSFORMS
from medseg.transforms.intensity.region import Channels, Sample, changed
from medseg.volumes.image import Array


@TRANSFORMS.register("window")
class Window:
    """Clip to a fixed range and map it to -1..1: Hounsfield windows of CT, SUV ranges of PET.

    A window of centre L and width W reaches from L - W/2 to L + W/2. Those of CT that have a name
    are presets: `ct_brain`, `ct_stroke` and so on.

    Args:
        low: Value that becomes -1.
        high: Value that becomes 1.
        channels: Channels that are changed, from 0; None: all.
    """

    def __init__(self, low: float, high: float, channels: tuple[int, ...] | None = None) -> None:
        if not low < high:
            raise ValueError(f"low {low} must be below high {high}")
        self.low, self.high = low, high
        self.channels: Channels = channels

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        return changed(data, self.channels, lambda _, c: self._channel(c))

    def _channel(self, channel: Array) -> Array:
        clipped = np.clip(channel, self.low, self.high)
        scaled: Array = (clipped - self.low) * (2 / (self.high - self.low)) - 1
        return scaled


# In HU. Centre and width as Radiopaedia lists them ("Windowing (CT)", article 52108); where it
# gives a range (subdural: centre 50 to 100, width 130 to 300), one from within.
TRANSFORMS.preset("ct_brain", "window", low=0.0, high=80.0)  # L 40, W 80
TRANSFORMS.preset("ct_stroke", "window", low=20.0, high=60.0)  # L 40, W 40
TRANSFORMS.preset("ct_subdural", "window", low=-20.0, high=180.0)  # L 80, W 200
TRANSFORMS.preset("ct_bone", "window", low=-500.0, high=1300.0)  # L 400, W 1800
TRANSFORMS.preset("ct_lung", "window", low=-1350.0, high=150.0)  # L -600, W 1500
TRANSFORMS.preset("ct_mediastinum", "window", low=-125.0, high=225.0)  # L 50, W 350
TRANSFORMS.preset("ct_soft_tissue", "window", low=-150.0, high=250.0)  # L 50, W 400
TRANSFORMS.preset("ct_liver", "window", low=-45.0, high=105.0)  # L 30, W 150

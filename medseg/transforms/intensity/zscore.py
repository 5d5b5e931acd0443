"""Zero mean and unit variance: whitening."""

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


@TRANSFORMS.register("zscore")
class ZScore:
    """Zero mean and unit variance; with `region: mask` what NiftyNet and DLTK call whitening.

    DeepMedic's inputs (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004), as those of its
    published weights: `region: mask` (or nonzero, skull-stripped), `trim: [5, 95]`.

    Args:
        region: Voxels that the statistics are of: all, those that are not 0, or the region of
            interest (all, where a case has none). Outside the region a voxel becomes 0.
        clip: Percentiles of the region to clip to first, e.g. `(0.5, 99.5)`.
        trim: Percentiles of the region between which, bounds included, voxels count for mean and
            deviation, e.g. `(5, 95)`; those beyond are scaled with the others, and not clipped.
        channels: Channels that are changed, from 0; None: all.
    """

    def __init__(
        self,
        region: Region = "all",
        clip: tuple[float, float] | None = None,
        trim: tuple[float, float] | None = None,
        channels: tuple[int, ...] | None = None,
    ) -> None:
        for name, pair in (("clip: ", clip), ("trim: ", trim)):
            if pair is not None:
                check_percentiles(*pair, name)
        self.region, self.clip, self.trim = region, clip, trim
        self.channels: Channels = channels

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel."""
        return changed(data, self.channels, lambda _, c: self._channel(c, data))

    def _channel(self, channel: Array, data: Sample) -> Array:
        within = inside(channel, data, self.region)
        values = channel[within]
        if values.size == 0:
            return np.zeros_like(channel)
        if self.clip is not None:
            channel = np.clip(channel, *np.percentile(values, self.clip))
            values = channel[within]
        if self.trim is not None:
            low, high = np.percentile(values, self.trim)
            kept = values[(values >= low) & (values <= high)]
            values = kept if kept.size else values  # rounding may leave none of equal values
        mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        scaled = (channel - mean) / max(deviation, 1e-6)
        result: Array = np.where(within, scaled, 0)
        return result

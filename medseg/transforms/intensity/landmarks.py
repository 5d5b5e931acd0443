"""Histogram landmarks: MR intensities of any scanner on one scale, learnt from the training cases.

Nyul and Udupa 1999, doi:10.1002/(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M; Nyul, Udupa
and Zhang 2000, doi:10.1109/42.836373.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import PluginError
from medseg.registry import TRANSFORMS
from medseg.transforms.intensity.region import (
    Channels,
    Region,
    Sample,
    changed,
    check_channels,
    check_percentiles,
    inside,
)
from medseg.volumes.image import Array


@TRANSFORMS.register("histogram_landmarks")
class HistogramLandmarks:
    """Bend each channel's histogram so that its percentiles lie where those of training cases do.

    Learning, a case's range between the cutoffs is mapped linearly to the scale, and where its
    percentiles fall there is averaged over the cases. A case whose channel is constant does not
    count. Applied, a case's own percentiles are mapped to these averages, linearly in between; the
    first and the last piece go on beyond the cutoffs. Percentiles that are equal are one landmark,
    which takes the place of the highest; a constant channel becomes 0.

    The percentiles are those of NiftyNet (Gibson et al. 2018, doi:10.1016/j.cmpb.2018.01.025),
    which learns all of them and applies one of three sets: `landmarks: [25, 50, 75]`, the deciles
    or `[50]`.

    Args:
        cutoff: Least and greatest percentile that count.
        landmarks: Percentiles between them, rising.
        region: Voxels that the percentiles are of: all, those that are not 0, or the region of
            interest (all, where a case has none). Outside the region a voxel becomes 0.
        scale: What the cutoffs of training cases are mapped to.
        channels: Channels that are changed, from 0; None: all.
    """

    def __init__(
        self,
        cutoff: tuple[float, float] = (1.0, 99.0),
        landmarks: tuple[float, ...] = (
            10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 90.0,
        ),
        region: Region = "nonzero",
        scale: tuple[float, float] = (0.0, 100.0),
        channels: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        check_percentiles(*cutoff, "cutoff: ")
        self.percentiles = [cutoff[0], *landmarks, cutoff[1]]
        if not (np.diff(self.percentiles) > 0).all():
            raise ValueError(f"landmarks {list(landmarks)} must rise within the cutoffs {cutoff}")
        if not scale[0] < scale[1]:
            raise ValueError(f"scale {scale}: the first must be below the second")
        self.region, self.scale = region, scale
        self.channels: Channels = channels
        self._options = (cutoff, landmarks, region, scale, channels)
        self._learnt: list[Array | None] | None = None

    def fit(self, samples: Iterable[Sample]) -> dict[str, Any]:
        """Learn where the landmarks lie on the scale.

        Args:
            samples: The training cases, as the transform will see them.

        Returns:
            "percentiles", "region" and "scale" as asked for, and for each channel "landmarks": a
            value of the scale for each percentile, or None where the channel is not to be changed.

        Raises:
            ValueError: A channel is constant in all cases.
        """
        found: list[list[Array]] = []
        for sample in samples:
            image = sample["image"]
            check_channels(self.channels, len(image))
            found = found or [[] for _ in image]
            for n in self._wanted(len(image)):
                on_scale = self._on_scale(self._percentiles(image[n], sample))
                found[n] += [] if on_scale is None else [on_scale]
        for n in self._wanted(len(found)):
            if not found[n]:
                raise ValueError(
                    f"channel {n} (from 0) is constant within the region in all training cases: "
                    "there is nothing to learn; mend the images, or leave it out of `channels`"
                )
        means = [np.mean(known, axis=0).tolist() if known else None for known in found]
        known = {"region": self.region, "scale": list(self.scale)}
        return {"percentiles": self.percentiles, **known, "landmarks": means}

    def use(self, values: Mapping[str, Any]) -> HistogramLandmarks:
        """The same transform, with what `fit` gave.

        Raises:
            ValueError: It is of other percentiles, region or scale, or broken.
        """
        if list(values["percentiles"]) != self.percentiles:
            raise ValueError(f"learnt at {values['percentiles']}, asked for {self.percentiles}")
        for name, mine in (("region", self.region), ("scale", list(self.scale))):
            if values[name] != mine:
                raise ValueError(f"learnt with {name} {values[name]}, asked for {mine}")
        learnt = [
            None if given is None else self._checked(np.asarray(given, dtype=np.float64))
            for given in values["landmarks"]
        ]
        lacking = [n for n in self._wanted(len(learnt)) if n >= len(learnt) or learnt[n] is None]
        if lacking:
            raise ValueError(f"nothing was learnt of channels {lacking}, which count from 0")
        other = HistogramLandmarks(*self._options)
        other._learnt = learnt
        return other

    def __call__(self, data: Sample) -> Sample:
        """Normalise every channel.

        Raises:
            PluginError: Nothing has been learnt yet.
        """
        learnt = self._learnt
        if learnt is None:
            raise PluginError(
                "histogram_landmarks has learnt nothing yet: training fits it, "
                "and stores the landmarks with the model"
            )
        return changed(data, self.channels, lambda n, c: self._channel(c, learnt[n], data))

    def _wanted(self, count: int) -> Sequence[int]:
        return range(count) if self.channels is None else self.channels

    def _percentiles(self, channel: Array, sample: Sample) -> Array | None:
        """The landmarks of a case's channel in its own intensities; None: it is constant."""
        values = channel[inside(channel, sample, self.region)]
        if values.size == 0:
            return None
        found: Array = np.percentile(values.astype(np.float64), self.percentiles)
        return found if found[0] < found[-1] else None

    def _on_scale(self, percentiles: Array | None) -> Array | None:
        if percentiles is None:
            return None
        low, high = self.scale
        share: Array = (percentiles - percentiles[0]) / (percentiles[-1] - percentiles[0])
        return low + share * (high - low)

    def _checked(self, landmarks: Array) -> Array:
        if landmarks.shape != (len(self.percentiles),) or not (np.diff(landmarks) >= 0).all():
            raise ValueError(f"{len(self.percentiles)} rising values expected, got {landmarks}")
        return landmarks

    def _channel(self, channel: Array, learnt: Array | None, data: Sample) -> Array:
        own = self._percentiles(channel, data)
        if own is None or learnt is None:
            return np.zeros_like(channel)
        is_last = np.append(np.diff(own) > 0, True)  # of percentiles that are equal
        mapped = _piecewise(channel.astype(np.float64), own[is_last], learnt[is_last])
        result: Array = np.where(inside(channel, data, self.region), mapped, 0)
        return result


def _piecewise(values: Array, places: Array, targets: Array) -> Array:
    """Map places to targets, linearly in between and on beyond; at least two places, rising."""
    piece = np.searchsorted(places[1:-1], values, side="right")
    slopes = np.diff(targets) / np.diff(places)
    mapped: Array = targets[piece] + slopes[piece] * (values - places[piece])
    return mapped

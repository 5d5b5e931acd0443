"""What the intensity transforms share: the channels they change, and the voxels they go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from medseg.errors import ConfigError
from medseg.volumes.image import Array

Sample = dict[str, Any]
Region = Literal["all", "nonzero", "mask"]
Channels = tuple[int, ...] | None


def changed(data: Sample, channels: Channels, change: Callable[[int, Array], Array]) -> Sample:
    """The same sample with some of its channels changed.

    Args:
        data: A sample; it stays as it is.
        channels: Those to change, from 0; None: all.
        change: Takes the number and the values (I, J, K) of a channel, and gives new values.

    Raises:
        ConfigError: The image lacks one of them.
    """
    image = data["image"]
    check_channels(channels, len(image))
    wanted = range(len(image)) if channels is None else channels
    out = [change(n, c) if n in wanted else c for n, c in enumerate(image)]
    return {**data, "image": np.stack(out).astype(np.float32, copy=False)}


def check_channels(channels: Channels, count: int) -> None:
    """Refuse channels that an image of `count` does not have.

    Raises:
        ConfigError: It lacks one of them.
    """
    lacking = [n for n in channels or () if not 0 <= n < count]
    if lacking:
        raise ConfigError(f"channels {lacking} of {count}: they count from 0")


def inside(channel: Array, data: Sample, region: Region) -> Array:
    """Which voxels (I, J, K) of a channel a region holds; a sample without a mask: all of them."""
    mask: Array | None = data.get("mask")
    if region == "nonzero":
        return np.not_equal(channel, 0)
    if region == "mask" and mask is not None:
        return mask
    return np.ones(channel.shape, dtype=bool)


def check_percentiles(low: float, high: float, what: str = "") -> None:
    """Refuse what are no two percentiles in order.

    Raises:
        ValueError: They are not; the message begins with `what`.
    """
    if not 0 <= low < high <= 100:
        raise ValueError(f"{what}0 <= low < high <= 100 expected, got {low} and {high}")

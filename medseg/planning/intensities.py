"""What is done to intensities, by modality, and the region that the statistics are of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from medseg.planning import rules
from medseg.planning.choice import Choice, Choices
from medseg.planning.fingerprint import ChannelPrint, Fingerprint


@dataclass(frozen=True)
class Region:
    """A region of interest.

    Args:
        mask: `preprocess.mask`.
        is_there: Whether there is a region at all.
        holds_labels: Whether it holds all labels, or so nearly all that patches may keep to it.
        why: How it was chosen.
    """

    mask: str | None
    is_there: bool
    holds_labels: bool
    why: str


def region(fingerprint: Fingerprint) -> Region:
    """The region of interest of a data set: its masks, or what differs from a blank background."""
    told = f"{fingerprint.blank:.0%} of the median volume"
    holds = fingerprint.outside <= rules.OUTSIDE
    if fingerprint.masked == fingerprint.cases:
        return Region(None, True, holds, f"each case has a mask; {told} lies outside it")
    if any(channel.modality == "ct" for channel in fingerprint.channels):
        return Region(
            None, False, False, "CT is normalised by a fixed window, which needs no region"
        )
    if fingerprint.blank < rules.STRIPPED:
        return Region(None, False, False, f"{told} is blank: the background is no single value")
    rule = "nonzero" if fingerprint.is_corner_zero else "not_corner"
    value = "0" if fingerprint.is_corner_zero else "the value of its first voxel"
    return Region(rule, True, holds, f"{told} is {value}: a background without an image")


def choices(fingerprint: Fingerprint) -> Choices:
    """Normalisation and the strength of changes of intensity."""
    found = region(fingerprint)
    channels = fingerprint.channels
    made: Choices = {
        "preprocess.mask": Choice(found.mask, found.why),
        "preprocess.normalise": _normalise(channels, found),
    }
    if all(channel.modality == "ct" for channel in channels):
        why = "a Hounsfield unit means the same everywhere, so that changes are small"
        for key, value in rules.WINDOWED.items():
            made[f"augment.{key}"] = Choice(value, why if key == "brightness" else "")
    return made


def _normalise(channels: tuple[ChannelPrint, ...], found: Region) -> Choice:
    entries: list[dict[str, Any]] = []
    whys: list[str] = []
    plain = [n for n, channel in enumerate(channels) if channel.modality == "other"]
    for n, channel in enumerate(channels):
        if channel.modality != "other":
            low, high, why = _window(channel)
            entries.append({"name": "window", "low": low, "high": high, "channels": [n]})
            whys.append(f"{channel.name}: {why}")
    if plain:
        where = {"region": "mask"} if found.is_there else {}
        entries.append({"name": "zscore", **where, "channels": plain})
        names = ", ".join(channels[n].name for n in plain)
        inside = " inside the region of interest" if found.is_there else ""
        whys.append(f"{names}: no unit, so mean 0 and deviation 1 of each case{inside}")
    if len(entries) == 1:
        del entries[0]["channels"]
    return Choice(entries, "; ".join(whys))


def _window(channel: ChannelPrint) -> tuple[float, float, str]:
    """The window of a channel whose numbers have a unit: low, high, why."""
    inside = channel.foreground or channel.everywhere
    percentiles = inside.percentiles
    if channel.modality == "ct":
        low, high = (percentiles[percent] for percent in rules.CT_PERCENTS)
        step = rules.CT_STEP
        why = (
            f"CT by its {channel.told_by}; {rules.CT_PERCENTS[0]:g} % of labelled voxels lie below "
            f"{low:.0f} HU and above {high:.0f} HU"
        )
        return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, why
    high = percentiles[rules.PET_PERCENT]
    top = float(max(rules.PET_LEAST, math.ceil(high)))
    why = (
        f"PET by its {channel.told_by}; {100 - rules.PET_PERCENT:g} % of labelled voxels lie above "
        f"{high:.1f} SUV, their median is {percentiles[50.0]:.1f}"
    )
    return 0.0, top, why

"""What a data set is like, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medseg.planning.words import Modality

Triple = tuple[float, float, float]
PERCENTS = (0.5, 5.0, 50.0, 95.0, 99.0, 99.5)
_LEAST_FOR_SIDES = 5  # cases from which it can be seen that one class always lies above another


@dataclass(frozen=True)
class Intensities:
    """Of voxels sampled evenly from all cases: percentiles by percent, mean, deviation."""

    percentiles: dict[float, float]
    mean: float
    sd: float


@dataclass(frozen=True)
class ChannelPrint:
    """One channel over all cases.

    Args:
        name: The channel.
        modality: "ct" or "pet", whose numbers have a unit, or "other".
        told_by: Whether its name or its values told so.
        everywhere: Intensities of whole volumes.
        foreground: Those of labelled voxels; None where nothing is labelled.
        zero: Median share of voxels that are exactly 0.
        negative: Median share of voxels below 0.
        is_whole: Whether all values of all cases are whole numbers.
        missing: Cases that lack it.
    """

    name: str
    modality: Modality
    told_by: str
    everywhere: Intensities
    foreground: Intensities | None
    zero: float
    negative: float
    is_whole: bool
    missing: int


@dataclass(frozen=True)
class ClassPrint:
    """One class over all cases.

    Args:
        name: The class.
        cases: That have it.
        share: Median share of the volume, over these.
        ml: Least, median and largest volume in mL, over these.
        count: Least, median and largest number of connected components, over these.
        size_mm3: 5th, 50th and 95th percentile of the components' volumes, of all cases together.
        mean_mm3: The mean of these volumes.
        single: Share of these cases in which it is one component.
    """

    name: str
    cases: int
    share: float
    ml: Triple
    count: Triple
    size_mm3: Triple
    mean_mm3: float
    single: float


@dataclass(frozen=True)
class Sides:
    """Where one class lies from another.

    Args:
        classes: The two.
        mm: From the second's centre to the first's, along R, A, S: the mean over cases that have
            both.
        spread: Its standard deviation, in mm.
        cases: That have both.
    """

    classes: tuple[str, str]
    mm: Triple
    spread: Triple
    cases: int

    def tells(self, axis: int, deviations: float) -> bool:
        """Whether an axis tells them apart: the mean is so many deviations from 0."""
        is_far = abs(self.mm[axis]) > deviations * self.spread[axis]
        return self.cases >= _LEAST_FOR_SIDES and is_far


@dataclass(frozen=True)
class Fingerprint:
    """A data set in figures. Axes are turned to R, A, S.

    Args:
        cases: How many were measured.
        shape: Least, median and largest number of voxels along each axis.
        spacing: Least, 10th percentile, median and largest voxel size along each axis, in mm.
        size_mm: Median and largest size of a volume along each axis.
        content_mm: The same of the bounding box of what is not blank.
        orientations: How many cases are stored with which axes.
        unplaced: Cases whose header does not say where the axes point.
        blank: Median share of voxels outside the region of interest; without one, of those that
            equal the volume's first one in all channels.
        is_corner_zero: Whether the volume's first voxel is 0 in all channels and cases.
        outside: Largest share of a case's labelled voxels that are blank.
        channels: Intensities.
        classes: Volumes and components.
        sides: Where classes lie from each other.
        label_values: Label value: number of cases that have it.
        masked: Cases that come with a region of interest.
    """

    cases: int
    shape: tuple[Triple, Triple, Triple]
    spacing: tuple[Triple, Triple, Triple, Triple]
    size_mm: tuple[Triple, Triple]
    content_mm: tuple[Triple, Triple]
    orientations: dict[str, int]
    unplaced: int
    blank: float
    is_corner_zero: bool
    outside: float
    channels: tuple[ChannelPrint, ...]
    classes: tuple[ClassPrint, ...]
    sides: tuple[Sides, ...]
    label_values: dict[int, int]
    masked: int

    def plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

"""The grid that the network sees: voxel size, crop, and what volumes come to on it."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.planning import rules
from medseg.planning.choice import Choice, Choices, by
from medseg.planning.fingerprint import Fingerprint, Triple


@dataclass(frozen=True)
class Grid:
    """A grid.

    Args:
        spacing: Voxel size in mm along R, A, S.
        size: Voxels of the median volume, after the crop.
        largest: Of the largest along each axis.
    """

    spacing: Triple
    size: Triple
    largest: Triple

    @property
    def largest_voxels(self) -> float:
        """Voxels of the largest volume."""
        i, j, k = self.largest
        return i * j * k


def choose(fingerprint: Fingerprint) -> tuple[Grid, Choices]:
    """The grid for a data set, and the choices for `preprocess`."""
    spacing, why = target(fingerprint)
    crop = cropped(fingerprint)
    median, largest = fingerprint.content_mm if crop.value == "foreground" else fingerprint.size_mm
    grid = Grid(spacing, _voxels(median, spacing), _voxels(largest, spacing))
    return grid, {
        "preprocess.orientation": _orientation(fingerprint),
        "preprocess.spacing": Choice(list(spacing), why),
        "preprocess.crop": crop,
    }


def target(fingerprint: Fingerprint) -> tuple[Triple, str]:
    """The voxel size in mm along R, A, S to resample to, and why."""
    least, tenth, median, largest = fingerprint.spacing
    count = f"{fingerprint.cases} cases"
    worst = max(range(3), key=lambda axis: median[axis])
    others = [median[axis] for axis in range(3) if axis != worst]
    times = median[worst] / max(others)
    if times > rules.THICK:
        thin = max(tenth[worst], *others)
        spacing = _rounded([thin if axis == worst else median[axis] for axis in range(3)])
        return spacing, (
            f"median of {count}, but along the slices' axis, which is {times:.2g} times coarser "
            f"than the others (more than {rules.THICK:g}): the {rules.THICK_PERCENTILE}th "
            "percentile there, so that thin slices lose little"
        )
    spacing = _rounded(median)
    if _rounded(least) == _rounded(largest):
        return spacing, f"all {count} have it, so that nothing is resampled but others to come"
    return spacing, f"median of {count}, which have {by(least)} to {by(largest)} mm"


def cropped(fingerprint: Fingerprint) -> Choice:
    """Whether to crop to what is not blank."""
    kept = _product(fingerprint.content_mm[0]) / _product(fingerprint.size_mm[0])
    if kept < rules.CROPPED:
        return Choice("foreground", f"what is not blank takes {kept:.0%} of the median volume")
    return Choice("none", f"what is not blank takes {kept:.0%} of the median volume already")


def _orientation(fingerprint: Fingerprint) -> Choice:
    stored = ", ".join(f"{code} {count}" for code, count in fingerprint.orientations.items())
    if fingerprint.unplaced:
        told = f"{fingerprint.unplaced} of {fingerprint.cases} headers do not say where axes point"
        return Choice(None, f"{told}: they are left as stored")
    return Choice("RAS", f"stored as {stored}: turned to one order, without interpolation")


def _voxels(size: Triple, spacing: Triple) -> Triple:
    i, j, k = (max(1.0, mm / step) for mm, step in zip(size, spacing, strict=True))
    return i, j, k


def _rounded(spacing: Triple | list[float]) -> Triple:
    i, j, k = (float(f"{mm:.4g}") for mm in spacing)
    return i, j, k


def _product(size: Triple) -> float:
    i, j, k = size
    return i * j * k

"""Where patches lie, and which axes may be mirrored."""

from __future__ import annotations

from math import prod

from medseg.planning import rules
from medseg.planning.choice import Choice, Choices
from medseg.planning.fingerprint import Fingerprint, Sides
from medseg.planning.grid import Grid
from medseg.planning.intensities import Region
from medseg.planning.network import Whole
from medseg.planning.words import are_sides

_AXES = ("LR", "AP", "IS")


def sampling(fingerprint: Fingerprint, grid: Grid, patch: Whole, region: Region) -> Choices:
    """The sampler, and whether patches and windows keep to the region of interest."""
    covered = prod(min(1.0, p / n) for p, n in zip(patch, grid.size, strict=True))
    share = max(found.share for found in fingerprint.classes)
    rarest = min(found.share for found in fingerprint.classes)
    made: Choices = {}
    if covered >= rules.WHOLE:
        why = f"a patch is {covered:.0%} of the median volume: it meets what is labelled anyway"
        made["train.sampler.name"] = Choice("balanced", why)
        made["train.sampler.foreground"] = Choice(0.0)
    else:
        told = (
            f"a patch is {covered:.1%} of the median volume, of which the commonest class takes "
            f"{share:.2%}"
        )
        if share > rules.RARE * rarest:
            why = f"{told} and the rarest {rarest:.3%}: each class gets as many patches"
            made["train.sampler.name"] = Choice("balanced", why)
            made["train.sampler.foreground"] = Choice(rules.LESION_SHARE)
        else:
            why = f"{told}: half of the patches are centred on it, half on background"
            made["train.sampler.name"] = Choice("lesion", why)
            made["train.sampler.share"] = Choice(rules.LESION_SHARE)
        why = "patches show more lesion than volumes have; a quarter of that is taken back"
        made["inference.prior_correction"] = Choice(rules.PRIOR_CORRECTION, why)
    if region.is_there:
        made |= _roi(fingerprint, region)
    return made


def deformation(grid: Grid) -> Choices:
    """How far training patches are deformed, in mm of this grid."""
    edge, thick = min(grid.spacing), max(grid.spacing)
    distance = max(rules.ELASTIC_GRID_VOXELS * edge, rules.ELASTIC_GRID_SLICES * thick)
    size, distance = (float(f"{mm:.2g}") for mm in (rules.ELASTIC_VOXELS * edge, distance))
    why = f"by up to {rules.ELASTIC_VOXELS:g} voxels of {edge:.3g} mm: shapes differ by as much"
    return {
        "augment.elastic": Choice(rules.ELASTIC, why),
        "augment.elastic_mm": Choice(size),
        "augment.elastic_grid_mm": Choice(distance),
    }


def flips(fingerprint: Fingerprint, grid: Grid) -> Choices:
    """Which axes are mirrored in training, and in prediction."""
    if fingerprint.unplaced:
        why = "where the axes point is not known of all cases, and mirroring by guess is none"
        return {"augment.flip": Choice([], why), "inference.flip": Choice([])}
    axes = list(_AXES)
    whys = []
    if are_sides([found.name for found in fingerprint.classes]):
        axes.remove("LR")
        whys.append("classes are named by their side: not LR")
    for axis in (1, 2):
        sides = next((s for s in fingerprint.sides if s.tells(axis, rules.APART)), None)
        if sides is not None:
            axes.remove(_AXES[axis])
            whys.append(_told(sides, axis))
    kept = "the body is nearly symmetric" if axes == ["LR"] else "no class is known by its place"
    why = "; ".join([*whys, f"{', '.join(axes) or 'none'}: {kept}"] if axes else whys)
    few = grid.largest_voxels <= rules.SMALL_VOLUME
    seen = axes if few else [axis for axis in axes if axis == "LR"]
    size = f"the largest volume has {grid.largest_voxels:,.0f} voxels on this grid"
    told = (
        f"{size}: every flip of training is quick" if few else f"{size}: each axis doubles the time"
    )
    return {"augment.flip": Choice(axes, why), "inference.flip": Choice(seen, told)}


def _told(sides: Sides, axis: int) -> str:
    one, other = sides.classes
    where = (("left of", "right of"), ("behind", "in front of"), ("below", "above"))[axis]
    return (
        f"not {_AXES[axis]}: {one} always lies {where[sides.mm[axis] > 0]} {other}, "
        f"{abs(sides.mm[axis]):.1f} mm with a deviation of {sides.spread[axis]:.1f} mm"
    )


def _roi(fingerprint: Fingerprint, region: Region) -> Choices:
    told = f"at most {fingerprint.outside:.2%} of a case's labelled voxels lie outside the region"
    why = f"{told}: nothing is lost" if region.holds_labels else f"{told}: they would be lost"
    return {
        "train.roi": Choice(region.holds_labels, why),
        "inference.roi": Choice(region.holds_labels),
    }

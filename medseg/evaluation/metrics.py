"""How well a predicted mask agrees with the truth, voxel by voxel and surface to surface."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from medseg.evaluation.surfaces import Mask, Spacing, surface_distances


@dataclass(frozen=True)
class Measures:
    """What `measure` finds out about one class of one case.

    Args:
        dice: 2 |P & T| / (|P| + |T|).
        iou: |P & T| / |P | T|.
        precision: |P & T| / |P|.
        recall: |P & T| / |T|.
        volume_ml: Predicted volume.
        truth_ml: True volume.
        volume_error_ml: Predicted minus true volume.
        relative_volume_error: The same over the true volume.
        hd95_mm: The larger of the two directed 95th percentiles of surface distance.
        assd_mm: Mean surface distance over both surfaces.
        nsd: Share of both surfaces within the tolerance.
    """

    dice: float
    iou: float
    precision: float
    recall: float
    volume_ml: float
    truth_ml: float
    volume_error_ml: float
    relative_volume_error: float
    hd95_mm: float
    assd_mm: float
    nsd: float


MEASURES = tuple(field.name for field in fields(Measures))


def measure(prediction: Mask, truth: Mask, spacing: Spacing, tolerance_mm: float) -> Measures:
    """Compare two masks.

    Two empty masks agree: the ratios are 1 and the distances 0. To say "nothing here" of a healthy
    case is right, and leaving such cases out would hide the false alarms of a rival.
    One empty mask is the worst case: the ratios are 0 and the distances infinite, for no distance
    in mm could be compared between volumes of different size. The relative volume error is infinite
    where the truth alone is empty. Infinite values are written as null and left out of means, whose
    count says so.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        spacing: Voxel size in mm, (i, j, k).
        tolerance_mm: Greatest surface distance that counts as agreement in `nsd`, in mm.

    Raises:
        ValueError: The masks differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"a prediction of {prediction.shape} voxels, a truth of {truth.shape}")
    box = bounding_box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    predicted, true = int(prediction.sum()), int(truth.sum())
    common = int((prediction & truth).sum())
    hd95, assd, nsd = _surface_measures(prediction, truth, spacing, tolerance_mm)
    millilitre = float(np.prod(spacing)) / 1000
    return Measures(
        dice=ratio(2 * common, predicted + true),
        iou=ratio(common, predicted + true - common),
        precision=ratio(common, predicted, empty=float(not true)),
        recall=ratio(common, true, empty=float(not predicted)),
        volume_ml=predicted * millilitre,
        truth_ml=true * millilitre,
        volume_error_ml=(predicted - true) * millilitre,
        relative_volume_error=ratio(
            predicted - true, true, empty=float("inf") if predicted else 0.0
        ),
        hd95_mm=hd95,
        assd_mm=assd,
        nsd=nsd,
    )


def ratio(part: int, whole: int, empty: float = 1.0) -> float:
    """`part / whole`, or `empty` where there is no whole."""
    return part / whole if whole else empty


def bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box around a mask's voxels; a box of nothing around none."""
    return _extent(mask, 0), _extent(mask, 1), _extent(mask, 2)


def _extent(mask: Mask, axis: int) -> slice:
    others = tuple(other for other in range(3) if other != axis)
    places = np.flatnonzero(mask.any(axis=others))
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _surface_measures(
    prediction: Mask, truth: Mask, spacing: Spacing, tolerance_mm: float
) -> tuple[float, float, float]:
    if not prediction.any() and not truth.any():
        return 0.0, 0.0, 1.0
    if not prediction.any() or not truth.any():
        return float("inf"), float("inf"), 0.0
    distances = surface_distances(prediction, truth, spacing)
    return distances.hausdorff(95), distances.average(), distances.within(tolerance_mm)

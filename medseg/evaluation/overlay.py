"""One case as a picture: three planes through its largest error, truth and prediction outlined.

Where an earlier prediction is given too, the planes go through the largest change instead.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel import orientations

from medseg.evaluation.lesions import components
from medseg.evaluation.metrics import bounding_box
from medseg.evaluation.surfaces import Mask

Plane = tuple[str, int, tuple[str, str, str, str]]

TRUTH_COLOUR = "#f5a623"  # orange and sky blue stay apart in all common colour vision deficiencies
PREDICTION_COLOUR = "#4db8ff"
BEFORE_COLOUR = "#ff66d4"  # between the two in hue, and dashed
PLANES: tuple[Plane, ...] = (  # name, axis it cuts, letters at left, right, top, bottom
    ("axial", 2, ("R", "L", "A", "P")),
    ("coronal", 1, ("R", "L", "S", "I")),
    ("sagittal", 0, ("A", "P", "S", "I")),
)
LINES: tuple[dict[str, Any], ...] = (  # thin ones on top: all show where they agree
    {"colors": [TRUTH_COLOUR], "linewidths": 3.2},
    {"colors": [PREDICTION_COLOUR], "linewidths": 1.3},
    {"colors": [BEFORE_COLOUR], "linewidths": 1.6, "linestyles": "dashed"},
)
WIDTH_INCH = 9.6
MARGIN_MM = 12.0
WINDOW = (1.0, 99.5)


@dataclass(frozen=True, eq=False)
class CaseView:
    """What a picture of a case needs.

    Args:
        case_id: The case.
        image: One channel, (I, J, K).
        prediction: Label values, 0 is background, (I, J, K).
        truth: The same.
        affine: (4, 4), voxel index (i, j, k) to RAS+ millimetres.
        before: An earlier prediction to compare with, as `prediction`; None: there is none.
    """

    case_id: str
    image: npt.NDArray[Any]
    prediction: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    before: npt.NDArray[Any] | None = None


def draw(view: CaseView) -> bytes:
    """Draw a case as a PNG.

    Each plane is the slice with most voxels of the largest connected error (with an earlier
    prediction: of the largest connected change; without either: of the truth), cut to the
    surroundings of the masks, in true proportions. The patient's right is on the left of the
    picture, as radiologists read it. Oblique volumes are shown along the axes of their voxels, with
    the letters of the nearest patient axes.
    """
    from matplotlib.figure import Figure

    view, spacing = upright(view)
    place = largest_error(view.prediction, view.truth if view.before is None else view.before)
    masks = (view.prediction != 0) | (view.truth != 0)
    if view.before is not None:
        masks |= view.before != 0
    box = _surroundings(masks, place, spacing)
    window = _window(view.image[box])
    shapes = [_width_by_height(box, spacing, axis) for _, axis, _ in PLANES]
    height = min(WIDTH_INCH / sum(shapes), 4.2)  # equal heights fill the width
    figure = Figure(figsize=(WIDTH_INCH, height + 0.3), facecolor="black")
    grid = figure.subplots(1, 3, width_ratios=shapes)
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.01, top=height / (height + 0.3), wspace=0.02
    )
    for axes, (name, axis, letters) in zip(grid, PLANES, strict=True):
        _draw_plane(axes, view, spacing, (axis, place[axis], box), window)
        _annotate(axes, name, letters)
    return _png(figure)


def upright(view: CaseView) -> tuple[CaseView, npt.NDArray[np.float64]]:
    """Turn a case to the nearest RAS axes without resampling; return it and its spacing in mm."""
    turn = orientations.io_orientation(view.affine)
    image, prediction, truth = (
        orientations.apply_orientation(volume, turn)
        for volume in (view.image, view.prediction, view.truth)
    )
    before = view.before
    if before is not None:
        before = orientations.apply_orientation(before, turn)
    affine = view.affine @ orientations.inv_ornt_aff(turn, view.image.shape)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return CaseView(view.case_id, image, prediction, truth, affine, before), spacing


def largest_error(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> tuple[int, ...]:
    """The slice per axis with most voxels of the largest connected error.

    Without an error: of the truth; without any truth: the middle of the volume.
    """
    wrong: Mask = prediction != truth
    shown = wrong if wrong.any() else truth != 0
    if not shown.any():
        return tuple(size // 2 for size in truth.shape)
    labels, _ = components(shown, 26)
    largest = labels == np.bincount(labels[shown]).argmax()
    return tuple(int(largest.sum(axis=other_axes(axis)).argmax()) for axis in range(3))


def other_axes(axis: int) -> tuple[int, int]:
    """The two axes of the plane that cuts `axis`, horizontal first."""
    first, second = (other for other in range(3) if other != axis)
    return first, second


def _surroundings(
    masks: Mask, place: tuple[int, ...], spacing: npt.NDArray[np.float64]
) -> tuple[slice, ...]:
    """A box around the masks and the place, with a margin, at least a third of the volume wide."""
    box = []
    for axis, around in enumerate(bounding_box(masks)):
        size = masks.shape[axis]
        start, stop = (around.start, around.stop) if masks.any() else (place[axis], place[axis])
        margin = max(MARGIN_MM / spacing[axis], (size / 3 - (stop - start)) / 2)
        box.append(slice(max(0, round(start - margin)), min(size, round(stop + margin))))
    return tuple(box)


def _window(image: npt.NDArray[Any]) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def _size(box: tuple[slice, ...], spacing: npt.NDArray[np.float64], axis: int) -> float:
    return float((box[axis].stop - box[axis].start) * spacing[axis])


def _width_by_height(box: tuple[slice, ...], spacing: npt.NDArray[np.float64], axis: int) -> float:
    across, up = other_axes(axis)
    return _size(box, spacing, across) / _size(box, spacing, up)


def _draw_plane(
    axes: Any,
    view: CaseView,
    spacing: npt.NDArray[np.float64],
    cut: tuple[int, int, tuple[slice, ...]],
    window: tuple[float, float],
) -> None:
    axis, index, box = cut
    across, up = other_axes(axis)
    place: tuple[slice | int, ...] = tuple(index if a == axis else box[a] for a in range(3))
    extent = (0, _size(box, spacing, across), 0, _size(box, spacing, up))
    axes.set_facecolor("black")
    axes.imshow(
        view.image[place].T, cmap="gray", vmin=window[0], vmax=window[1], extent=extent,
        origin="lower", interpolation="nearest", aspect="equal",
    )  # fmt: skip
    for labels, line in zip((view.truth, view.prediction, view.before), LINES, strict=True):
        if labels is not None:
            _outline(axes, labels[place].T, (spacing[across], spacing[up]), line)
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    axes.invert_xaxis()  # x grows to the patient's left side of the picture: right, or back
    axes.spines[:].set_visible(False)


def _outline(
    axes: Any, labels: npt.NDArray[Any], spacing: tuple[float, float], line: dict[str, Any]
) -> None:
    padded = np.pad(labels, 1)  # a mask at the edge is closed there
    down, across = (np.arange(size) - 0.5 for size in padded.shape)
    for value in np.unique(labels[labels != 0]):
        axes.contour(across * spacing[0], down * spacing[1], padded == value, levels=[0.5], **line)


def _annotate(axes: Any, name: str, letters: tuple[str, str, str, str]) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="black")]  # readable on bright tissue too
    axes.set_title(name, color="#c8ccd2", fontsize=10, pad=4)
    style = {"color": "white", "fontsize": 9, "transform": axes.transAxes, "path_effects": halo}
    for letter, x, y in zip(letters, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.98, 0.02), strict=True):
        horizontal = "left" if x < 0.1 else "right" if x > 0.9 else "center"
        vertical = "bottom" if y < 0.1 else "top" if y > 0.9 else "center"
        axes.text(x, y, letter, ha=horizontal, va=vertical, **style)
    _scale_bar(axes, halo)


def _scale_bar(axes: Any, halo: list[Any]) -> None:
    """A bar of a round length, at most a third of the width, at the lower right."""
    low, high = sorted(axes.get_xlim())
    bottom, top = axes.get_ylim()
    length = max((mm for mm in (5, 10, 20, 50, 100) if mm <= (high - low) / 3), default=2)
    start, y = low + 0.04 * (high - low), bottom + 0.04 * (top - bottom)
    axes.plot([start, start + length], [y, y], color="white", linewidth=1.6, path_effects=halo)
    axes.text(
        start + length / 2, y + 0.015 * (top - bottom), f"{length} mm",
        color="white", fontsize=7, ha="center", va="bottom", path_effects=halo,
    )  # fmt: skip


def _png(figure: Any) -> bytes:
    """Save with a palette of 256 colours: a third of the size, and no difference to the eye."""
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=110)
    with Image.open(full) as picture:
        picture.convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()

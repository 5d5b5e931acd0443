"""From a case as stored to what a network sees, and a prediction's way back.

The steps are: find the region of interest, orient the axes, crop, resample, normalise. Those that
move voxels are recorded in a `Route`, which takes class probabilities to the input's grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medseg import plugins
from medseg.config.schema import Preprocess
from medseg.errors import DataError, PluginError
from medseg.transforms import foreground
from medseg.transforms.fitted import Fitted, build
from medseg.transforms.route import Box, Route, Shape, resample
from medseg.volumes.geometry import Reorient, voxel_size
from medseg.volumes.image import Array
from medseg.volumes.load import LoadedCase

Spacing = tuple[float, float, float]
Sample = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on the network's grid.

    Args:
        image: (C, I, J, K) float32.
        label: (I, J, K) uint8 class indices, if the case has a label.
        spacing: Voxel size in mm.
        route: The way back.
        mask: (I, J, K) bool, the region of interest, if there is one; never empty.
        region: The same on the input's grid.
        weights: (I, J, K) float32, where patches are drawn, if the case has such a map.
        missing: The numbers of the channels that are missing, and 0 all over, from 0.
    """

    image: Array
    label: Array | None
    spacing: Spacing
    route: Route
    mask: Array | None = None
    region: Array | None = None
    weights: Array | None = None
    missing: tuple[int, ...] = ()


class Preprocessor:
    """`preprocess` of a config, ready to apply.

    Args:
        settings: The section.
        spacing: Voxel size in mm to resample to, if the settings ask for any ("median" resolved).
        references: Plugins that the intensity transforms may come from.
        channels: Names of the input's channels, in order; empty: not known.
        fitted: What transforms learnt from the training cases; None: nothing yet.

    Raises:
        ConfigError: A transform refuses its options or the channels.
        DataError: What was learnt is of other channels or options, or is missing.
    """

    def __init__(
        self,
        settings: Preprocess,
        spacing: Spacing | None,
        references: Sequence[str] = (),
        *,
        channels: Sequence[str] = (),
        fitted: Fitted | None = None,
    ) -> None:
        plugins.load(references)
        self.settings, self.spacing, self.references = settings, spacing, tuple(references)
        self.fitted = fitted
        self._normalise = build(settings.normalise, channels, fitted)

    def __call__(self, case: LoadedCase, scale: float = 1.0) -> Prepared:
        """Prepare one case.

        Args:
            case: As loaded.
            scale: How many times more voxels an axis gets than the settings say.

        Raises:
            DataError: Nothing is left within its region of interest.
        """
        case = foreground.with_mask(case, self.settings.mask)
        affine, shape = case.reference.affine, case.reference.shape
        reorient = Reorient.to(affine, self.settings.orientation)
        image, label, mask, weights = (
            None if a is None else reorient.apply(a)
            for a in (case.image, case.label, case.mask, case.weights)
        )
        assert image is not None
        box = _box(image, mask) if self.settings.crop == "foreground" else _everything(image)
        image = image[(slice(None), *box)]
        label, mask, weights = (None if a is None else a[box] for a in (label, mask, weights))
        stored = voxel_size(reorient.affine(affine, shape))
        target = self._shape(image.shape[1:], stored, scale)
        data = {"image": resample(image, target)}
        if mask is not None:
            data["mask"] = mask = _resampled_mask(mask, target, case)
        for transform in self._normalise:
            data = transform(data)
            if data["image"].shape[1:] != target:
                raise PluginError(
                    f"{type(transform).__name__} in preprocess.normalise changed the grid from "
                    f"{target} to {data['image'].shape[1:]}; only intensities may change there"
                )
        return Prepared(
            image=_blanked(data["image"], case.missing),
            label=None if label is None else resample_label(label, target),
            spacing=stored if self.spacing is None else self.spacing,
            route=Route(shape, reorient, box, target),
            mask=mask,
            region=case.mask,
            weights=None if weights is None else _weights(weights, target, case),
            missing=case.missing,
        )

    def _shape(self, shape: Sequence[int], stored: Spacing, scale: float) -> Shape:
        wanted = stored if self.spacing is None else self.spacing
        return _triple(
            max(1, round(scale * n * old / new))
            for n, old, new in zip(shape, stored, wanted, strict=True)
        )


def resample_label(label: Array, shape: Sequence[int]) -> Array:
    """Resample class indices: each class linearly, then the most likely one."""
    if label.shape == tuple(shape):
        return label.astype(np.uint8)
    best = np.zeros(tuple(shape), dtype=np.float32)
    out = np.zeros(tuple(shape), dtype=np.uint8)
    for value in np.unique(label):
        share = resample((label == value)[None].astype(np.float32), shape)[0]
        out[share > best] = value
        np.maximum(best, share, out=best)
    return out


def _resampled_mask(mask: Array, shape: Shape, case: LoadedCase) -> Array:
    resampled: Array = resample(mask[None].astype(np.float32), shape)[0] > 0.5
    if not resampled.any():
        raise DataError(
            case.reference.path,
            f"its region of interest, {np.count_nonzero(mask)} voxels, is too small for the "
            f"network's grid of {shape}: nothing is left; mend the mask, or set a smaller "
            "preprocess.spacing",
        )
    return resampled


def _weights(weights: Array, shape: Shape, case: LoadedCase) -> Array:
    if not weights.any():
        raise DataError(
            case.reference.path,
            "preprocess.crop cuts away all that has a weight: no patch could be drawn; mend the "
            "weight map or the mask, or do not crop",
        )
    return np.ascontiguousarray(resample(weights[None], shape)[0])


def _blanked(image: Array, missing: tuple[int, ...]) -> Array:
    """The image as it is stored, its missing channels 0 whatever the transforms made of them."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    if missing:
        image = image.copy()
        image[list(missing)] = 0
    return image


def _box(image: Array, mask: Array | None) -> Box:
    """The bounding box of the mask, or of what differs from the volume's corner value."""
    inside = foreground.foreground(image, "not_corner") if mask is None else mask
    if not inside.any():
        return _everything(image)
    edges = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    i, j, k = (slice(int(edge[0]), int(edge[-1]) + 1) for edge in edges)
    return i, j, k


def _everything(image: Array) -> Box:
    i, j, k = (slice(0, n) for n in image.shape[1:])
    return i, j, k


def _triple(values: Iterable[int]) -> Shape:
    i, j, k = values
    return i, j, k

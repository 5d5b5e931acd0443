"""What a predictor is handed in Python: arrays with an affine, nibabel images, masks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config.schema import Config, Data
from medseg.errors import DataError
from medseg.volumes import nifti
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Affine, Array, Image
from medseg.volumes.load import LoadedCase
from medseg.volumes.writer import new_header


def in_memory(volume: Any) -> LoadedCase:
    """A case from a nibabel image, or from an array and its affine.

    Raises:
        DataError: It is neither, has another number of axes or values that are not finite, or the
            affine is not (4, 4) or singular.
    """
    if hasattr(volume, "affine"):
        data = volume.get_fdata()
        return _case(np.moveaxis(data, -1, 0) if data.ndim == 4 else data, volume.affine)
    if not (isinstance(volume, tuple) and len(volume) == 2):
        raise DataError(
            "volume",
            f"a path, a list of paths, a nibabel image or (array, affine) expected, "
            f"got {type(volume).__name__}",
        )
    array, affine = volume
    return _case(np.asarray(array), np.asarray(affine, dtype=np.float64))


def _case(array: Array, affine: Affine) -> LoadedCase:
    array = array[None] if array.ndim == 3 else array
    image = np.ascontiguousarray(array, dtype=np.float32)
    if image.ndim != 4 or not image.size or not np.isfinite(image).all():
        raise DataError(
            "array", f"(I, J, K) or (C, I, J, K) of finite values expected, got {array.shape}"
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise DataError(
            "array", f"a finite, invertible (4, 4) affine expected, got {affine.tolist()}"
        )
    i, j, k = image.shape[1:]
    reference = Image(image[0], affine, new_header((i, j, k), affine), Path("array"))
    return LoadedCase(image, None, None, reference, ())


def with_region(case: LoadedCase, mask: Any) -> LoadedCase:
    """Give a case its region of interest.

    Args:
        case: As loaded.
        mask: The path of a mask, or an array (I, J, K) on the case's grid; None: none.

    Raises:
        DataError: It is on another grid, or empty.
    """
    if mask is None:
        return case
    reference, source = case.reference, "mask"
    if isinstance(mask, str | Path):
        image, source = nifti.read_label(mask), str(mask)
        differ = same_grid(reference.shape, reference.affine, image.shape, image.affine)
        if differ:
            raise DataError(source, f"not on the grid of {reference.path}: {differ}")
        mask = image.data
    inside = np.asarray(mask) != 0
    if inside.shape != reference.shape or not inside.any():
        raise DataError(
            source,
            f"{inside.sum()} voxels of {inside.shape}; some of {reference.shape}, the volume's, "
            "expected",
        )
    return replace(case, mask=inside)


def needed(config: Config) -> Data:
    """What has to be found of a case to predict: no mask where one is computed anyway."""
    if config.preprocess.mask in (None, "file"):
        return config.data
    return config.data.model_copy(update={"mask": None})


def needs_mask(config: Config) -> bool:
    """Whether what a model makes of a case depends on a mask that has to come with the case."""
    if config.data.mask is None or config.preprocess.mask not in (None, "file"):
        return False
    regions = (spec.spec().get("region") for spec in config.preprocess.normalise)
    return config.inference.roi or config.preprocess.crop == "foreground" or "mask" in regions

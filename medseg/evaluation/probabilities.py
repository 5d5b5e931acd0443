"""The class probabilities that lie beside masks, for the confidence of lesions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import DataError
from medseg.volumes import nifti
from medseg.volumes.dataset import Labels
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Image

NAMES = ("{id}_probabilities.nii.gz", "confidence/{id}.nii.gz")
"""Where they may be, from the folder of the masks. Both hold a volume for each label value, the
background first; the second is 0 outside the predicted foreground, and therefore small."""
_SLACK = 1e-3

Shares = Callable[[tuple[int, ...]], npt.NDArray[np.floating]]


def find(mask: Image, case_id: str, labels: Labels) -> Shares | None:
    """The probabilities of a case.

    Args:
        mask: The predicted mask.
        case_id: The case.
        labels: What the volumes stand for.

    Returns:
        A function that gives the probability (I, J, K) of a class from its label values; None:
        there is no file.

    Raises:
        DataError: The file is damaged, on another grid, of another number of volumes, or holds
            something else than probabilities.
    """
    paths = [mask.path.parent / name.format(id=case_id) for name in NAMES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    shares = _read(path, mask, len(labels.values) + 1)
    place = {value: number for number, value in enumerate(labels.values, start=1)}

    def of(values: tuple[int, ...]) -> npt.NDArray[np.floating]:
        first, *others = (shares[place[value]] for value in values)
        together: npt.NDArray[np.floating] = sum(others, first)
        return together

    return of


def _read(path: Path, mask: Image, volumes: int) -> npt.NDArray[np.floating]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nifti.VolumeWarning)  # a class that is nowhere is no news
        image = nifti.read(path, volumes=True)
    differ = same_grid(mask.shape, mask.affine, image.shape, image.affine)
    if differ:
        raise DataError(path, f"not on the grid of {mask.path}: {differ}")
    if len(image.data) != volumes:
        raise DataError(
            path,
            f"{len(image.data)} volumes for {volumes} classes, background included; predict again "
            "with the model of this config, or take the file away to score without confidences",
        )
    low, high = float(image.data.min()), float(image.data.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise DataError(path, f"values from {low:g} to {high:g} are no probabilities")
    return image.data

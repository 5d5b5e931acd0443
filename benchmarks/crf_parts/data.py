"""The volumes that the CRFs work on: a BraTS case, probabilities, and a crop at its tumour."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.postprocess.deepmedic import RANGE

Array = NDArray[np.generic]
IMAGES = ("Flair_subtrMeanDivStd.nii.gz", "T1c_subtrMeanDivStd.nii.gz")
CLASSES = 5  # of OTMultiClass: background, necrosis, oedema, non-enhancing, enhancing
_WARM = 24  # voxels a side: enough to compile and load everything


@dataclass(frozen=True, eq=False)
class Volumes:
    """A case in memory.

    Args:
        image: (M, I, J, K) float32, normalised within the brain and cut at `RANGE`.
        brain: bool (I, J, K).
        probabilities: By number of classes C, (C, I, J, K) float32.
    """

    image: Array
    brain: Array
    probabilities: dict[int, Array]

    def crop(self, centre: tuple[int, ...], side: int) -> Volumes:
        """A cube of voxels around one, cut where the volume ends."""
        box = tuple(slice(max(n - side // 2, 0), n - side // 2 + side) for n in centre)
        return Volumes(
            self.image[:, *box],
            self.brain[box],
            {n: found[:, *box] for n, found in self.probabilities.items()},
        )

    def save(self, folder: Path) -> Path:
        """Write image.npy, brain.npy, p2.npy, ..., that a worker reads; the folder is returned."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"p{n}": found for n, found in self.probabilities.items()}
        for name, array in {"image": self.image, "brain": self.brain, **arrays}.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
        return folder


@dataclass(frozen=True, eq=False)
class Case:
    """Volumes, and a voxel at the border of their tumour.

    Args:
        volumes: All of them.
        border: The first voxel of the tumour in its last plane along i: its outermost.
    """

    volumes: Volumes
    border: tuple[int, ...]

    def save(self, folder: Path, side: int, quick: bool) -> dict[str, int]:
        """Write full/, border/ (a cube of `side`) and warm/; count the brain voxels of each."""
        full = self.volumes.crop(self.border, 4 * side) if quick else self.volumes
        parts = {
            "full": full,
            "border": self.volumes.crop(self.border, side),
            "warm": self.volumes.crop(self.border, _WARM),
        }
        for name, part in parts.items():
            part.save(folder / name)
        return {name: int(part.brain.sum()) for name, part in parts.items()}


def read(folder: Path, file: Path | None, seed: int) -> Case:
    """Read a BraTS case, and its probabilities from a file or made from its truth.

    Args:
        folder: Flair and T1c normalised in the brain, brainmask, OTMultiClass.
        file: (I, J, K, C), as `medseg predict` writes it with inference.probabilities.
        seed: Of what is made up.
    """
    image = np.stack([_volume(folder / name) for name in IMAGES]).astype(np.float32).clip(*RANGE)
    brain = _volume(folder / "brainmask.nii.gz") > 0
    truth = np.rint(_volume(folder / "OTMultiClass.nii.gz")).astype(np.uint8)
    tumour = np.argwhere(truth > 0)
    border = tuple(map(int, tumour[tumour[:, 0].argmax()]))
    found = _merged(file, truth.shape) if file else made_up(truth, brain, seed)
    return Case(Volumes(image, brain, found), border)


def made_up(truth: Array, brain: Array, seed: int) -> dict[int, Array]:
    """Probabilities such as a fair network gives, made from the truth.

    The labels are warped by a smooth field of 2.5 voxels standard deviation (3 voxels long), each
    class is blurred by 1.2 voxels and kept above 1e-4, and the log-odds of all classes but the
    first get smooth noise of deviation 1 (1.5 voxels long). Outside the brain all is background.

    Returns:
        (2, I, J, K) of tumour or not, and (5, I, J, K).
    """
    rng = np.random.default_rng(seed)
    places = [at + 2.5 * _noise(rng, truth.shape, 3.0) for at in np.indices(truth.shape, np.int16)]
    moved = ndimage.map_coordinates(truth, places, order=0, mode="nearest")
    doubt = _noise(rng, truth.shape, 1.5)
    return {
        2: _softened((moved > 0).astype(np.uint8), 2, doubt, brain),
        CLASSES: _softened(moved, CLASSES, doubt, brain),
    }


def _softened(labels: Array, classes: int, doubt: Array, brain: Array) -> Array:
    shares = [
        ndimage.gaussian_filter((labels == n).astype(np.float32), 1.2) for n in range(classes)
    ]
    found = np.maximum(np.stack(shares), 1e-4)
    found[1:] *= np.exp(doubt)
    found /= found.sum(0)
    found[:, ~brain] = 0
    found[0, ~brain] = 1
    return found


def _noise(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Array:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), length)
    return noise / noise.std()


def _merged(file: Path, shape: tuple[int, ...]) -> dict[int, Array]:
    """The classes of a file; and, if there are more than two, the first against all others."""
    volume = _volume(file)
    if volume.ndim != 4 or volume.shape[:3] != shape:
        sys.exit(f"{file}: {volume.shape} where the case has {shape} and classes come last")
    found = np.moveaxis(volume, -1, 0).astype(np.float32)
    return {2: np.stack([found[0], found[1:].sum(0)]), len(found): found}


def _volume(file: Path) -> Array:
    return np.asarray(nib.load(file).dataobj)

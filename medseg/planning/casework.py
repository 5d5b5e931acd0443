"""What one case adds to the fingerprint: read once, measured, and let go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.planning.fingerprint import Triple
from medseg.volumes.dataset import IGNORE_INDEX, Case, Dataset, Indices
from medseg.volumes.geometry import Reorient, orientation, voxel_size
from medseg.volumes.image import Array
from medseg.volumes.load import LoadedCase, load_case

_SAMPLES = 4000  # voxels of a channel and a case whose values are kept for percentiles
_STREAM = 7
_CORNERS = np.ones((3, 3, 3))  # neighbours that share a corner: 26
_UNPLACED = "no orientation in the header"  # how `volumes.placement` puts it


@dataclass(frozen=True, eq=False)
class Values:
    """Intensities of one channel of one case.

    Args:
        everywhere: A sample of the volume's voxels.
        foreground: A sample of the labelled ones; empty where none is.
        zero: Share of voxels that are exactly 0.
        negative: Share of voxels below 0.
        is_whole: Whether every voxel is a whole number.
    """

    everywhere: npt.NDArray[np.float32]
    foreground: npt.NDArray[np.float32]
    zero: float
    negative: float
    is_whole: bool


@dataclass(frozen=True, eq=False)
class Region:
    """One class in one case.

    Args:
        voxels: How many it has.
        sizes: Volumes of its connected components (26 neighbours) in mm3, ascending.
        centre: Its centre of mass in mm from the volume's first voxel, along R, A, S.
    """

    voxels: int
    sizes: npt.NDArray[np.float64]
    centre: Triple


@dataclass(frozen=True, eq=False)
class CaseWork:
    """What was found in one case. Axes are turned to R, A, S.

    Args:
        id: The case.
        shape: Voxels.
        spacing: Voxel size in mm.
        content: Voxels of the bounding box of what is not blank.
        orientation: Of the axes as stored, e.g. "LPS".
        is_placed: Whether the header says where the axes point.
        blank: Share of voxels outside the case's region of interest; without one, of those that
            equal the volume's first voxel in every channel.
        is_corner_zero: Whether the volume's first voxel is 0 in every channel.
        outside: Share of the labelled voxels that are blank.
        labelled: Share of voxels with a label.
        channels: Intensities by channel; None: this case lacks it.
        counts: Label value: number of voxels, without background.
        regions: Each class that the case has.
        has_mask: Whether it comes with a region of interest.
    """

    id: str
    shape: tuple[int, int, int]
    spacing: Triple
    content: tuple[int, int, int]
    orientation: str
    is_placed: bool
    blank: float
    is_corner_zero: bool
    outside: float
    labelled: float
    channels: tuple[Values | None, ...]
    counts: dict[int, int]
    regions: dict[str, Region]
    has_mask: bool


def measure(case: Case, dataset: Dataset, number: int, classes: bool = True) -> CaseWork:
    """Read and measure one case.

    Args:
        case: The case.
        dataset: It is from; its labels may be all that are possible.
        number: Of the case, from 0: the seed of what is sampled.
        classes: Whether the dataset knows the classes; else each label value is one, by its number.

    Raises:
        DataError: A file is missing or damaged, grids differ, or a label is not as declared.
        DataErrors: Several of these.
    """
    loaded = load_case(case, dataset)
    affine, shape = loaded.reference.affine, loaded.reference.shape
    turn = Reorient.to(affine, "RAS")
    spacing = voxel_size(turn.affine(affine, shape))
    assert loaded.label is not None
    image, label = turn.apply(loaded.image), turn.apply(loaded.label)
    is_lesion = (label > 0) & (label != IGNORE_INDEX)
    mask = None if loaded.mask is None else turn.apply(loaded.mask)
    is_blank = (image == image[:, :1, :1, :1]).all(0) if mask is None else ~mask
    counts = _counts(label, dataset)
    values = [value for value in counts if value != dataset.labels.ignore]
    regions = dataset.labels.classes if classes else {str(value): (value,) for value in values}
    indices = {value: n + 1 for n, value in enumerate(dataset.labels.values)}
    i, j, k = image.shape[1:]
    return CaseWork(
        id=case.id,
        shape=(i, j, k),
        spacing=spacing,
        content=_extent(~is_blank),
        orientation=orientation(affine),
        is_placed=not any(_UNPLACED in note for note in loaded.notes),
        blank=float(is_blank.mean()),
        is_corner_zero=not image[:, 0, 0, 0].any(),
        outside=float(is_blank[is_lesion].mean()) if is_lesion.any() else 0.0,
        labelled=float(is_lesion.mean()),
        channels=_channels(loaded, image, is_lesion, number),
        counts=counts,
        regions={
            name: _region(np.isin(label, [indices[value] for value in values]), spacing)
            for name, values in regions.items()
            if any(value in counts for value in values)
        },
        has_mask=loaded.mask is not None,
    )


def _counts(label: Indices, dataset: Dataset) -> dict[int, int]:
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    present = np.flatnonzero(counts)
    values = dataset.labels.to_values(present)
    found = zip(values.tolist(), present.tolist(), strict=True)
    return {value: int(counts[index]) for value, index in found if value}


def _channels(
    loaded: LoadedCase, image: Array, is_lesion: Array, number: int
) -> tuple[Values | None, ...]:
    rng = np.random.default_rng([_STREAM, number])
    return tuple(
        None if n in loaded.missing else _values(channel, is_lesion, rng)
        for n, channel in enumerate(image)
    )


def _values(channel: Array, is_lesion: Array, rng: np.random.Generator) -> Values:
    inside = channel[is_lesion]
    return Values(
        everywhere=rng.choice(channel.ravel(), min(_SAMPLES, channel.size), replace=False),
        foreground=rng.choice(inside, min(_SAMPLES, inside.size), replace=False),
        zero=float((channel == 0).mean()),
        negative=float((channel < 0).mean()),
        is_whole=bool((channel == np.round(channel)).all()),
    )


def _region(mask: Array, spacing: Triple) -> Region:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    parts, _ = ndimage.label(mask[box], _CORNERS)
    voxels = np.sort(np.bincount(parts.ravel())[1:])
    inner = ndimage.center_of_mass(mask[box])
    x, y, z = ((at + part.start) * mm for at, part, mm in zip(inner, box, spacing, strict=True))
    sizes = (voxels * np.prod(spacing)).astype(np.float64)
    return Region(int(voxels.sum()), sizes, (x, y, z))


def _extent(inside: Array) -> tuple[int, int, int]:
    """Voxels of a bounding box; of all where nothing is inside."""
    if not inside.any():
        i, j, k = inside.shape
        return i, j, k
    lengths = []
    for axis in range(3):
        places = np.flatnonzero(inside.any(tuple(n for n in range(3) if n != axis)))
        lengths.append(int(places[-1] - places[0] + 1))
    return lengths[0], lengths[1], lengths[2]

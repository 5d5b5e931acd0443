"""Read a case: all its channels on one grid, and a label that agrees with them (promise 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.errors import DataError, DataErrors, raise_all
from medseg.volumes import nifti
from medseg.volumes.dataset import Case, Channel, Dataset, Indices
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Image


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A case in memory, as stored: nothing is resampled or turned.

    Args:
        image: float32 (C, I, J, K).
        label: Class indices, uint8 (I, J, K), IGNORE_INDEX where ignored; None without a label.
        mask: bool (I, J, K), or None without a mask.
        reference: The first channel, whose grid and header are those of the case.
        notes: What was odd but accepted in any of the files.
    """

    image: npt.NDArray[np.float32]
    label: Indices | None
    mask: npt.NDArray[np.bool_] | None
    reference: Image
    notes: tuple[str, ...]


def load_case(case: Case, dataset: Dataset) -> LoadedCase:
    """Read every file of a case once, and check that they belong together.

    Raises:
        DataError: A file is missing or damaged, grids differ, or a label is not as declared.
        DataErrors: Several of these; all that can be found are.
    """
    problems = _missing(case)
    volumes = _channels(case.channels, problems)
    reference = volumes[0] if volumes else None
    label = _read(case.label, nifti.read_label, reference, problems)
    mask = _read(case.mask, nifti.read_label, reference, problems)
    indices = None
    with _collected(problems):
        if label is not None:
            indices = dataset.labels.to_indices(label.data, label.path)
    if mask is not None and not mask.data.any():
        problems.append(DataError(mask.path, "the mask is empty: nothing is left of the case"))
    if reference is None or problems:
        raise_all(problems)
        raise DataError(case.id, "has no channels")
    image = np.stack([volume.data for volume in volumes])
    return LoadedCase(
        image=image,
        label=indices,
        mask=None if mask is None else mask.data != 0,
        reference=replace(reference, data=image[0]),
        notes=_notes([*volumes, label, mask]),
    )


def _notes(images: list[Image | None]) -> tuple[str, ...]:
    said = [f"{image.path}: {note}" for image in images if image for note in image.notes]
    return tuple(dict.fromkeys(said))  # volumes of one 4D file share their notes


def _missing(case: Case) -> list[DataError]:
    there = next((path for path in case.files if path.is_file()), None)
    rest = f"though case {case.id!r} has {there}" if there else f"for case {case.id!r}"
    return [
        DataError(path, f"no such file, {rest}: add it, or take the case out")
        for path in case.files
        if not path.is_file()
    ]


def _channels(channels: tuple[Channel, ...], problems: list[DataError]) -> list[Image]:
    """The channels that can be read, as 3D images; a 4D file is read once."""
    volumes: list[Image] = []
    stacks: dict[Path, Image | None] = {}
    for channel in channels:
        first = volumes[0] if volumes else None
        if channel.index is None:
            image = _read(channel.path, nifti.read, first, problems)
        else:
            if channel.path not in stacks:
                stacks[channel.path] = _read(channel.path, _read_volumes, first, problems)
            image = None
            with _collected(problems):
                image = _pick(stacks[channel.path], channel)
        volumes += [image] if image is not None else []
    return volumes


def _read_volumes(path: Path) -> Image:
    return nifti.read(path, volumes=True)


def _pick(stack: Image | None, channel: Channel) -> Image | None:
    if stack is None or channel.index is None:
        return None
    count = len(stack.data)
    if channel.index >= count or count != (channel.volumes or count):
        wanted = channel.volumes or f"at least {channel.index + 1}"
        raise DataError(channel.path, f"holds {count} volumes, needed are {wanted}: one a channel")
    return replace(stack, data=stack.data[channel.index])


def _read(
    path: Path | None,
    reader: Callable[[Path], Image],
    reference: Image | None,
    problems: list[DataError],
) -> Image | None:
    """Read a file if it is there, and compare its grid with the reference's."""
    if path is None or not path.is_file():
        return None
    with _collected(problems):
        image = reader(path)
        if reference is not None:
            _same_grid(image, reference)
        return image
    return None


def _same_grid(image: Image, reference: Image) -> None:
    difference = same_grid(reference.shape, reference.affine, image.shape, image.affine)
    if difference is not None:
        raise DataError(
            image.path,
            f"not on the grid of {reference.path}: {difference}; resample it onto that grid",
        )


@contextmanager
def _collected(problems: list[DataError]) -> Iterator[None]:
    """Keep data errors for later instead of raising them now."""
    try:
        yield
    except DataError as error:
        problems += [error] if error.args not in [known.args for known in problems] else []
    except DataErrors as errors:
        problems += errors.errors

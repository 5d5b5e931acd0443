"""Read a case: all its channels on one grid, and a label that agrees with them (promise 3).

A channel that is missing, or on another grid, is refused, unless the dataset's policy allows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.config.data import Grids
from medseg.errors import DataError, DataErrors, raise_all
from medseg.volumes import resample
from medseg.volumes.dataset import Case, Channel, Dataset, Indices
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Image
from medseg.volumes.reading import Job, Kind, Reading, turn

_RESAMPLED = ", or say data.grids: resample"
_REDRAWN = ", or name the channel that it was drawn on in data.reference"


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A case in memory, as stored: nothing is turned, and nothing resampled but such channels.

    Args:
        image: float32 (C, I, J, K); 0 all over a channel that is missing.
        label: Class indices, uint8 (I, J, K), IGNORE_INDEX where ignored; None without a label.
        mask: bool (I, J, K), or None without a mask.
        reference: The channel whose grid and header are those of the case.
        notes: What was odd but accepted in any of the files.
        weights: float32 (I, J, K), at least 0 and not 0 everywhere: where patches are drawn; None
            without such a map.
        missing: The numbers of the channels that are missing, from 0.
    """

    image: npt.NDArray[np.float32]
    label: Indices | None
    mask: npt.NDArray[np.bool_] | None
    reference: Image
    notes: tuple[str, ...]
    weights: npt.NDArray[np.float32] | None = None
    missing: tuple[int, ...] = ()

    def without(self, channels: Collection[int]) -> LoadedCase:
        """The same case on the same grid, as if these channels were missing too.

        Args:
            channels: Their numbers, from 0.
        """
        missing = tuple(sorted({*self.missing, *channels}))
        image = self.image.copy()
        image[list(missing)] = 0
        return replace(self, image=image, missing=missing)


def load_case(case: Case, dataset: Dataset) -> LoadedCase:
    """Read every file of a case once, and check that they belong together.

    Raises:
        DataError: A file is missing or damaged, grids differ, or a label is not as declared.
        DataErrors: Several of these; all that can be found are.
    """
    problems = absent(case)
    number = dataset.reference(case)
    with Reading(_jobs(case)) as reading:
        volumes = _channels(case, dataset, reading, problems)
        remedy = _remedy(case, dataset)
        label = _beside(case.label, "label", reading, volumes, remedy, problems)
        mask = _beside(case.mask, "label", reading, volumes, remedy, problems)
        weights = _beside(case.weights, "weights", reading, volumes, remedy, problems)
        indices = None
        with _collected(problems):
            if label is not None:
                indices = dataset.labels.to_indices(label.data, label.path)
        if mask is not None and not mask.data.any():
            problems.append(DataError(mask.path, "the mask is empty: nothing is left of the case"))
        raise_all(problems)
        if len(volumes) + len(case.missing) < len(case.channels):
            raise DataError(case.id, "a file of it vanished while it was read")
        notes = _notes([*(volumes[n] for n in sorted(volumes)), label, mask, weights])
        image, reference = _together(len(case.channels), volumes, number, reading)
    return LoadedCase(
        image=image,
        label=indices,
        mask=None if mask is None else mask.data != 0,
        reference=reference,
        notes=(*notes, *_lacking(case, dataset)),
        weights=None if weights is None else weights.data,
        missing=case.missing,
    )


def _together(
    channels: int, volumes: dict[int, Image], number: int, reading: Reading
) -> tuple[npt.NDArray[np.float32], Image]:
    """The image of a case, and its reference. Each volume is let go as soon as it is copied."""
    image = np.zeros((channels, *volumes[number].shape), dtype=np.float32)
    reference = replace(volumes[number], data=image[number])
    reading.forget()
    reading.all(turn, ((image[n], volumes.pop(n).data) for n in sorted(volumes)))
    return image, reference


def _jobs(case: Case) -> list[Job]:
    """Every file of a case that is there, and as what it has to be read."""
    jobs: list[tuple[Path | None, Kind]] = [
        (channel.path, "volume" if channel.index is None else "volumes")
        for channel in case.channels
        if channel is not None
    ]
    jobs += [(case.label, "label"), (case.mask, "label"), (case.weights, "weights")]
    return [(path, kind) for path, kind in jobs if path is not None and path.is_file()]


def _notes(images: list[Image | None]) -> tuple[str, ...]:
    said = [f"{image.path}: {note}" for image in images if image for note in image.notes]
    return tuple(dict.fromkeys(said))  # volumes of one 4D file share their notes


def _lacking(case: Case, dataset: Dataset) -> tuple[str, ...]:
    if not case.missing:
        return ()
    names = ", ".join(dataset.missing(case))
    return (f"case {case.id!r}: no channel {names}, taken as 0 after normalisation",)


def absent(case: Case) -> list[DataError]:
    """What to say of each file of a case that is not there."""
    there = next((path for path in case.files if path.is_file()), None)
    rest = f"though case {case.id!r} has {there}" if there else f"for case {case.id!r}"
    return [
        DataError(path, f"no such file, {rest}: add it, or take the case out")
        for path in case.files
        if not path.is_file()
    ]


def _channels(
    case: Case, dataset: Dataset, reading: Reading, problems: list[DataError]
) -> dict[int, Image]:
    """The channels that can be read, by number, as 3D images on the grid of the first in it.

    The reference comes first.
    """
    reference = dataset.reference(case)
    volumes: dict[int, Image] = {}
    for number in sorted(range(len(case.channels)), key=lambda n: n != reference):
        channel = case.channels[number]
        if channel is None:
            continue
        with _collected(problems):
            if channel.index is None:
                image = reading.get(channel.path, "volume")
            else:
                image = _pick(reading.get(channel.path, "volumes"), channel)
            if image is not None:
                first = next(iter(volumes.values()), image)
                volumes[number] = _on_grid(image, first, dataset.policy.grids)
        if number == reference and not volumes and dataset.policy.grids == "resample":
            break  # without it nothing can be said of the others' grids
    return volumes


def _pick(stack: Image | None, channel: Channel) -> Image | None:
    if stack is None or channel.index is None:
        return None
    count = len(stack.data)
    if channel.index >= count or count != (channel.volumes or count):
        wanted = channel.volumes or f"at least {channel.index + 1}"
        raise DataError(channel.path, f"holds {count} volumes, needed are {wanted}: one a channel")
    return replace(stack, data=stack.data[channel.index])


def _beside(
    path: Path | None,
    kind: Kind,
    reading: Reading,
    volumes: dict[int, Image],
    remedy: str,
    problems: list[DataError],
) -> Image | None:
    """Read what has to be on the reference's grid, whatever the policy."""
    image = None
    with _collected(problems):
        image = reading.get(path, kind)
        if image is not None and volumes:
            _same_grid(image, next(iter(volumes.values())), remedy)
    return image


def _remedy(case: Case, dataset: Dataset) -> str:
    """What else can be done about a label or mask that is not on the reference's grid."""
    if dataset.policy.grids != "resample":
        return ""
    named = dataset.policy.reference
    if named in dataset.missing(case):
        return f": its reference, channel {named}, is missing, and another channel took its place"
    return _REDRAWN


def _on_grid(image: Image, reference: Image, grids: Grids) -> Image:
    """The volume on the reference's grid.

    Raises:
        DataError: It is not, and may not be resampled, or lies elsewhere.
    """
    if grids == "refuse":
        _same_grid(image, reference, _RESAMPLED)
        return image
    differ = same_grid(reference.shape, reference.affine, image.shape, image.affine)
    return image if differ is None else resample.onto(image, reference, differ)


def _same_grid(image: Image, reference: Image, remedy: str) -> None:
    difference = same_grid(reference.shape, reference.affine, image.shape, image.affine)
    if difference is not None:
        raise DataError(
            image.path,
            f"not on the grid of {reference.path}: {difference}; resample it onto that grid"
            f"{remedy}",
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

"""Layout msd: the Medical Segmentation Decathlon's dataset.json, which lists every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.config.schema import Data
from medseg.errors import DataError, raise_all
from medseg.volumes.dataset import Case, Channel
from medseg.volumes.layouts import files, manifest


def find(data: Data) -> list[Case]:
    """The cases of "training", and files beside them that lack their other half.

    Raises:
        DataError: dataset.json is missing or an entry of it makes no sense.
    """
    folder = Path(data.path)
    content = manifest.read(folder, "msd")
    entries = content.get("training")
    if not isinstance(entries, list):
        hint = "; layout 'nnunet' fits" if "channel_names" in content else ""
        raise DataError(folder / "dataset.json", f'has no list "training"{hint}')
    places = [files.position(value) for value in (data.channels or {}).values()]
    cases: list[Case] = []
    errors: list[DataError] = []
    for number, entry in enumerate(entries):
        try:
            cases.append(_case(folder, entry, places))
        except ValueError as error:
            errors.append(DataError(folder / "dataset.json", f"training[{number}]: {error}"))
    raise_all(errors)
    return cases + _halves(cases)


def inputs(folder: Path, data: Data) -> list[Case]:
    """Every NIfTI file of the folder, or of its imagesTs; several channels come as one 4D file."""
    test = folder / "imagesTs"
    return files.inputs(test if test.is_dir() else folder, data)


def _case(folder: Path, entry: Any, places: list[tuple[int, int]]) -> Case:
    if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
        raise ValueError(f'needs "image" and "label", got {entry!r}')
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if not all(isinstance(name, str) for name in (*images, entry["label"])):
        raise ValueError(f"file names must be strings, got {entry!r}")
    paths = [folder / name for name in images]
    total = places[0][1]
    if len(paths) not in (1, total):
        raise ValueError(f"{len(paths)} images for {total} channels: one 4D file, or one each")
    if len(paths) == total:
        channels = tuple(Channel(_numbered(paths[i], folder)) for i, _ in places)
    else:
        channels = tuple(Channel(paths[0], i, total) for i, _ in places)
    return Case(files.stem(folder / entry["label"]), channels, folder / entry["label"])


def _numbered(path: Path, folder: Path) -> Path:
    """Tell a user of nnU-Net's first version, whose dataset.json looks the same, what to write."""
    first = path.with_name(f"{files.stem(path)}_0000.nii.gz")
    if not path.is_file() and first.is_file():
        raise DataError(
            folder, f"{path.name} is not there but {first.name} is: layout 'nnunet' fits"
        )
    return path


def _halves(cases: list[Case]) -> list[Case]:
    """Labels without image, and images without label, that dataset.json does not list."""
    listed = {path for case in cases for path in case.files}
    images = {case.files[0].parent for case in cases}
    labels = {case.label.parent for case in cases if case.label}
    if len(images) != 1 or len(labels) != 1 or images == labels:
        return []
    (image_folder,), (label_folder,) = images, labels
    if any(len(case.files) > 2 for case in cases):  # several files a case: no name to compare
        return []
    halves = []
    for here, there in ((image_folder, label_folder), (label_folder, image_folder)):
        for path in files.volumes_in(here):
            if path not in listed and not (there / path.name).exists():
                image, label = image_folder / path.name, label_folder / path.name
                halves.append(Case(files.stem(path), (Channel(image),), label))
    return halves

"""Layout nnunet: nnU-Net's raw folders, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz."""

from __future__ import annotations

import re
from pathlib import Path

from medseg.config.schema import Data
from medseg.errors import DataError
from medseg.volumes.dataset import Case, Channel
from medseg.volumes.layouts import files, manifest


def find(data: Data) -> list[Case]:
    """Cases with a channel file or a label.

    Raises:
        DataError: dataset.json or imagesTr is missing, or the files are not NIfTI.
    """
    folder = Path(data.path)
    ending = manifest.read(folder, "nnunet").get("file_ending", ".nii.gz")
    if ending not in files.ENDINGS:
        raise DataError(
            folder / "dataset.json", f"file_ending {ending!r}: convert the images to .nii.gz"
        )
    images, labels = folder / "imagesTr", folder / "labelsTr"
    numbered = _ids(images)
    if not numbered:
        what = files.found(images) if images.is_dir() else f"no such folder; {files.found(folder)}"
        raise DataError(
            images, f"no file is named CASE_0000{ending}: {what}{files.fitting(folder)}"
        )
    ids = numbered | {files.stem(path) for path in files.volumes_in(labels)}
    return [
        Case(name, _channels(images, name, ending, data), labels / f"{name}{ending}")
        for name in sorted(ids)
    ]


def inputs(folder: Path, data: Data) -> list[Case]:
    """Cases of a folder of CASE_0000 files, or of its imagesTs."""
    test = folder / "imagesTs"
    folder = test if test.is_dir() else folder
    return [Case(name, _channels(folder, name, "", data)) for name in sorted(_ids(folder))]


def strip(name: str) -> str:
    """The case's id from a channel file's stem."""
    return re.sub(r"_\d{4}$", "", name)


def _ids(folder: Path) -> set[str]:
    stems = [files.stem(path) for path in files.volumes_in(folder)]
    return {strip(name) for name in stems if strip(name) != name}


def _channels(folder: Path, name: str, ending: str, data: Data) -> tuple[Channel | None, ...]:
    stems = [
        folder / f"{name}_{files.position(value)[0]:04d}"
        for value in (data.channels or {}).values()
    ]
    return files.known([Channel(_with_ending(path, ending)) for path in stems], data)


def _with_ending(path: Path, ending: str) -> Path:
    """The file by the given ending, or by the one that exists."""
    plain = path.with_name(f"{path.name}.nii")
    use = ending or (".nii" if plain.is_file() else ".nii.gz")
    return path.with_name(f"{path.name}{use}")

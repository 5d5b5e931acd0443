"""The recipes of data sets that are not ours: a tiny set in each one's layout, by the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from medseg.volumes import nifti, phantom

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (  # of what would train for days on a GPU
    "model.encoder.width=0.125",
    "train.budget={steps: 2}",
    "train.batch=2",
    "train.workers=0",
    "train.threads=1",
    "train.validation_cases=1",
    "inference.flip=[]",
)
CUBE = "train.patch=[32, 32, 32]"
COARSE = "preprocess.spacing=[4, 4, 4]"
CASES = 5  # as many as the folds that the recipes draw
SITES = ("Utrecht/0", "Utrecht/2", "Singapore/50", "Amsterdam/GE3T/100", "Amsterdam/GE3T/101")
Cli = Callable[..., tuple[int, str]]
Spacing = tuple[float, float, float]
Data = npt.NDArray[Any]


@dataclass(frozen=True)
class Patient:
    """A head on its own grid; beyond the phantom's, what some data sets bring along."""

    flair: Data
    t1: Data
    lesion: Data
    brain: Data
    spacing: Spacing

    @property
    def stripped(self) -> list[Data]:
        """Both channels, 0 outside of the brain and nowhere in it."""
        return [np.maximum(image, 1) * self.brain for image in (self.flair, self.t1)]

    @property
    def parts(self) -> Data:
        """The lesion as three labels that lie in each other: 2 around, then 1 and 3."""
        depth = ndimage.distance_transform_edt(self.lesion)
        labels = np.where(depth > 1, 3, self.lesion * 2).astype(np.uint8)
        labels[: len(labels) // 2][labels[: len(labels) // 2] == 3] = 1
        inner = np.argwhere(labels != 2 * self.lesion)
        labels[tuple(inner[0])], labels[tuple(inner[-1])] = 1, 3  # whatever the side it lies on
        return labels


@cache
def patient(number: int, spacing: Spacing = (4, 4, 4)) -> Patient:
    head = phantom.draw(np.random.default_rng([5, number]), spacing)
    flair, t1 = (volume.astype(np.int16) for volume in head.channels)
    inside = ndimage.binary_fill_holes(ndimage.gaussian_filter(head.channels[0], 1) > 80)
    brain = (ndimage.binary_erosion(inside) | (head.label > 0)).astype(np.uint8)
    return Patient(flair, t1, head.label, brain, spacing)


def write(path: Path, data: Data, spacing: Spacing, shift: Sequence[float] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = shift
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def brats(root: Path) -> None:
    """Skull-stripped, four channels, one of them missing in one case."""
    for n in range(CASES):
        case, name = patient(n), f"BraTS-GLI-{n:05d}-000"
        flair, t1 = case.stripped
        volumes = {"t1n": t1, "t1c": t1, "t2w": flair, "t2f": flair, "seg": case.parts}
        for kind, volume in volumes.items():
            if (n, kind) != (1, "t2w"):
                write(root / name / f"{name}-{kind}.nii.gz", volume, case.spacing)


def isles(root: Path) -> None:
    """BIDS, with the FLAIR on a grid of its own: other voxels, another corner."""
    for n in range(CASES):
        case, name = patient(n), f"sub-strokecase{n + 1:04d}"
        flair, t1 = case.stripped
        session = root / name / "ses-0001"
        write(session / "dwi" / f"{name}_ses-0001_dwi.nii.gz", flair, case.spacing)
        write(session / "dwi" / f"{name}_ses-0001_adc.nii.gz", t1, case.spacing)
        path = session / "anat" / f"{name}_ses-0001_FLAIR.nii.gz"
        write(path, flair[1:, 1:, ::2], (4, 4, 8), shift=(4, 4, 0))
        label = root / "derivatives" / name / "ses-0001" / f"{name}_ses-0001_msk.nii.gz"
        write(label, case.lesion, case.spacing)
    (root / "dataset_description.json").write_text("{}")


def wmh(root: Path) -> None:
    """A folder a site, one of them deeper; label 2 is other pathology; originals beside."""
    for n, place in enumerate(SITES):
        case = patient(n, (4, 4, 6))
        label = case.lesion.copy()
        label[8:10, 16:19, 8:10] = 2
        write(root / place / "wmh.nii.gz", label, case.spacing)
        for folder in ("pre", "orig"):
            write(root / place / folder / "FLAIR.nii.gz", case.flair, case.spacing)
            write(root / place / folder / "T1.nii.gz", case.t1, case.spacing)


def ms(root: Path) -> None:
    """A brain mask each; a channel and texts that the recipe does not use."""
    for n in range(CASES):
        case, folder = patient(n), root / f"patient{n + 1:02d}"
        volumes = {"FLAIR": case.flair, "T1W": case.t1, "T1WKS": case.t1, "T2W": case.flair}
        volumes |= {"brainmask": case.brain, "consensus_gt": case.lesion}
        for kind, volume in volumes.items():
            write(folder / f"{kind}.nii.gz", volume, case.spacing)
        (folder / "T1W_to_FLAIR.txt").write_text("1 0 0 0")


def decathlon(root: Path, name: str, content: dict[str, Any]) -> list[tuple[Patient, str]]:
    names = [f"{name}_{n + 1:03d}.nii.gz" for n in range(CASES)]
    pairs = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names]
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(content | {"training": pairs, "test": []}))
    return [(patient(n), name) for n, name in enumerate(names)]


def brain_tumour(root: Path) -> None:
    """Four channels in one 4D file."""
    kinds = ("FLAIR", "T1w", "t1gd", "T2w")
    labels = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    content = {
        "modality": {str(n): kind for n, kind in enumerate(kinds)},
        "labels": {str(n): label for n, label in enumerate(labels)},
    }
    for case, name in decathlon(root, "BRATS", content):
        flair, t1 = case.stripped
        write(root / "imagesTr" / name, np.stack([flair, t1, t1, flair], -1), case.spacing)
        write(root / "labelsTr" / name, case.parts, case.spacing)


def lung(root: Path) -> None:
    """CT in Hounsfield units, one class."""
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}}
    for case, name in decathlon(root, "lung", content):
        write(root / "imagesTr" / name, case.flair - 1024, case.spacing)
        write(root / "labelsTr" / name, case.lesion, case.spacing)


@dataclass(frozen=True)
class Recipe:
    """A config, its layout, what a training here must have smaller, and what is to come of it.

    Args:
        name: Of the file.
        make: Writes the data set into a folder.
        smaller: Settings, beyond those for all.
        told: What `check` must say.
        cases: Their ids, in the order of the patients.
        classes: Their names.
        spacing: Voxels of the first channel, in mm.
    """

    name: str
    make: Callable[[Path], None]
    smaller: tuple[str, ...]
    told: tuple[str, ...]
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    spacing: Spacing = (4, 4, 4)


def numbered(pattern: str, first: int = 1) -> tuple[str, ...]:
    return tuple(pattern.format(n) for n in range(first, first + CASES))


RECIPES = (
    Recipe(
        "brats2023",
        brats,
        (CUBE,),
        ("t1n, t1c, t2w, t2f", "none: 4 cases; t2w: 1 case", "label 1, 2, 3"),
        numbered("BraTS-GLI-{:05d}-000", 0),
        ("whole", "core", "enhancing"),
    ),
    Recipe(
        "isles2022",
        isles,
        (CUBE, COARSE),
        ("dwi, adc, flair", "sub-strokecase0002_ses-0001_FLAIR.nii.gz: resampled onto the grid of"),
        numbered("sub-strokecase{:04d}"),
        ("infarct",),
    ),
    Recipe(
        "wmh2017",
        wmh,
        ("train.patch=[32, 32, 16]", "preprocess.spacing=[4, 4, 6]"),
        ("flair, t1", "label 1: "),
        tuple(place.rpartition("/")[2] for place in SITES),
        ("wmh",),
        (4, 4, 6),
    ),
    Recipe(
        "ms_open",
        ms,
        (CUBE, COARSE),
        ("flair, t1, t2",),
        numbered("patient{:02d}"),
        ("lesion",),
    ),
    Recipe(
        "msd_brain_tumour",
        brain_tumour,
        (CUBE,),
        ("FLAIR, T1w, t1gd, T2w", "enhancing tumour"),
        numbered("BRATS_{:03d}"),
        ("edema", "non-enhancing tumor", "enhancing tumour"),
    ),
    Recipe(
        "msd_lung",
        lung,
        (CUBE, COARSE),
        ("CT", "cancer"),
        numbered("lung_{:03d}"),
        ("cancer",),
    ),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_from_files_to_scores(recipe: Recipe, cli: Cli, tmp_path: Path) -> None:
    config, data, run = CONFIGS / f"{recipe.name}.yaml", tmp_path / "data", tmp_path / "run"
    recipe.make(data)

    code, said = cli("check", "-c", config, f"data.path={data}")
    assert code == 0, said
    for text in (f"{CASES - 1} train, 1 validate", "Ready to train", *recipe.told):
        assert text in said

    smaller = (f"data.path={data}", *SMALL, *recipe.smaller)
    code, said = cli("train", "-c", config, "-o", run, "--device", "cpu", *smaller)
    assert code == 0, said
    summary = json.loads((run / "validation" / "summary.json").read_text())
    assert summary["cases"] == 1
    assert tuple(summary["classes"]) == recipe.classes
    splits = json.loads((run / "splits.json").read_text())
    assert {*splits["train"], *splits["validation"]} == set(recipe.cases)
    (case,) = splits["validation"]
    mask = nifti.read_label(run / "validation" / f"{case}.nii.gz")
    assert mask.shape == patient(recipe.cases.index(case), recipe.spacing).lesion.shape
    assert "about: " in (run / "config.yaml").read_text()

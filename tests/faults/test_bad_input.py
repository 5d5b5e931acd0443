"""What users get wrong: one error that names file and remedy, before any training, exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

Recipe = Callable[..., Path]
Cli = Callable[..., tuple[int, str]]
Spoil = Callable[[Path], dict[str, Any]]


def manifest(data: Path, **changes: Any) -> None:
    path = data / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(path: Path, voxels: Any = None, shift: float = 0.0) -> None:
    """Write an image again, with other voxels or in another place."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy() if voxels is None else voxels
    affine = image.affine.copy()
    affine[0, 3] += shift
    nib.save(nib.Nifti1Image(data, affine), path)


def wrong_layout(data: Path) -> dict[str, Any]:
    return {"data.layout": "msd"}


def no_manifest(data: Path) -> dict[str, Any]:
    (data / "dataset.json").unlink()
    return {}


def no_folder(data: Path) -> dict[str, Any]:
    return {"data.path": str(data / "elsewhere")}


def missing_channel(data: Path) -> dict[str, Any]:
    (data / "imagesTr" / "head_002_0001.nii.gz").unlink()
    return {}


def label_without_image(data: Path) -> dict[str, Any]:
    for file in (data / "imagesTr").glob("head_002_*"):
        file.unlink()
    return {}


def image_without_label(data: Path) -> dict[str, Any]:
    (data / "labelsTr" / "head_003.nii.gz").unlink()
    return {}


def moved_label(data: Path) -> dict[str, Any]:
    change(data / "labelsTr" / "head_003.nii.gz", shift=2.5)
    return {}


def smaller_label(data: Path) -> dict[str, Any]:
    path = data / "labelsTr" / "head_003.nii.gz"
    change(path, np.asanyarray(nib.load(path).dataobj)[:-1])
    return {}


def unknown_value(data: Path) -> dict[str, Any]:
    path = data / "labelsTr" / "head_003.nii.gz"
    voxels = np.asanyarray(nib.load(path).dataobj).copy()
    voxels[3, 3, 3:5] = 7
    change(path, voxels)
    return {}


def fractional_value(data: Path) -> dict[str, Any]:
    path = data / "labelsTr" / "head_003.nii.gz"
    voxels = np.asanyarray(nib.load(path).dataobj).astype(np.float32)
    voxels[3, 3, 3] = 0.5
    change(path, voxels)
    return {}


def absent_class(data: Path) -> dict[str, Any]:
    manifest(data, labels={"background": 0, "lesion": 1, "necrosis": 2})
    return {}


def no_cases(data: Path) -> dict[str, Any]:
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(data / folder)
        (data / folder).mkdir()
    return {}


def truncated(data: Path) -> dict[str, Any]:
    path = data / "imagesTr" / "head_004_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])
    return {}


def all_nan(data: Path) -> dict[str, Any]:
    path = data / "imagesTr" / "head_004_0000.nii.gz"
    change(path, np.full(nib.load(path).shape, np.nan, np.float32))
    return {}


def no_foreground(data: Path) -> dict[str, Any]:
    for channel in ("0000", "0001"):
        path = data / "imagesTr" / f"head_004_{channel}.nii.gz"
        change(path, np.full(nib.load(path).shape, 7, np.float32))
    return {"preprocess.mask": "otsu_plus"}


def no_region(data: Path) -> dict[str, Any]:
    return {"preprocess.mask": "file"}


def unknown_in_split(data: Path) -> dict[str, Any]:
    split = data / "split.json"
    split.write_text(json.dumps({"train": ["head_001", "head_009"], "validation": ["head_002"]}))
    return {"data.split": {"file": str(split)}}


def odd_patch(data: Path) -> dict[str, Any]:
    return {"train.patch": [16, 18, 16]}


def tiny_patch(data: Path) -> dict[str, Any]:
    return {"train.patch": [4, 4, 4]}


def odd_window(data: Path) -> dict[str, Any]:
    return {"inference.patch": [16, 16, 10]}


def refused_normalise(data: Path) -> dict[str, Any]:
    return {"preprocess.normalise": [{"name": "window", "low": 3.0, "high": 1.0}]}


def refused_augment(data: Path) -> dict[str, Any]:
    return {"augment.transforms": [{"name": "monai", "transform": "RandFlipp"}]}


def refused_loss(data: Path) -> dict[str, Any]:
    return {"loss": {"name": "cross_entropy", "class_weights": [1.0, 2.0, 3.0]}}


def refused_postprocess(data: Path) -> dict[str, Any]:
    return {"postprocess": [{"name": "min_volum", "mm3": 3.0}]}


WRONG: list[tuple[Spoil, list[str]]] = [
    (wrong_layout, ["dataset.json", "layout"]),
    (no_manifest, ["no dataset.json, which layout 'nnunet' needs", "layout 'folder' may fit"]),
    (no_folder, ["elsewhere", "no such"]),
    (missing_channel, ["head_002_0001.nii.gz", "no such file", "add it, or take the case out"]),
    (label_without_image, ["imagesTr", "head_002", "no such file", "take the case out"]),
    (image_without_label, ["head_003.nii.gz", "no such file", "take the case out"]),
    (moved_label, ["labelsTr/head_003.nii.gz", "2.5 mm apart", "resample it"]),
    (smaller_label, ["labelsTr/head_003.nii.gz", "voxels against", "resample it"]),
    (unknown_value, ["labelsTr/head_003.nii.gz", "7 (2 voxels)", "known are 0, 1", "ignore_label"]),
    (fractional_value, ["labelsTr/head_003.nii.gz", "0.5 at voxel (3, 3, 3)"]),
    (absent_class, ["'necrosis' (label 2) occurs in none of the", "data.classes"]),
    (no_cases, ["data", "no"]),
    (truncated, ["imagesTr/head_004_0000.nii.gz", "truncated", "copy it again"]),
    (all_nan, ["imagesTr/head_004_0000.nii.gz", "no voxel is finite"]),
    (
        no_foreground,
        ["imagesTr/head_004_0000.nii.gz", "otsu_plus finds no foreground", "data.mask"],
    ),
    (no_region, ["imagesTr/head_001_0000.nii.gz", "preprocess.mask: file", "set data.mask"]),
    (unknown_in_split, ["split.json", "head_009"]),
    (odd_patch, ["train.patch [16, 18, 16]", "divisible by [4, 4, 4]", "try [16, 16, 16]"]),
    (tiny_patch, ["(4, 4, 4)", "double one axis"]),
    (odd_window, ["inference.patch [16, 16, 10]", "divisible by [4, 4, 4]", "try"]),
    (refused_normalise, ["transform 'window'", "low 3.0 must be below high 1.0"]),
    (refused_augment, ["unknown MONAI transform 'RandFlipp'", "did you mean 'RandFlipd'"]),
    (refused_loss, ["loss 'cross_entropy'", "3 class_weights for 2 classes"]),
    (refused_postprocess, ["unknown postprocessor 'min_volum'", "did you mean 'min_volume'"]),
]


@pytest.fixture
def data(heads: Path, tmp_path: Path) -> Path:
    return shutil.copytree(heads, tmp_path / "data")


@pytest.mark.parametrize("spoil, said", WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
@pytest.mark.slow
def test_training_refuses_and_leaves_nothing(
    spoil: Spoil, said: list[str], data: Path, recipe: Recipe, tmp_path: Path, cli: Cli
) -> None:
    settings = {"data.path": str(data), **spoil(data)}
    code, told = cli("train", "-c", recipe(**settings), "-o", tmp_path / "run")
    assert code == 2, told
    for part in said:
        assert part in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spoil, said", WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_check_says_the_same(
    spoil: Spoil, said: list[str], data: Path, recipe: Recipe, cli: Cli
) -> None:
    code, told = cli("check", "-c", recipe(**{"data.path": str(data), **spoil(data)}))
    assert code == 2, told
    for part in said:
        assert part in told
    assert "Ready" not in told


@pytest.mark.slow
def test_check_of_what_is_well(recipe: Recipe, cli: Cli) -> None:
    code, told = cli("check", "-c", recipe())
    assert code == 0, told
    assert "Ready to train" in told
    assert "error" not in told


def test_all_bad_files_are_told_at_once(data: Path, recipe: Recipe, cli: Cli) -> None:
    for spoil in (missing_channel, moved_label, truncated):
        spoil(data)
    code, told = cli("check", "-c", recipe(**{"data.path": str(data)}))
    assert code == 2
    for name in ("head_002_0001.nii.gz", "head_003.nii.gz", "head_004_0000.nii.gz"):
        assert name in told


@pytest.mark.slow
def test_images_that_are_no_pair_name_both_sides(data: Path, recipe: Recipe, cli: Cli) -> None:
    """The folder layout finds cases by their files, so that one half is enough to be one."""
    settings = {
        "data": {
            "layout": "folder",
            "path": str(data),
            "channels": {"flair": "imagesTr/{id}_0000.nii.gz", "t1c": "imagesTr/{id}_0001.nii.gz"},
            "label": "labelsTr/{id}.nii.gz",
            "classes": {"lesion": 1},
            "split": {"folds": 3},
        }
    }
    label_without_image(data)
    image_without_label(data)
    code, told = cli("check", "-c", recipe(**settings))
    assert code == 2
    assert "imagesTr/head_002_0000.nii.gz: no such file, though case 'head_002' has" in told
    assert "labelsTr/head_003.nii.gz: no such file, though case 'head_003' has" in told


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_cannot_be_written_is_told_before_training(
    place: str, recipe: Recipe, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "file").write_text("mine")
    code, told = cli("train", "-c", recipe(), "-o", tmp_path / place)
    assert code == 2
    assert f"{tmp_path / place}: cannot be written: " in told
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("setting", ["train.precision", "inference.precision"])
def test_what_the_device_lacks_is_told_before_training(
    setting: str, recipe: Recipe, tmp_path: Path, cli: Cli
) -> None:
    code, told = cli(
        "train", "-c", recipe(**{setting: "fp16"}), "-o", tmp_path / "run", "--device", "cpu"
    )
    assert code == 2
    assert "fp16 needs a CUDA device; use bf16 or fp32" in told
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_told(recipe: Recipe, tmp_path: Path, cli: Cli) -> None:
    code, told = cli("train", "-c", recipe(), "-o", tmp_path / "run", "--device", "cuda:99")
    assert code == 2
    assert "--device cuda:99" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_masks_that_are_missing_or_elsewhere_are_told_by_evaluate(
    data: Path, recipe: Recipe, tmp_path: Path, cli: Cli
) -> None:
    path, masks = recipe(**{"data.path": str(data)}), tmp_path / "masks"
    masks.mkdir()
    code, told = cli("evaluate", "-c", path, "-i", masks, "-o", tmp_path / "scores")
    assert code == 2
    assert f"{masks}: holds no mask of a case, such as head_001.nii.gz" in told
    shutil.copy(data / "labelsTr" / "head_001.nii.gz", masks)
    change(masks / "head_001.nii.gz", shift=3.0)
    code, told = cli("evaluate", "-c", path, "-i", masks, "-o", tmp_path / "scores")
    assert code == 2
    assert "masks/head_001.nii.gz: not on the grid of" in told
    assert not (tmp_path / "scores").exists()

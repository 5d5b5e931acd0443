"""Channels that lack, or lie elsewhere, and bad weight maps: one line each, with file and remedy.

Every fault is first shown beside a good set that passes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.config.schema import Data
from medseg.errors import ConfigError, DataErrors, MedsegError
from medseg.inference.subsets import check_subsets
from medseg.volumes import cases
from medseg.volumes.check import check_cases
from medseg.volumes.dataset import Dataset

SHAPE = (4, 5, 6)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write(path: Path, data: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def ramp(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def binary(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.resize(np.array([0, 1], np.uint8), shape)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two good cases: a/flair.nii.gz, a/t1.nii.gz and so on."""
    for name in ("a", "b"):
        for channel in ("flair", "t1", "weights"):
            write(tmp_path / name / f"{channel}.nii.gz", ramp())
        for mask in ("label", "mask"):
            write(tmp_path / name / f"{mask}.nii.gz", binary())
    return tmp_path


def data(root: Path, **changes: object) -> Data:
    fields: dict[str, object] = {
        "layout": "folder",
        "path": str(root),
        "channels": {name: f"{{id}}/{name}.nii.gz" for name in ("flair", "t1")},
        "label": "{id}/label.nii.gz",
        "mask": "{id}/mask.nii.gz",
        "weights": "{id}/weights.nii.gz",
        "classes": {"lesion": 1},
    }
    return Data.model_validate(fields | changes)


def faults(settings: Data) -> list[str]:
    """Every line that the user sees."""
    with pytest.raises(MedsegError) as caught:
        check_cases(cases.find(settings), need_labels=True).raise_problems()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("grids", ["refuse", "resample"])
@pytest.mark.parametrize("missing", ["refuse", "zero"])
def test_a_good_set_passes(root: Path, grids: str, missing: str) -> None:
    settings = data(root, grids=grids, missing=missing)
    check_cases(cases.find(settings), need_labels=True).raise_problems()


# Missing channels


def test_a_channel_missing_in_one_case_is_a_fault_by_default(root: Path) -> None:
    (root / "b" / "t1.nii.gz").unlink()
    assert faults(data(root)) == [
        f"{root}/b/t1.nii.gz: no such file, though case 'b' has {root}/b/flair.nii.gz: "
        "add it, or take the case out"
    ]


def test_one_channel_is_needed_at_least(root: Path) -> None:
    for channel in ("flair", "t1"):
        (root / "b" / f"{channel}.nii.gz").unlink()
    lines = faults(data(root, missing="zero"))
    assert [line.split(":")[0] for line in lines] == [
        f"{root}/b/flair.nii.gz",
        f"{root}/b/t1.nii.gz",
    ]


def test_a_damaged_channel_is_not_a_missing_one(root: Path) -> None:
    (root / "b" / "t1.nii.gz").write_bytes(b"")
    (line,) = faults(data(root, missing="zero"))
    assert line.startswith(f"{root}/b/t1.nii.gz: ")


def test_a_link_to_nowhere_is_not_a_missing_channel(root: Path) -> None:
    """As on a drive that is not mounted: silence would train without it."""
    (root / "b" / "t1.nii.gz").unlink()
    (root / "b" / "t1.nii.gz").symlink_to(root / "gone.nii.gz")
    (line,) = faults(data(root, missing="zero"))
    assert line.startswith(f"{root}/b/t1.nii.gz: no such file")


def table(root: Path, *rows: str, **changes: object) -> Data:
    (root / "all.csv").write_text("\n".join(["id,flair,t1,label", *rows]))
    fields = {"layout": "csv", "path": str(root / "all.csv"), "classes": {"lesion": 1}}
    fields["channels"] = {"flair": "flair", "t1": "t1"}
    return Data.model_validate(fields | changes)


def test_a_file_that_a_table_names_has_to_be_there(root: Path) -> None:
    settings = table(root, "a,a/flair.nii.gz,a/typo.nii.gz,a/label.nii.gz", missing="zero")
    (line,) = faults(settings)
    assert line.startswith(f"{root}/a/typo.nii.gz: no such file")


def test_a_row_without_any_channel(root: Path) -> None:
    rows = ("a,,,a/label.nii.gz", "b,,b/t1.nii.gz,b/label.nii.gz")
    assert faults(table(root, *rows, missing="zero")) == [
        f"{root}/all.csv:2: empty cell in column flair, t1: fill it or drop the row"
    ]


def test_an_empty_cell_in_a_list_is_told_how_to_be_allowed(root: Path) -> None:
    (root / "list.txt").write_text("a/flair.nii.gz,\n")
    with pytest.raises(MedsegError) as caught:
        cases.find_inputs(root / "list.txt", table(root))
    assert str(caught.value) == (
        f"{root}/list.txt:1: no file for channel t1: add it, or allow it to be missing "
        "(data.missing: zero; medseg predict --missing zero)"
    )


# Grids


def moved(mm: float) -> Any:
    affine = AFFINE.copy()
    affine[0, 3] = mm
    return affine


@pytest.mark.parametrize("name", ["label", "mask", "weights"])
def test_what_goes_with_the_image_is_never_resampled(root: Path, name: str) -> None:
    write(root / "b" / f"{name}.nii.gz", binary(), moved(0.25))
    (line,) = faults(data(root, grids="resample"))
    assert line == (
        f"{root}/b/{name}.nii.gz: not on the grid of {root}/b/flair.nii.gz: the grids lie up to "
        "0.25 mm apart; resample it onto that grid, or name the channel that it was drawn on in "
        "data.reference"
    )


def test_channels_of_two_bodies(root: Path) -> None:
    write(root / "b" / "t1.nii.gz", ramp(), moved(3))
    (line,) = faults(data(root, grids="resample"))
    assert line.startswith(
        f"{root}/b/t1.nii.gz: covers only 25.0% of the grid of {root}/b/flair.nii.gz, 50% are "
        "needed: is it of another place of the body"
    )


def test_nothing_is_said_of_grids_where_the_reference_cannot_be_read(root: Path) -> None:
    (root / "b" / "flair.nii.gz").write_bytes(b"")
    write(root / "b" / "t1.nii.gz", ramp(), moved(50))
    (line,) = faults(data(root, grids="resample"))
    assert line.startswith(f"{root}/b/flair.nii.gz: ")


def test_a_reference_that_is_no_channel(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown channel 'flare'; did you mean 'flair'"):
        data(root, reference="flare")


def test_a_reference_that_dataset_json_does_not_have(root: Path) -> None:
    text = '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "lesion": 1}}'
    (root / "dataset.json").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.reference: unknown channel 'CT' \(known: MRI\)"):
        cases.resolve(Data(layout="nnunet", path=str(root), reference="CT"))


# Weight maps


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "a weight of -1: weights must be at least 0"),
        (np.nan, "1 of 120 voxels are NaN or infinite; mend them"),
        (np.inf, "1 of 120 voxels are NaN or infinite; mend them"),
    ],
)
def test_a_weight_that_is_none(root: Path, value: float, reason: str) -> None:
    weights = ramp()
    weights[1, 2, 3] = value
    path = write(root / "b" / "weights.nii.gz", weights)
    assert faults(data(root)) == [f"{path}: {reason}"]


@pytest.mark.filterwarnings("ignore:.*every voxel is 0")
def test_weights_that_are_all_0(root: Path) -> None:
    path = write(root / "b" / "weights.nii.gz", np.zeros(SHAPE, np.float32))
    assert faults(data(root)) == [f"{path}: every weight is 0: no patch could be drawn"]


def test_a_weight_map_that_is_not_there(root: Path) -> None:
    (root / "b" / "weights.nii.gz").unlink()
    (line,) = faults(data(root, missing="zero"))
    assert line.startswith(f"{root}/b/weights.nii.gz: no such file")


def test_weights_that_a_crop_cuts_away(root: Path) -> None:
    from medseg.config.schema import Preprocess
    from medseg.transforms.preprocess import Preprocessor
    from medseg.volumes.load import load_case

    mask, weights = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    mask[1:3, 1:3, 1:3] = weights[0, 0, 0] = 1
    write(root / "b" / "mask.nii.gz", mask)
    write(root / "b" / "weights.nii.gz", weights)
    dataset: Dataset = cases.find(data(root))
    loaded = load_case(dataset.cases[1], dataset)
    assert Preprocessor(Preprocess(), None)(loaded).weights is not None
    with pytest.raises(MedsegError, match=r"flair.nii.gz: preprocess.crop cuts away all that has"):
        Preprocessor(Preprocess(crop="foreground"), None)(loaded)


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_weights_in_a_layout_that_has_none(root: Path, layout: str) -> None:
    settings = Data.model_validate({"layout": layout, "path": str(root), "weights": "w.nii.gz"})
    with pytest.raises(ConfigError, match=rf"layout '{layout}' has no data\.weights"):
        cases.find(settings)


# Subsets


@pytest.mark.parametrize(
    ("channels", "reason"),
    [(1, "one channel has no subsets"), (6, "6 channels have 63 subsets, each a prediction")],
)
def test_too_few_or_too_many_subsets(channels: int, reason: str) -> None:
    for fine in (2, 5):
        check_subsets(fine)
    with pytest.raises(ConfigError, match=reason) as caught:
        check_subsets(channels)
    assert caught.value.path == ("evaluation", "subsets")


def test_all_of_it_is_said_at_once(root: Path) -> None:
    write(root / "a" / "weights.nii.gz", -ramp())
    write(root / "b" / "t1.nii.gz", ramp(), moved(1))
    with pytest.raises(DataErrors) as caught:
        check_cases(cases.find(data(root)), need_labels=True).raise_problems()
    assert len(caught.value.errors) == 2

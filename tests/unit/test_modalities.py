"""Channels that are missing or on other grids, and weight maps: from the files to the patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.config.fields import ComponentSpec
from medseg.config.schema import Data, Preprocess
from medseg.training import cache
from medseg.training.dataset import Patches, Recipe
from medseg.training.sampling import Sampling
from medseg.transforms.preprocess import Preprocessor
from medseg.volumes import cases
from medseg.volumes.check import check_cases
from medseg.volumes.dataset import Case, Dataset
from medseg.volumes.load import LoadedCase, load_case

SHAPE = (6, 7, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
CHANNELS = ("flair", "t1", "t2")
ALL = ("flair", "t1", "t2", "label", "weights")


def write(path: Path, data: Any, affine: Any = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def ramp(start: float, shape: tuple[int, ...] = SHAPE) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + start


def write_case(folder: Path, name: str, files: tuple[str, ...] = ALL) -> None:
    """A folder a case: ramps that begin at 100, 200 and 300; a weight where the label is."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    made = {"label": label, "weights": label * np.float32(2.5)}
    made |= {channel: ramp(100 * (n + 1)) for n, channel in enumerate(CHANNELS)}
    for file in files:
        write(folder / name / f"{file}.nii.gz", made[file])


def folder_data(root: Path, **changes: object) -> Data:
    fields: dict[str, object] = {
        "layout": "folder",
        "path": str(root),
        "channels": {name: f"{{id}}/{name}.nii.gz" for name in CHANNELS},
        "label": "{id}/label.nii.gz",
        "classes": {"lesion": 1},
    }
    return Data.model_validate(fields | changes)


def only(data: Data) -> tuple[LoadedCase, Case, Dataset]:
    dataset = cases.find(data)
    (case,) = dataset.cases
    return load_case(case, dataset), case, dataset


# Missing channels


def test_a_missing_file_makes_a_missing_channel(tmp_path: Path) -> None:
    write_case(tmp_path, "a", ("flair", "t2", "label"))
    loaded, case, dataset = only(folder_data(tmp_path, missing="zero"))
    assert case.channels[1] is None
    assert dataset.missing(case) == ("t1",)
    assert loaded.missing == (1,)
    assert [channel[0, 0, 0] for channel in loaded.image] == [100, 0, 300]
    assert not loaded.image[1].any()
    assert loaded.notes == ("case 'a': no channel t1, taken as 0 after normalisation",)
    assert all("t1" not in file.name for file in case.files)


def test_the_first_channel_there_gives_the_grid_where_the_reference_is_missing(
    tmp_path: Path,
) -> None:
    write_case(tmp_path, "a", ("t1", "t2", "label"))
    loaded, _, _ = only(folder_data(tmp_path, missing="zero"))
    assert loaded.reference.path.name == "t1.nii.gz"
    named, _, _ = only(folder_data(tmp_path, missing="zero", reference="t2"))
    assert named.reference.path.name == "t2.nii.gz"
    assert named.reference.data[0, 0, 0] == 300


def nnunet(root: Path) -> None:
    for name in ("a", "b"):
        for number in range(2):
            write(root / "imagesTr" / f"{name}_{number:04d}.nii.gz", ramp(100 * (number + 1)))
        write(root / "labelsTr" / f"{name}.nii.gz", np.resize(np.array([0, 1], np.uint8), SHAPE))
    content = {
        "channel_names": {"0": "flair", "1": "t1"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))


def test_in_nnunets_layout(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr" / "b_0000.nii.gz").unlink()
    data = Data(layout="nnunet", path=str(tmp_path), missing="zero")
    dataset = cases.find(data)
    assert [dataset.missing(case) for case in dataset.cases] == [(), ("flair",)]
    found = cases.find_inputs(tmp_path / "imagesTr", cases.resolve(data))
    assert [case.missing for case in found] == [(), (0,)]


def csv_data(root: Path, rows: list[str], **changes: object) -> Data:
    table = root / "all.csv"
    table.write_text("\n".join(["id,FLAIR,T1,label", *rows]))
    fields: dict[str, object] = {
        "layout": "csv",
        "path": str(table),
        "channels": {"flair": "FLAIR", "t1": "T1"},
        "classes": {"lesion": 1},
    }
    return Data.model_validate(fields | changes)


def test_an_empty_cell_is_a_missing_channel(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    data = csv_data(tmp_path, ["a,,a/t1.nii.gz,a/label.nii.gz"], missing="zero")
    loaded, case, _ = only(data)
    assert case.missing == (0,)
    assert loaded.reference.path == tmp_path / "a" / "t1.nii.gz"
    (found,) = cases.find_inputs(tmp_path / "all.csv", data)
    assert found.missing == (0,)


@pytest.mark.parametrize("line", ["\ta/t1.nii.gz", ",a/t1.nii.gz"])
def test_an_empty_cell_of_a_list(tmp_path: Path, line: str) -> None:
    write_case(tmp_path, "a")
    (tmp_path / "list.txt").write_text(line)
    data = csv_data(tmp_path, [], missing="zero")
    (case,) = cases.find_inputs(tmp_path / "list.txt", data)
    assert (case.id, case.missing) == ("t1", (0,))
    named = folder_data(
        tmp_path, channels={"flair": "{id}/flair.nii.gz", "t1": "{id}/t1.nii.gz"}, missing="zero"
    )
    (case,) = cases.find_inputs(tmp_path / "list.txt", named)
    assert (case.id, case.missing) == ("a", (0,))  # by the pattern of the channel that is there


def test_the_check_tells_which_channels_are_missing(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path, "b", ("t1", "label"))
    report = check_cases(cases.find(folder_data(tmp_path, missing="zero")), need_labels=True)
    report.raise_problems()
    assert [case.missing for case in report.cases] == [(), ("flair", "t2")]


@pytest.mark.parametrize(
    "steps", [({"name": "zscore"},), ({"name": "window", "low": 50, "high": 500},), ()]
)
def test_a_missing_channel_is_0_after_normalisation(
    tmp_path: Path, steps: tuple[dict[str, Any], ...]
) -> None:
    write_case(tmp_path, "a", ("flair", "t2", "label"))
    loaded, _, _ = only(folder_data(tmp_path, missing="zero"))
    settings = Preprocess(normalise=tuple(ComponentSpec.model_validate(step) for step in steps))
    prepared = Preprocessor(settings, (1.0, 1.0, 1.0))(loaded)
    assert prepared.missing == (1,)
    assert not prepared.image[1].any()
    assert prepared.image[0].any()


def test_a_case_without_a_channel_looks_like_one_that_lacks_it(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path / "b", "a", ("flair", "t2", "label"))
    whole, _, _ = only(folder_data(tmp_path, channels=folder_data(tmp_path).channels))
    lacking, _, _ = only(folder_data(tmp_path / "b", missing="zero"))
    dropped = whole.without((1,))
    assert whole.image[1].any()  # not changed in place
    assert dropped.missing == lacking.missing == (1,)
    np.testing.assert_array_equal(dropped.image, lacking.image)
    assert dropped.without((0,)).missing == (0, 1)


def cached(data: Data, folder: Path) -> tuple[cache.CachedCase, ...]:
    dataset = cases.find(data)
    made = Preprocessor(Preprocess(), None)
    return cache.fill(folder, dataset.cases, dataset, made, lambda: None)


def test_the_cache_knows_what_is_missing(tmp_path: Path) -> None:
    write_case(tmp_path / "data", "a", ("flair", "t2", "label"))
    data = folder_data(tmp_path / "data", missing="zero")
    (first,) = cached(data, tmp_path / "cache")
    (again,) = cached(data, tmp_path / "cache")
    assert first == again
    assert again.missing == (1,)
    write_case(tmp_path / "data", "a", ("t1",))  # it has come
    (whole,) = cached(data, tmp_path / "cache")
    assert whole.path != first.path
    assert whole.missing == ()
    assert whole.image()[1].any()


def test_files_count_by_what_they_are(tmp_path: Path) -> None:
    """The same bytes as another channel, or as weights in place of a mask, are another case."""
    write_case(tmp_path / "one", "a", ("flair", "label"))
    write_case(tmp_path / "two", "a", ("label",))
    write(tmp_path / "two" / "a" / "t1.nii.gz", ramp(100))
    one, two = (
        cached(folder_data(tmp_path / name, missing="zero"), tmp_path / "cache")[0]
        for name in ("one", "two")
    )
    assert one.path != two.path
    weights = write(tmp_path / "one" / "a" / "w.nii.gz", np.ones(SHAPE, np.float32) * ramp(1))
    assert weights.is_file()
    as_mask, as_weights = (
        cached(
            folder_data(tmp_path / "one", missing="zero", **{key: "{id}/w.nii.gz"}),
            tmp_path / "cache",
        )[0]
        for key in ("mask", "weights")
    )
    assert as_mask.path != as_weights.path


def test_patches_say_which_channels_are_present(tmp_path: Path) -> None:
    write_case(tmp_path / "data", "a", ("flair", "t2", "label"))
    made = cached(folder_data(tmp_path / "data", missing="zero"), tmp_path / "cache")
    patches = Patches(made, Recipe(Sampling((4, 4, 4), 0), ComponentSpec(name="uniform"), 2))
    assert patches[0]["present"].tolist() == [True, False, True]
    assert not patches[0]["image"][1].any()


# Other grids


def test_a_channel_on_another_grid_is_resampled_onto_the_reference(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    fine = np.repeat(ramp(200), 2, axis=2)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 3] = -0.5
    write(tmp_path / "a" / "t1.nii.gz", fine, affine)
    loaded, _, _ = only(folder_data(tmp_path, grids="resample"))
    assert loaded.image.shape == (3, *SHAPE)
    np.testing.assert_allclose(loaded.image[1], ramp(200), atol=0.6)  # smoothed along k
    np.testing.assert_array_equal(loaded.image[2], ramp(300))
    (note,) = loaded.notes
    assert note.startswith(f"{tmp_path}/a/t1.nii.gz: resampled onto the grid of {tmp_path}/a/flair")


def test_another_channel_may_be_the_reference(tmp_path: Path) -> None:
    write_case(tmp_path, "a", ("flair", "t2"))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write(tmp_path / "a" / "t1.nii.gz", ramp(200, (3, 4, 8)), affine)
    write(tmp_path / "a" / "label.nii.gz", np.resize(np.array([0, 1], np.uint8), (3, 4, 8)), affine)
    loaded, _, _ = only(folder_data(tmp_path, grids="resample", reference="t1"))
    assert loaded.reference.path.name == "t1.nii.gz"
    np.testing.assert_allclose(loaded.reference.affine, affine)
    np.testing.assert_array_equal(loaded.image[1], ramp(200, (3, 4, 8)))
    assert loaded.image.shape == (3, 3, 4, 8)
    assert loaded.reference.header["dim"][1:4].tolist() == [3, 4, 8]
    assert len(loaded.notes) == 2


def test_grids_within_the_tolerance_are_left_alone(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    affine = AFFINE.copy()
    affine[0, 3] = 9e-4
    write(tmp_path / "a" / "t1.nii.gz", ramp(200), affine)
    for grids in ("refuse", "resample"):
        loaded, _, _ = only(folder_data(tmp_path, grids=grids))
        np.testing.assert_array_equal(loaded.image[1], ramp(200))
        assert loaded.notes == ()


# Weight maps


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_weights_are_read_and_resampled(tmp_path: Path, layout: str) -> None:
    write_case(tmp_path, "a")
    data = folder_data(tmp_path, weights="{id}/weights.nii.gz")
    if layout == "csv":
        data = csv_data(tmp_path, ["a,a/flair.nii.gz,a/t1.nii.gz,a/label.nii.gz"])
        table = Path(data.path).read_text().splitlines()
        ends = ("where", "a/weights.nii.gz")
        text = "\n".join(f"{row},{end}" for row, end in zip(table, ends, strict=True))
        Path(data.path).write_text(text)
        data = data.model_copy(update={"weights": "where"})
    loaded, case, _ = only(data)
    assert case.weights in case.files
    assert loaded.weights is not None
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.weights, loaded.label * np.float32(2.5))
    prepared = Preprocessor(Preprocess(), (1.0, 1.0, 1.0))(loaded)
    assert prepared.weights is not None
    assert prepared.weights.shape == prepared.image.shape[1:] == (6, 7, 16)
    assert prepared.weights.dtype == np.float32
    assert prepared.weights[2, 2, 5] == pytest.approx(2.5)
    assert 0 < prepared.weights[2, 2, 3] < 2.5  # linear at the edge


def test_weights_are_no_case_of_their_own(tmp_path: Path) -> None:
    """`{id}.nii.gz` fits a_weights.nii.gz too."""
    for name in ("a", "a_weights"):
        write(tmp_path / f"{name}.nii.gz", ramp(1))
    data = folder_data(
        tmp_path, channels={"t1": "{id}.nii.gz"}, label=None, weights="{id}_weights.nii.gz"
    )
    assert [case.id for case in cases.find(data).cases] == ["a"]
    (case,) = cases.find_inputs(tmp_path, data)
    assert (case.id, case.weights) == ("a", None)  # prediction has no use for them


def test_the_cache_keeps_weights(tmp_path: Path) -> None:
    write_case(tmp_path / "data", "a")
    data = folder_data(tmp_path / "data", weights="{id}/weights.nii.gz")
    (case,) = cached(data, tmp_path / "cache")
    weights = case.weights()
    assert weights is not None
    np.testing.assert_array_equal(weights > 0, case.label() > 0)
    (without,) = cached(folder_data(tmp_path / "data"), tmp_path / "cache")
    assert without.weights() is None

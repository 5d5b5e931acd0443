"""What a data set's files are: told by names, then by contents; what is not clear is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.planning import layout, patterns
from medseg.planning.options import Options, label_values, pairs
from medseg.planning.words import are_sides, modality, role, short


def image(path: Path) -> None:
    write(path, np.arange(60, dtype=np.float32).reshape(3, 4, 5) / 7)


def label(path: Path) -> None:
    write(path, np.resize(np.array([0, 1, 2], np.uint8), (3, 4, 5)))


def write(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    "names, wanted",
    [
        (["images/{}.nii.gz", "labels/{}.nii.gz"], ["images/{id}.nii.gz", "labels/{id}.nii.gz"]),
        (["{}/flair.nii.gz", "{}/seg.nii"], ["{id}/flair.nii.gz", "{id}/seg.nii"]),
        (["{0}/{0}_t1.nii.gz", "{0}/{0}_seg.nii.gz"],
         ["{id}/{id}_seg.nii.gz", "{id}/{id}_t1.nii.gz"]),
        (["{}_flair.nii.gz", "{}_t1.nii.gz", "{}_seg.nii.gz"],
         ["{id}_flair.nii.gz", "{id}_seg.nii.gz", "{id}_t1.nii.gz"]),
        (["imagesTr/{}_0000.nii.gz", "imagesTr/{}_0001.nii.gz", "labelsTr/{}.nii.gz"],
         ["imagesTr/{id}_0000.nii.gz", "imagesTr/{id}_0001.nii.gz", "labelsTr/{id}.nii.gz"]),
        (["imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"],
         ["imagesTr/{id}_0000.nii.gz", "labelsTr/{id}.nii.gz"]),
        (["{}/anat/T1w.nii.gz", "{}/anat/lesion.nii.gz"],
         ["{id}/anat/T1w.nii.gz", "{id}/anat/lesion.nii.gz"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("stem", ["case_{}", "sub-{}", "P{}"])
def test_patterns_are_found(
    tmp_path: Path, names: list[str], wanted: list[str], count: int, stem: str
) -> None:
    ids = {stem.format(n) for n in range(count)}
    touch(tmp_path, *(name.format(one) for name in names for one in ids))
    found = patterns.find(tmp_path)
    assert sorted(files.text for files in found) == wanted
    assert all(files.ids == ids for files in found)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/t1.nii.gz", "b/t1.nii.gz", "a/._t1.nii.gz", ".trash/t1.nii.gz")
    (files,) = patterns.find(tmp_path)
    assert files.text == "{id}/t1.nii.gz"
    assert files.ids == {"a", "b"}


@pytest.mark.parametrize(
    "name, wanted",
    [("labelsTr", "label"), ("PET_mask", "mask"), ("pet_label", "label"), ("seg-B23_1", "label"),
     ("brainmask", "mask"), ("T1c_subtrMeanDivStd", "channel"), ("gt2", "label"),
     ("lesion_mask", "label"), ("sega", "channel")],
)  # fmt: skip
def test_roles_are_told_by_words(name: str, wanted: str) -> None:
    assert role(name) == wanted


@pytest.mark.parametrize(
    "name, wanted",
    [("CT", "ct"), ("ct_thorax", "ct"), ("pet", "pet"), ("PET_suv", "pet"), ("t1ct", "other"),
     ("octa", "other"), ("flair", "other")],
)  # fmt: skip
def test_modalities_are_told_by_words(name: str, wanted: str) -> None:
    assert modality(name) == wanted


def test_sides_are_told_by_words() -> None:
    assert are_sides(["kidney_left", "tumour"])
    assert are_sides(["HippocampusR"])
    assert are_sides(["hippocampus_l"])
    assert not are_sides(["anterior", "posterior", "lesion"])


@pytest.mark.parametrize(
    "names, wanted",
    [
        (["Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd"], ["flair", "t1c"]),
        (["PET_image"], ["pet"]),
        (["images"], ["image"]),
        (["imagesTr_0000", "imagesTr_0001"], ["0000", "0001"]),
        (["t1_a", "t1-a"], ["t1_a", "t1-a"]),  # short they would be one
    ],
)
def test_channels_get_short_names(names: list[str], wanted: list[str]) -> None:
    assert short(names) == wanted


def folder_set(root: Path) -> Path:
    for name in "abc":
        image(root / "images" / f"{name}.nii.gz")
        label(root / "labels" / f"{name}.nii.gz")
    return root


def test_images_and_labels(tmp_path: Path) -> None:
    found = layout.find(folder_set(tmp_path), Options())
    assert dict(found.data) == {
        "layout": "folder",
        "channels": {"image": "images/{id}.nii.gz"},
        "label": "labels/{id}.nii.gz",
        "mask": None,
    }
    assert set(found.why) >= {"layout", "channels", "label"}
    assert found.split is None


def test_a_label_without_a_name_is_told_by_its_values(tmp_path: Path) -> None:
    """As in DeepMedic's example cases: OTMultiClass beside a brain mask."""
    for name in "ab":
        image(tmp_path / name / "Flair_x.nii.gz")
        image(tmp_path / name / "T1c_x.nii.gz")
        label(tmp_path / name / "OTMultiClass.nii.gz")
        label(tmp_path / name / "brainmask.nii.gz")
    data = layout.find(tmp_path, Options()).data
    assert data["label"] == "{id}/OTMultiClass.nii.gz"
    assert data["mask"] == "{id}/brainmask.nii.gz"
    assert list(data["channels"]) == ["flair", "t1c"]


def test_a_lone_mask_is_the_label(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"{name}_pet.nii.gz")
        label(tmp_path / f"{name}_mask.nii.gz")
    data = layout.find(tmp_path, Options()).data
    assert (data["label"], data["mask"]) == ("{id}_mask.nii.gz", None)


def test_images_to_predict_are_no_channel(tmp_path: Path) -> None:
    folder_set(tmp_path)
    for name in "xyz":
        image(tmp_path / "imagesTs" / f"{name}.nii.gz")
    assert len(layout.find(tmp_path, Options()).data["channels"]) == 1


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(
        "case,t1,ct_image,truth_label,brain_mask,ml\n"
        "a,a/t1.nii.gz,a/ct.nii.gz,a/l.nii.gz,a/m.nii.gz,3.5\n"
        "b,,b/ct.nii.gz,b/l.nii.gz,b/m.nii.gz,4\n"
    )
    for path in (tmp_path, tmp_path / "cases.csv"):
        found = layout.find(path, Options())
        assert found.path == tmp_path / "cases.csv"
        assert dict(found.data) == {
            "layout": "csv",
            "channels": {"t1": "t1", "ct": "ct_image"},
            "label": "truth_label",
            "mask": "brain_mask",
            "missing": "zero",
        }
        assert "t1 in 1" in found.why["missing"]


@pytest.mark.parametrize(
    "content, files, wanted",
    [
        ({"channel_names": {"0": "t1"}}, "imagesTr/a_0000.nii.gz", "nnunet"),
        ({"modality": {"0": "t1"}, "training": []}, "imagesTr/a.nii.gz", "msd"),
        ({"modality": {"0": "t1"}, "training": []}, "imagesTr/a_0000.nii.gz", "nnunet"),
    ],
)
def test_dataset_json(tmp_path: Path, content: dict[str, object], files: str, wanted: str) -> None:
    touch(tmp_path, files)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert layout.find(tmp_path, Options()).data["layout"] == wanted
    other = layout.find(tmp_path, Options(layout="msd")).data
    assert other["layout"] == "msd"


def test_what_is_said_comes_first(tmp_path: Path) -> None:
    folder_set(tmp_path)
    for name in "abc":
        label(tmp_path / "segmentations" / f"{name}.nii.gz")
    with pytest.raises(DataError, match="may be the label: give --label"):
        layout.find(tmp_path, Options())
    both = Options(channels={"t1": "images/{id}.nii.gz"}, label="segmentations/{id}.nii.gz")
    data = layout.find(tmp_path, both).data
    assert data["channels"] == {"t1": "images/{id}.nii.gz"}
    assert data["label"] == "segmentations/{id}.nii.gz"


def test_a_split_beside_the_cases_is_taken(tmp_path: Path) -> None:
    folder_set(tmp_path)
    (tmp_path / "split.json").write_text("{}")
    assert layout.find(tmp_path, Options()).split == tmp_path / "split.json"
    named = layout.find(tmp_path, Options(split=Path("mine.json")))
    assert named.split == Path("mine.json")


def test_options_are_read() -> None:
    assert pairs(["t1=a/{id}.nii.gz", " t2 = b "], "--channel") == {
        "t1": "a/{id}.nii.gz", "t2": "b",
    }  # fmt: skip
    assert label_values(["core=1, 3", "lesion=2"]) == {"core": (1, 3), "lesion": 2}


@pytest.mark.parametrize("text", ["core", "=1", "core=", "core=0", "core=a", "core=1,,2"])
def test_bad_options_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--class"):
        label_values([text])
    with pytest.raises(ConfigError, match="twice"):
        pairs(["a=1", "a=2"], "--channel")

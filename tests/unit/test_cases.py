"""Every layout finds the same cases, under their own names, without renaming anything."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.config.schema import Data
from medseg.errors import ConfigError, DataError, DataErrors
from medseg.volumes import cases
from medseg.volumes.cases import Channel, Labels
from medseg.volumes.check import check_cases
from medseg.volumes.load import load_case

LESION = {"lesion": 1}


def write(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


def image(path: Path, value: float = 1.0, volumes: int = 0) -> Path:
    """Volume v of the file counts up from value + 1000 v."""
    ramp = np.arange(60, dtype=np.float32).reshape(3, 4, 5) + value
    if volumes:
        ramp = np.stack([ramp + 1000 * v for v in range(volumes)], axis=-1)
    return write(path, ramp)


def label(path: Path, values: tuple[int, ...] = (0, 1)) -> Path:
    return write(path, np.resize(np.array(values, np.uint8), (3, 4, 5)))


def manifest(folder: Path, **content: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


def folder_data(root: Path, **changes: object) -> Data:
    fields: dict[str, object] = {
        "layout": "folder",
        "path": str(root),
        "channels": {"t1": "images/{id}.nii.gz"},
        "label": "labels/{id}.nii.gz",
        "classes": LESION,
    }
    return Data(**(fields | changes))


def firsts(dataset: cases.Dataset) -> list[list[float]]:
    """The first voxel of every channel of every case, as loaded."""
    loaded = [load_case(case, dataset) for case in dataset.cases]
    return [[float(volume[0, 0, 0]) for volume in case.image] for case in loaded]


# The same two cases with two channels (1, 1001) and (2, 1002), in every layout.


def make_folder(root: Path) -> Data:
    for n in (1, 2):
        image(root / f"c{n}" / "flair.nii.gz", n)
        image(root / f"c{n}" / "t1.nii.gz", 1000 + n)
        label(root / f"c{n}" / "seg.nii.gz")
    channels = {"flair": "{id}/flair.nii.gz", "t1": "{id}/t1.nii.gz"}
    return folder_data(root, channels=channels, label="{id}/seg.nii.gz")


def make_csv(root: Path) -> Data:
    make_folder(root)
    rows = [f"c{n},c{n}/flair.nii.gz,c{n}/t1.nii.gz,c{n}/seg.nii.gz" for n in (2, 1)]
    (root / "all.csv").write_text("\n".join(["id,FLAIR,T1,label", *rows]))
    channels = {"flair": "FLAIR", "t1": "T1"}
    return Data(layout="csv", path=str(root / "all.csv"), channels=channels, classes=LESION)


def make_msd_4d(root: Path) -> Data:
    entries = []
    for n in (1, 2):
        image(root / "imagesTr" / f"c{n}.nii.gz", n, volumes=2)
        label(root / "labelsTr" / f"c{n}.nii.gz")
        entries.append({"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"})
    manifest(
        root,
        modality={"0": "flair", "1": "t1"},
        labels={"0": "background", "1": "lesion"},
        training=entries,
    )
    return Data(layout="msd", path=str(root))


def make_msd_files(root: Path) -> Data:
    make_folder(root)
    entries = [
        {"image": [f"c{n}/flair.nii.gz", f"c{n}/t1.nii.gz"], "label": f"./labels/c{n}.nii.gz"}
        for n in (1, 2)
    ]
    for n in (1, 2):
        label(root / "labels" / f"c{n}.nii.gz")
    manifest(
        root,
        channel_names={"0": "flair", "1": "t1"},
        labels={"background": 0, "lesion": 1},
        training=entries,
    )
    return Data(layout="msd", path=str(root))


def make_nnunet(root: Path) -> Data:
    for n in (1, 2):
        image(root / "imagesTr" / f"c{n}_0000.nii.gz", n)
        image(root / "imagesTr" / f"c{n}_0001.nii.gz", 1000 + n)
        label(root / "labelsTr" / f"c{n}.nii.gz")
    manifest(
        root,
        channel_names={"0": "flair", "1": "t1"},
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
    )
    return Data(layout="nnunet", path=str(root))


LAYOUTS = [make_folder, make_csv, make_msd_4d, make_msd_files, make_nnunet]


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_dataset(tmp_path, make):
    dataset = cases.find(make(tmp_path))
    assert [case.id for case in dataset.cases] == ["c1", "c2"]
    assert dataset.channels == ("flair", "t1")
    assert dataset.labels == Labels({"lesion": (1,)})
    assert firsts(dataset) == [[1, 1001], [2, 1002]]
    assert check_cases(dataset, need_labels=True).cases[1].voxels == {0: 30, 1: 30}


@pytest.mark.parametrize("make", LAYOUTS)
def test_macos_files_are_passed_over(tmp_path, make):
    data = make(tmp_path)
    for path in list(tmp_path.rglob("*.nii.gz")):
        path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7")
    assert len(cases.find(data).cases) == 2


@pytest.mark.parametrize("make", [make_msd_4d, make_msd_files, make_nnunet])
def test_a_resolved_config_needs_no_dataset_json(tmp_path, make):
    data = make(tmp_path)
    resolved = cases.resolve(data)
    assert cases.find(resolved) == cases.find(data)
    assert resolved.classes == {"lesion": (1,)}
    assert cases.resolve(resolved) == resolved


@pytest.mark.parametrize("make", [make_msd_4d, make_msd_files, make_nnunet])
def test_the_config_may_pick_and_reorder_channels(tmp_path, make):
    data = make(tmp_path)
    for pick in ({"b": "t1"}, {"b": "1"}):
        chosen = cases.find(data.model_copy(update={"channels": pick}))
        assert chosen.channels == ("b",)
        assert firsts(chosen) == [[1001], [1002]]
    with pytest.raises(ConfigError, match=r"no channel 'flare'.*did you mean 'flair'"):
        cases.find(data.model_copy(update={"channels": {"f": "flare"}}))


def test_ids_are_sorted_naturally(tmp_path):
    for name in ("p10", "p9", "P1", "p2a"):
        image(tmp_path / "images" / f"{name}.nii.gz")
    assert [case.id for case in cases.find(folder_data(tmp_path)).cases] == [
        "P1",
        "p2a",
        "p9",
        "p10",
    ]


def test_a_suffix_belongs_to_the_pattern_that_names_it(tmp_path):
    for name in ("a", "a_flair", "a_seg", "b_x", "b_x_flair", "b_x_seg"):
        image(tmp_path / f"{name}.nii.gz")
    channels = {"t1": "{id}.nii.gz", "flair": "{id}_flair.nii.gz"}
    data = folder_data(tmp_path, channels=channels, label="{id}_seg.nii.gz")
    found = cases.find(data)
    assert [case.id for case in found.cases] == ["a", "b_x"]
    assert [channel.path.name for channel in found.cases[1].channels] == [
        "b_x.nii.gz",
        "b_x_flair.nii.gz",
    ]
    assert [case.id for case in cases.find_inputs(tmp_path, data)] == ["a", "b_x"]


def test_a_pattern_takes_regular_expression_signs_literally(tmp_path):
    image(tmp_path / "images" / "a+(1).nii.gz")
    assert [case.id for case in cases.find(folder_data(tmp_path)).cases] == ["a+(1)"]


def test_regions_and_ignore_label_of_nnunet(tmp_path):
    data = make_nnunet(tmp_path)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    manifest(tmp_path, channel_names={"0": "a", "1": "b"}, labels=labels, file_ending=".nii.gz")
    found = cases.find(data).labels
    assert found == Labels({"whole": (1, 2, 3), "core": (2, 3)}, ignore=4)
    assert found.values == (1, 2, 3)


def test_classes_of_the_config_replace_those_of_dataset_json(tmp_path):
    data = make_nnunet(tmp_path).model_copy(update={"classes": {"x": 7}, "ignore_label": 9})
    assert cases.find(data).labels == Labels({"x": (7,)}, ignore=9)


def test_csv_takes_other_columns_separators_and_a_case_column(tmp_path):
    make_folder(tmp_path)
    table = tmp_path / "t.csv"
    table.write_text('\ufeffcase;pet;gt;age\n"c2";c2/t1.nii.gz;c2/seg.nii.gz;3\n\n', "utf-8")
    data = Data(layout="csv", path=str(table), channels={"p": "pet"}, label="gt", classes=LESION)
    (case,) = cases.find(data).cases
    assert (case.id, case.label) == ("c2", tmp_path / "c2/seg.nii.gz")


# Inputs to predict


def ids_and_firsts(found: tuple[cases.Case, ...], data: Data) -> list[tuple[str, list[float]]]:
    dataset = cases.Dataset(found, tuple(data.channels or {}), Labels({"lesion": (1,)}))
    assert all(case.label is None for case in found)
    return [(case.id, values) for case, values in zip(found, firsts(dataset), strict=True)]


BOTH = [("c1", [1, 1001]), ("c2", [2, 1002])]


@pytest.mark.parametrize("make", [make_folder, make_nnunet, make_msd_4d])
def test_inputs_of_a_folder(tmp_path, make):
    data = cases.resolve(make(tmp_path))
    (tmp_path / "dataset.json").unlink(missing_ok=True)
    source = tmp_path if make is make_folder else tmp_path / "imagesTr"
    assert ids_and_firsts(cases.find_inputs(source, data), data) == BOTH


def test_inputs_by_file_names_alone(tmp_path):
    image(tmp_path / "new" / "x1.nii.gz", 5)
    data = folder_data(tmp_path / "gone")
    assert ids_and_firsts(cases.find_inputs(tmp_path / "new", data), data) == [("x1", [5])]


def test_a_mask_told_apart_by_its_folder_alone_is_not_taken_for_the_image(tmp_path):
    image(tmp_path / "x1.nii.gz", 5)
    (case,) = cases.find_inputs(tmp_path, folder_data(tmp_path, mask="masks/{id}.nii.gz"))
    assert case.mask is None
    image(tmp_path / "x1_brain.nii.gz", 5)
    (case,) = cases.find_inputs(tmp_path, folder_data(tmp_path, mask="masks/{id}_brain.nii.gz"))
    assert case.mask == tmp_path / "x1_brain.nii.gz"


@pytest.mark.parametrize("separator", [",", "\t"])
def test_inputs_of_a_list(tmp_path, separator):
    data = make_folder(tmp_path)
    lines = [f"c{n}/flair.nii.gz{separator}{tmp_path}/c{n}/t1.nii.gz" for n in (2, 1)]
    (tmp_path / "in.txt").write_text("# mine\n" + "\n\n".join(lines) + "\n")
    assert ids_and_firsts(cases.find_inputs(tmp_path / "in.txt", data), data) == BOTH


def test_inputs_of_a_table_with_the_channels_names(tmp_path):
    data = make_nnunet(tmp_path)
    rows = [f"c{n},imagesTr/c{n}_0000.nii.gz,imagesTr/c{n}_0001.nii.gz" for n in (1, 2)]
    (tmp_path / "in.csv").write_text("\n".join(["id,flair,t1", *rows]))
    found = cases.find_inputs(tmp_path / "in.csv", data)
    assert ids_and_firsts(found, cases.resolve(data)) == BOTH


def test_one_file(tmp_path):
    data = folder_data(tmp_path)
    (case,) = cases.find_inputs(image(tmp_path / "odd.name.nii.gz"), data)
    assert (case.id, case.channels) == ("odd.name", (Channel(tmp_path / "odd.name.nii.gz"),))
    two = data.model_copy(update={"channels": {"a": "{id}_a.nii", "b": "{id}_b.nii"}})
    with pytest.raises(DataError, match=r"1 file\(s\) for a case of 2 channels \(a, b\)"):
        cases.find_inputs(tmp_path / "odd.name.nii.gz", two)


def test_a_picked_channel_of_a_4d_file_is_found_again_at_prediction(tmp_path):
    data = cases.resolve(make_msd_4d(tmp_path).model_copy(update={"channels": {"b": "t1"}}))
    (case,) = cases.find_inputs(tmp_path / "imagesTr" / "c1.nii.gz", data)
    assert case.channels == (Channel(tmp_path / "imagesTr" / "c1.nii.gz", 1, 2),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none", None, "no such file or folder"),
        ("x.docx", "", r"give a folder, a \.csv, a \.txt list, or a \.nii\.gz file"),
        ("x.txt", "\n", "no case in it"),
        ("x.txt", "a.nii.gz\nsub/a.nii.gz\n", "id 'a' is also that of"),
    ],
)
def test_sources_that_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        cases.find_inputs(tmp_path / name, folder_data(tmp_path))


def test_an_empty_folder_names_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no input file like images/\{id\}\.nii\.gz: the folder"):
        cases.find_inputs(tmp_path, folder_data(tmp_path))


# Labels


def test_labels_and_indices_are_inverse():
    labels = Labels({"core": (4,), "whole": (4, 2, 300)}, ignore=9)
    values = np.array([[0, 2, 4], [300, 9, 0]], np.int32)
    indices = labels.to_indices(values)
    assert indices.tolist() == [[0, 1, 2], [3, cases.IGNORE_INDEX, 0]]
    assert indices.dtype == np.uint8
    assert (labels.to_values(indices) == values).all()
    assert Labels({"a": (255,)}).to_values(np.array([0, 1])).dtype == np.uint8


@pytest.mark.parametrize("value", [-1, 3, 10, 2**31 - 1, -(2**31)])
def test_unknown_label_values_are_counted(value):
    values = np.array([0, 1, value, value], np.int32)
    with pytest.raises(
        DataError, match=rf"f\.nii: unknown label value {value} \(2 voxels\).*0, 1 "
    ):
        Labels({"a": (1,)}, ignore=9).to_indices(values, "f.nii")


@pytest.mark.parametrize(
    ("classes", "ignore"), [({"a": (1,)}, 1), ({"a": (0, 1)}, None), ({}, None), ({"a": (1,)}, 0)]
)
def test_labels_that_make_no_sense(classes, ignore):
    with pytest.raises(ConfigError):
        Labels(classes, ignore)


def test_too_many_label_values():
    with pytest.raises(ConfigError, match="255 label values"):
        Labels({str(value): (value,) for value in range(1, 256)})


def test_errors_cross_processes():
    errors = DataErrors([DataError("a", "x"), DataError("b", "y")])
    again = pickle.loads(pickle.dumps(errors))
    assert str(again) == "a: x\nb: y"
    assert [error.source for error in again.errors] == ["a", "b"]


# Real data

DATA = Path(os.environ.get("MEDSEG_DATA", "/nonexistent"))
REAL = {
    "hippocampus": (
        208,
        {
            "layout": "folder",
            "path": "hippocampus",
            "channels": {"t1": "images/{id}.nii.gz"},
            "label": "labels/{id}.nii.gz",
            "classes": {"anterior": 1, "posterior": 2},
        },
    ),
    "sts as csv": (
        35,
        {
            "layout": "csv",
            "path": "sts_sarcoma/manifest.csv",
            "channels": {"pet": "pet"},
            "label": "pet_label",
            "classes": {"tumour": 1},
        },
    ),
    "sts as folder": (
        35,
        {
            "layout": "folder",
            "path": "sts_sarcoma",
            "channels": {"pet": "{id}/PET_image.nii.gz"},
            "label": "{id}/PET_mask.nii.gz",
            "classes": {"tumour": 1},
        },
    ),
    "brats": (
        4,
        {
            "layout": "folder",
            "path": "brats2015",
            "channels": {
                "flair": "{id}/Flair_subtrMeanDivStd.nii.gz",
                "t1c": "{id}/T1c_subtrMeanDivStd.nii.gz",
            },
            "label": "{id}/OTMultiClass.nii.gz",
            "mask": "{id}/brainmask.nii.gz",
            "classes": {"whole": (1, 2, 3, 4), "core": (1, 3, 4), "enhancing": 4},
        },
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="MEDSEG_DATA names no folder")
@pytest.mark.parametrize("name", REAL)
def test_real_data_is_found_and_passes(name):
    count, fields = REAL[name]
    data = Data(**(fields | {"path": str(DATA / fields["path"])}))
    dataset = cases.find(data)
    assert len(dataset.cases) == count
    report = check_cases(dataset, need_labels=True)
    report.raise_problems()
    assert all(case.voxels[dataset.labels.values[0]] > 0 for case in report.cases)

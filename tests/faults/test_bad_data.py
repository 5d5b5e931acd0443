"""Data that cannot be trained on ends in one line per fault that names file and remedy (promise 3).

Every fault is first shown beside a good set that passes.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.config.schema import Data
from medseg.errors import ConfigError, DataError, DataErrors, MedsegError
from medseg.volumes import cases, nifti
from medseg.volumes.check import CheckReport, check_cases
from medseg.volumes.load import load_case

SHAPE = (3, 4, 5)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def image(path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Path:
    return write(path, np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine)


def label(path: Path, *values: float, dtype: type = np.uint8, affine: np.ndarray = AFFINE) -> Path:
    return write(path, np.resize(np.array(values or (0, 1), dtype), SHAPE), affine)


def good_folder(root: Path, **changes: object) -> Data:
    """Three good cases: t1/x.nii.gz, t2/x.nii.gz, labels/x.nii.gz, masks/x.nii.gz."""
    for name in ("x", "y", "z"):
        image(root / "t1" / f"{name}.nii.gz")
        image(root / "t2" / f"{name}.nii.gz")
        label(root / "labels" / f"{name}.nii.gz")
        label(root / "masks" / f"{name}.nii.gz", 1, 1, 0)
    fields: dict[str, object] = {
        "layout": "folder",
        "path": str(root),
        "channels": {"t1": "t1/{id}.nii.gz", "t2": "t2/{id}.nii.gz"},
        "label": "labels/{id}.nii.gz",
        "classes": {"lesion": 1},
    }
    return Data(**(fields | changes))


def good_msd(root: Path) -> Data:
    for name in ("x", "y"):
        image(root / "imagesTr" / f"{name}.nii.gz")
        label(root / "labelsTr" / f"{name}.nii.gz")
    training = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in ("x", "y")
    ]
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "lesion"},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return Data(layout="msd", path=str(root))


def good_nnunet(root: Path) -> Data:
    for name in ("x", "y"):
        image(root / "imagesTr" / f"{name}_0000.nii.gz")
        label(root / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return Data(layout="nnunet", path=str(root))


def check(data: Data) -> CheckReport:
    return check_cases(cases.find(data), need_labels=True)


def faults(data: Data) -> list[str]:
    """Every line that the user sees."""
    with pytest.raises(MedsegError) as caught:
        check(data).raise_problems()
    return str(caught.value).splitlines()


@pytest.mark.parametrize("make", [good_folder, good_msd, good_nnunet])
def test_good_sets_pass(tmp_path, make):
    check(make(tmp_path)).raise_problems()


# Pairs


@pytest.mark.parametrize(
    ("make", "removed", "kept"),
    [
        (good_folder, "labels/y.nii.gz", "t1/y.nii.gz"),
        (good_folder, "t2/y.nii.gz", "t1/y.nii.gz"),
        (good_msd, "labelsTr/y.nii.gz", "imagesTr/y.nii.gz"),
        (good_msd, "imagesTr/y.nii.gz", "labelsTr/y.nii.gz"),
        (good_nnunet, "labelsTr/y.nii.gz", "imagesTr/y_0000.nii.gz"),
        (good_nnunet, "imagesTr/y_0000.nii.gz", "labelsTr/y.nii.gz"),
    ],
)
def test_half_a_pair_is_named_with_its_other_half(tmp_path, make, removed, kept):
    data = make(tmp_path)
    (tmp_path / removed).unlink()
    (line,) = faults(data)
    assert line == (
        f"{tmp_path / removed}: no such file, though case 'y' has {tmp_path / kept}: "
        "add it, or take the case out"
    )


def test_a_label_alone_is_a_fault_in_layout_folder(tmp_path):
    data = good_folder(tmp_path)
    label(tmp_path / "labels" / "w.nii.gz")
    lines = faults(data)
    assert [line.split(":")[0] for line in lines] == [
        f"{tmp_path}/t1/w.nii.gz",
        f"{tmp_path}/t2/w.nii.gz",
    ]


@pytest.mark.parametrize("half", ["imagesTr", "labelsTr"])
def test_files_that_dataset_json_forgot(tmp_path, half):
    """The original hippocampus set has labels without image, which its dataset.json leaves out."""
    data = good_msd(tmp_path)
    label(tmp_path / half / "w.nii.gz")
    other = {"imagesTr": "labelsTr", "labelsTr": "imagesTr"}[half]
    (line,) = faults(data)
    assert line.startswith(f"{tmp_path}/{other}/w.nii.gz: no such file, though case 'w' has")


def test_whole_pairs_that_dataset_json_leaves_out_are_left_out(tmp_path):
    data = good_msd(tmp_path)
    for half in ("imagesTr", "labelsTr"):
        label(tmp_path / half / "w.nii.gz")
    check(data).raise_problems()
    assert [case.id for case in cases.find(data).cases] == ["x", "y"]


def test_training_needs_labels_configured(tmp_path):
    lines = faults(good_folder(tmp_path, label=None))
    assert len(lines) == 3
    assert lines[0] == (
        f"{tmp_path}/t1/x.nii.gz: case 'x' has no label: set data.label to where the labels are"
    )
    check_cases(cases.find(good_folder(tmp_path, label=None)), need_labels=False).raise_problems()


# Grids


def test_grids_that_differ_are_shown_in_mm(tmp_path):
    data = good_folder(tmp_path, mask="masks/{id}.nii.gz")
    check(data).raise_problems()
    moved = AFFINE.copy()
    moved[0, 3] = 0.25
    image(tmp_path / "t2" / "x.nii.gz", affine=moved)
    label(tmp_path / "labels" / "y.nii.gz", affine=moved)
    label(tmp_path / "masks" / "z.nii.gz", affine=moved)
    remedies = {"t2/x": ", or say data.grids: resample", "labels/y": "", "masks/z": ""}
    assert faults(data) == [
        f"{tmp_path}/{bad}.nii.gz: not on the grid of {tmp_path}/t1/{bad[-1]}.nii.gz: "
        f"the grids lie up to 0.25 mm apart; resample it onto that grid{remedy}"
        for bad, remedy in remedies.items()
    ]


def test_shapes_that_differ(tmp_path):
    data = good_folder(tmp_path)
    image(tmp_path / "t2" / "x.nii.gz", (3, 4, 6))
    (line,) = faults(data)
    assert "3 x 4 x 5 voxels against 3 x 4 x 6" in line


@pytest.mark.parametrize(("shift", "accepted"), [(0.0009, True), (0.0011, False)])
def test_the_tolerance_is_a_thousandth_of_a_mm(tmp_path, shift, accepted):
    data = good_folder(tmp_path)
    moved = AFFINE.copy()
    moved[1, 3] = shift
    label(tmp_path / "labels" / "x.nii.gz", affine=moved)
    assert any(case.problems for case in check(data).cases) != accepted


# Labels


def test_unknown_label_values_are_counted(tmp_path):
    data = good_folder(tmp_path)
    label(tmp_path / "labels" / "y.nii.gz", 0, 1, 3)
    (line,) = faults(data)
    assert line == (
        f"{tmp_path}/labels/y.nii.gz: unknown label value 3 (20 voxels); known are 0, 1: "
        "add it to data.classes or set data.ignore_label"
    )
    check(data.model_copy(update={"ignore_label": 3})).raise_problems()


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_labels_that_are_no_labels(tmp_path, value):
    data = good_folder(tmp_path)
    label(tmp_path / "labels" / "y.nii.gz", 0, 1, dtype=np.float32)
    check(data).raise_problems()
    label(tmp_path / "labels" / "y.nii.gz", 0, value, dtype=np.float32)
    (line,) = faults(data)
    assert line.startswith(f"{tmp_path}/labels/y.nii.gz: ")


def test_a_class_that_no_training_case_has(tmp_path):
    data = good_folder(tmp_path, classes={"lesion": 1, "core": (2, 3)})
    label(tmp_path / "labels" / "z.nii.gz", 0, 3)
    dataset = cases.find(data)
    check_cases(dataset, need_labels=True).raise_problems()
    report = check_cases(dataset, need_labels=True, train=["x", "y"])
    with pytest.raises(DataError) as caught:
        report.raise_problems()
    assert str(caught.value) == (
        f"{tmp_path}: class 'core' (label 2, 3) occurs in none of the 2 training cases: "
        "correct data.classes or the split"
    )


def test_a_channel_that_all_training_cases_lack(tmp_path):
    """Channels may be missing, but a slip in a pattern is no missing modality."""
    channels = {"t1": "t1/{id}.nii.gz", "t2": "t2/{id}_typo.nii.gz"}
    data = good_folder(tmp_path, channels=channels, missing="zero")
    assert faults(data) == [
        f"{tmp_path}: channel 't2' is missing in all 3 training cases: correct its pattern or "
        "column in data.channels, or take it out"
    ]
    image(tmp_path / "t2" / "z_typo.nii.gz")
    check(data).raise_problems()
    report = check_cases(cases.find(data), need_labels=True, train=["x", "y"])
    with pytest.raises(DataError, match="'t2' is missing in all 2 training cases"):
        report.raise_problems()


def test_a_region_that_names_a_label_which_no_training_case_has(tmp_path):
    """It may be a slip or a rare label: trained all the same, and said."""
    data = good_folder(tmp_path, classes={"lesion": (1, 7), "core": 1})
    report = check(data)
    report.raise_problems()
    assert report.notes == (
        f"{tmp_path}: label 7 of lesion occurs in none of the 3 training cases: if it is a slip, "
        "correct data.classes",
    )
    assert check(good_folder(tmp_path)).notes == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_label_of_one_value(tmp_path):
    data = good_folder(tmp_path)
    label(tmp_path / "labels" / "y.nii.gz", 0)
    report = check(data)
    report.raise_problems()  # a case without lesions is possible, but not without a word
    assert "labels/y.nii.gz" in report.cases[1].notes[0]
    label(tmp_path / "labels" / "y.nii.gz", 1)
    (line,) = faults(data)
    assert line.startswith(f"{tmp_path}/labels/y.nii.gz: every voxel has label 1")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_empty_mask_and_labels_outside_a_mask(tmp_path):
    data = good_folder(tmp_path, mask="masks/{id}.nii.gz")
    assert "10 labelled voxels lie outside" in check(data).cases[0].notes[-1]
    label(tmp_path / "masks" / "y.nii.gz", 0)
    (line,) = faults(data)
    assert line.startswith(f"{tmp_path}/masks/y.nii.gz: the mask is empty")


# All at once, and once


def test_all_faults_of_a_set_are_found_together_and_in_order(tmp_path):
    data = good_folder(tmp_path, classes={"lesion": 1})
    moved = AFFINE.copy()
    moved[2, 3] = 7
    (tmp_path / "t1" / "x.nii.gz").write_bytes(b"not a volume")
    label(tmp_path / "labels" / "x.nii.gz", 0, 9)
    image(tmp_path / "t2" / "y.nii.gz", affine=moved)
    (tmp_path / "labels" / "y.nii.gz").unlink()
    label(tmp_path / "labels" / "z.nii.gz", 0, 8)
    places = [line.split(": ")[0].removeprefix(f"{tmp_path}/") for line in faults(data)]
    assert places == [
        "t1/x.nii.gz",
        "labels/x.nii.gz",
        "labels/y.nii.gz",
        "t2/y.nii.gz",
        "labels/z.nii.gz",
    ]


def test_every_file_is_read_once(tmp_path, monkeypatch):
    data = good_folder(tmp_path, mask="masks/{id}.nii.gz")
    opened: list[Path] = []
    for name in ("read", "read_label"):
        original = getattr(nifti, name)

        def spy(path, original=original, **options):
            opened.append(Path(path))
            return original(path, **options)

        monkeypatch.setattr(nifti, name, spy)
    ticks: list[None] = []
    check_cases(cases.find(data), need_labels=True, progress=lambda: ticks.append(None))
    assert len(opened) == len(set(opened)) == 12
    assert len(ticks) == 3


def test_a_4d_file_is_read_once_and_must_hold_the_channels(tmp_path, monkeypatch):
    data = good_msd(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["modality"] = {"0": "a", "1": "b"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for name in ("x", "y"):
        image(tmp_path / "imagesTr" / f"{name}.nii.gz", (*SHAPE, 2))
    check(data).raise_problems()
    dataset = cases.find(data)
    reads: list[Path] = []
    original = nifti.read
    monkeypatch.setattr(
        nifti, "read", lambda path, **options: reads.append(path) or original(path, **options)
    )
    assert load_case(dataset.cases[0], dataset).image.shape == (2, *SHAPE)
    assert len(reads) == 1
    image(tmp_path / "imagesTr" / "x.nii.gz", (*SHAPE, 3))
    (line,) = faults(data)
    assert line == f"{tmp_path}/imagesTr/x.nii.gz: holds 3 volumes, needed are 2: one a channel"


# Layouts


@pytest.mark.parametrize(
    ("make", "layout", "message"),
    [
        (
            good_folder,
            "msd",
            "no dataset.json, which layout 'msd' needs: found labels/, masks/, "
            "t1/, t2/; layout 'folder' may fit",
        ),
        (good_folder, "nnunet", "no dataset.json, which layout 'nnunet' needs"),
        (good_msd, "nnunet", r"imagesTr: no file is named CASE_0000.nii.gz: .*layout 'msd' fits"),
        (good_nnunet, "msd", r'dataset.json: has no list "training"; layout \'nnunet\' fits'),
    ],
)
def test_the_wrong_layout_says_what_is_there(tmp_path, make, layout, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        cases.find(Data(layout=layout, path=str(tmp_path)))


def test_nnunet_v1_read_as_msd(tmp_path):
    data = good_msd(tmp_path)
    for path in (tmp_path / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    with pytest.raises(DataError, match=r"x_0000\.nii\.gz is: layout 'nnunet' fits"):
        cases.find(data)
    assert len(cases.find(data.model_copy(update={"layout": "nnunet"})).cases) == 2


@pytest.mark.parametrize("make", [good_folder, good_msd, good_nnunet])
def test_no_such_folder(tmp_path, make):
    data = make(tmp_path).model_copy(update={"path": str(tmp_path / "gone")})
    with pytest.raises(DataError, match=r"gone: no such folder; set data\.path"):
        cases.find(data)


@pytest.mark.parametrize("layout", ["folder", "csv", "nnunet", "msd"])
def test_no_cases(tmp_path, layout):
    fields = {"channels": {"a": "{id}.nii.gz"}, "classes": {"x": 1}}
    content = {"channel_names": {"0": "a"}, "labels": {"x": 1}, "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "t.csv").write_text("id,{id}.nii.gz\n")
    path = tmp_path / "t.csv" if layout == "csv" else tmp_path
    extra = fields if layout in ("folder", "csv") else {}
    with pytest.raises(DataError, match=r"no case in it|no file fits|no file is named"):
        cases.find(Data(layout=layout, path=str(path), **extra))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold a mapping"),
        ("{", "not valid JSON"),
        ({}, 'needs "channel_names"'),
        ({"channel_names": {"1": "a"}}, "numbered from 0"),
        ({"channel_names": {"0": "a"}}, 'needs "labels"'),
        ({"channel_names": {"0": "a"}, "labels": {"x": "one"}}, "'one' is not a label value"),
        ({"channel_names": {"0": "a"}, "labels": {"background": 0}}, "labels: label values must"),
        ({"channel_names": {"0": "a"}, "labels": {"x": 1, "ignore": 1}}, "also background or in"),
        ({"channel_names": {"0": "a"}, "labels": {"x": 1}, "file_ending": ".png"}, "'.png'"),
        ({"channel_names": {"0": "a"}, "labels": {"x": 1}, "file_ending": 3}, "file_ending 3"),
    ],
)
def test_dataset_json_that_makes_no_sense(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=f"dataset.json: .*{message}"):
        cases.find(Data(layout="nnunet", path=str(tmp_path)))


def test_all_bad_entries_of_training_are_said(tmp_path):
    data = good_msd(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"] += ["w", {"image": "a"}, {"image": ["a", "b"], "label": "c"}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataErrors) as caught:
        cases.find(data)
    assert [error.reason[:11] for error in caught.value.errors] == [
        "training[2]",
        "training[3]",
        "training[4]",
    ]


def test_a_field_the_layout_does_not_have(tmp_path):
    data = good_msd(tmp_path).model_copy(update={"label": "x"})
    with pytest.raises(ConfigError, match=r"layout 'msd' has no data\.label"):
        cases.find(data)


# Tables and ids


def table_data(path: Path) -> Data:
    return Data(layout="csv", path=str(path), channels={"t1": "t1"}, classes={"lesion": 1})


def test_all_bad_lines_of_a_table_are_said(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("id,t1,label\na,1.nii,2.nii\nb,,2.nii\na,3.nii,4.nii\n,5.nii,\n")
    with pytest.raises(DataErrors) as caught:
        cases.find(table_data(table))
    assert str(caught.value).splitlines() == [
        f"{table}:3: empty cell in column t1: fill it or drop the row",
        f"{table}:4: id 'a' is already in line 2: rename one",
        f"{table}:5: empty cell in column id, label: fill it or drop the row",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,t2\na,b\n", r"t\.csv:1: no column 't1'; the columns are id, t2"),
        ("name,t1\na,b\n", r"t\.csv:1: no column 'id'"),
        ("id,t1\na,b,c\n", r"t\.csv:2: 3 cells under 2 columns"),
        ("", r"t\.csv:1: no column 'id', 't1'; the columns are none"),
        (None, r"t\.csv: cannot be read as a table"),
        ("id,t1\n" + "a" * 200_000 + ",b\n", r"t\.csv:2: not a line of a table: field larger"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        cases.find(table_data(tmp_path / "t.csv"))


@pytest.mark.parametrize("name", ["../a", "a/b", "a\\b", "..", ".a", "a\tb", "a\x1b[31m"])
def test_ids_that_cannot_name_a_file(tmp_path, name):
    (tmp_path / "t.csv").write_text(f"id,t1\n{name},1.nii\n", "utf-8")
    with pytest.raises(DataError, match="cannot name an output file"):
        cases.find(table_data(tmp_path / "t.csv"))


def test_an_id_given_twice_by_file_names(tmp_path):
    data = good_msd(tmp_path)
    image(tmp_path / "more" / "x.nii.gz")
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["training"].append({"image": "more/x.nii.gz", "label": "more/x.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"more/x\.nii\.gz: id 'x' is also that of .*imagesTr/x"):
        cases.find(data)

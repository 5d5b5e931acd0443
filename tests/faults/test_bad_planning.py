"""What cannot be planned ends in one message that names the remedy, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

CLI = Callable[..., tuple[int, str]]


def write(path: Path, *, label: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(12 * 12 * 12, dtype=np.float32).reshape(12, 12, 12)
    nib.save(nib.Nifti1Image((ramp % 5 > 3).astype(np.uint8) if label else ramp, np.eye(4)), path)
    return path


def cases(root: Path, *names: str) -> Path:
    for name in names or "abc":
        write(root / "images" / f"{name}.nii.gz")
        write(root / "labels" / f"{name}.nii.gz", label=True)
    return root


def refused(cli: CLI, data: Path, *words: str | Path) -> str:
    """The message of an init that has to fail."""
    config = data.parent / "never.yaml"
    code, said = cli("init", data, "-o", config, *words)
    assert code == 2, said
    assert "Traceback" not in said
    assert not config.exists()
    return " ".join(said.split())


def test_an_empty_folder(cli: CLI, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "no .nii.gz or .nii file in it: the folder is empty" in refused(cli, tmp_path / "data")
    assert "no such file or folder" in refused(cli, tmp_path / "nowhere")


def test_a_single_case(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data", "a")
    said = refused(cli, data, "--label", "labels/{id}.nii.gz", "--channel", "t=images/{id}.nii.gz")
    assert "1 case: a training needs two at least" in said


def test_files_that_cannot_be_read_are_all_told(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    for name in "ac":
        (data / "images" / f"{name}.nii.gz").write_bytes(b"\x1f\x8b nothing")
    said = refused(cli, data)
    assert "images/a.nii.gz" in said
    assert "images/c.nii.gz" in said


def test_a_missing_label_is_named(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    (data / "labels" / "b.nii.gz").unlink()
    assert "labels/b.nii.gz: no such file" in refused(cli, data)


def test_no_labels_at_all(cli: CLI, tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / "data" / f"{name}_t1.nii.gz")
        write(tmp_path / "data" / f"{name}_t2.nii.gz")
    said = refused(cli, tmp_path / "data")
    assert "nothing seems to be the label: the files follow {id}_t1.nii.gz (3)" in said
    assert "give --label" in said


def test_two_candidates_for_the_label(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    for name in "abc":
        write(data / "seg" / f"{name}.nii.gz", label=True)
    said = refused(cli, data)
    assert "labels/{id}.nii.gz or seg/{id}.nii.gz may be the label: give --label" in said


def test_two_masks(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    for kind in ("brainmask", "roi"):
        for name in "abc":
            write(data / kind / f"{name}.nii.gz", label=True)
    assert "may be the mask: give --mask" in refused(cli, data)


def test_a_dataset_json_of_neither_kind(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"hello": 1}))
    said = refused(cli, data)
    assert 'neither "channel_names" (nnU-Net) nor a list "training"' in said
    assert "--layout" in said


def test_two_tables(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    for name in ("a", "b"):
        (data / f"{name}.csv").write_text("id,t1\n1,x.nii.gz\n")
    assert "several tables of cases (a.csv, b.csv)" in refused(cli, data)


def test_a_table_without_images(cli: CLI, tmp_path: Path) -> None:
    data = tmp_path / "cases.csv"
    data.write_text("id,age\na,30\n")
    assert "no column seems to be the label: the columns are id, age" in refused(cli, data)


def test_labels_beyond_what_can_be_guessed(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    label = np.zeros((12, 12, 12), np.int16)
    label[0] = 1035
    nib.save(nib.Nifti1Image(label, np.eye(4)), data / "labels" / "a.nii.gz")
    assert "label values up to 1035: say which are to be learnt, by --class" in refused(cli, data)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--budget", "soon"], "a budget is a time above 0"),
        (["--budget", "0s"], "a budget is a time above 0"),
        (["--memory", "lots"], "memory is a size above 0"),
        (["--class", "lesion"], "--class is NAME=VALUE"),
        (["--channel", "t1"], "--channel is NAME=VALUE"),
        (["--class", "other=7"], "unknown label value 1"),
        (["--layout", "nnunet"], "no dataset.json"),
        (["--split", "none.json"], "none.json"),
        (["--label", "labels/x.nii.gz"], "must contain {id}"),
        (["--name", "a b"], "--name is of letters"),
    ],
)
def test_options_that_make_no_sense(cli: CLI, tmp_path: Path, words: list[str], told: str) -> None:
    assert told in refused(cli, cases(tmp_path / "data"), *words)


def test_options_of_another_layout(cli: CLI, tmp_path: Path) -> None:
    data = cases(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1"}}))
    assert "leave out --label" in refused(cli, data, "--label", "labels/{id}.nii.gz")


def test_what_is_there_is_not_written_over(cli: CLI, tmp_path: Path) -> None:
    data, config = cases(tmp_path / "data"), tmp_path / "mine.yaml"
    config.write_text("precious")
    code, said = cli("init", data, "-o", config)
    assert code == 2
    assert "is there already: name another by -o, or give --force" in " ".join(said.split())
    assert config.read_text() == "precious"
    figures = tmp_path / "other.fingerprint.json"
    figures.write_text("precious")
    code, said = cli("init", data, "-o", tmp_path / "other.yaml")
    assert code == 2
    assert figures.read_text() == "precious"


def test_an_output_that_is_no_yaml(cli: CLI, tmp_path: Path) -> None:
    code, said = cli("init", cases(tmp_path / "data"), "-o", tmp_path / "config.json")
    assert code == 2
    assert "-o names the config to write" in said

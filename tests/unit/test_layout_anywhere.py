"""Layout folder with `**/` in front of its patterns: cases in a folder for each site."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from medseg.config.schema import Data
from medseg.errors import DataError
from medseg.volumes import cases


def sites(root: Path, *places: str) -> Path:
    for place in places:
        for name in ("pre/FLAIR.nii.gz", "orig/FLAIR.nii.gz", "wmh.nii.gz"):
            path = root / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def data(root: Path, **changes: object) -> Data:
    fields: dict[str, object] = {
        "layout": "folder",
        "path": str(root),
        "channels": {"flair": "**/{id}/pre/FLAIR.nii.gz"},
        "label": "**/{id}/wmh.nii.gz",
        "classes": {"wmh": 1},
    }
    return Data(**(fields | changes))


def test_cases_lie_at_any_depth(tmp_path: Path) -> None:
    root = sites(tmp_path, "11", "Utrecht/0", "Amsterdam/GE3T/100", ".trash/7")
    found = cases.find(data(root)).cases
    assert [(case.id, case.files[0].parents[1], case.label) for case in found] == [
        (name, root / place, root / place / "wmh.nii.gz")
        for name, place in (("0", "Utrecht/0"), ("11", "11"), ("100", "Amsterdam/GE3T/100"))
    ]
    assert [case.id for case in cases.find_inputs(root, data(root))] == ["0", "11", "100"]
    assert [case.id for case in cases.find_inputs(root / "Utrecht", data(root))] == ["0"]
    one = root / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz"
    assert [case.id for case in cases.find_inputs(one, data(root))] == ["0"]


def test_the_data_may_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    root = sites(tmp_path / ".data", "Utrecht/0")
    assert [case.id for case in cases.find(data(root)).cases] == ["0"]


def test_a_link_to_a_site_is_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "Utrecht").symlink_to(sites(tmp_path / "elsewhere", "0"), target_is_directory=True)
    (root / "Utrecht" / "again").symlink_to(root, target_is_directory=True)
    assert [case.id for case in cases.find(data(root)).cases] == ["0"]


def test_a_missing_half_is_expected_beside_the_other(tmp_path: Path) -> None:
    root = sites(tmp_path, "Utrecht/0")
    (root / "Utrecht" / "0" / "wmh.nii.gz").unlink()
    (case,) = cases.find(data(root)).cases
    assert case.label == root / "Utrecht" / "0" / "wmh.nii.gz"


def test_one_id_in_two_sites_is_refused(tmp_path: Path) -> None:
    """Also where one has the image alone and the other the label: they are two patients."""
    root = sites(tmp_path, "Utrecht/0", "Singapore/0")
    (root / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz").unlink()
    (root / "Singapore" / "0" / "wmh.nii.gz").unlink()
    with pytest.raises(DataError, match=r"Utrecht: id '0' is also in .*Singapore: rename one"):
        cases.find(data(root))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label": "{id}/wmh.nii.gz"}, "either all patterns begin with"),
        ({"label": "a/**/{id}/wmh.nii.gz"}, "in front, not later"),
        ({"label": "**/wmh.nii.gz"}, "must contain"),
    ],
)
def test_patterns_that_make_no_sense(changes: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        data(tmp_path, **changes)

"""A set that lacks channels, by the commands: check, train, predict, scores by subset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.volumes import nifti

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def lacking(heads: Path, tmp_path: Path) -> Path:
    """Six heads: the third without t1c, t1c of the fourth on a grid of its own."""
    folder = tmp_path / "heads"
    shutil.copytree(heads, folder)
    (folder / "imagesTr" / "head_003_0001.nii.gz").unlink()
    moved = folder / "imagesTr" / "head_004_0001.nii.gz"
    image = nib.load(moved)
    data, affine = np.asarray(image.dataobj), image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [2, 0, 0]  # the same voxels without the first two slices
    nib.save(nib.Nifti1Image(data[2:], affine), moved)
    return folder


def test_train_predict_and_score(
    lacking: Path, recipe: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    split = tmp_path / "split.json"
    names = [f"head_00{n}" for n in range(1, 7)]
    split.write_text(json.dumps({"train": names[1:5], "validation": [names[0], names[5]]}))
    config = recipe(
        **{
            "data.path": str(lacking),
            "data.missing": "zero",
            "data.grids": "resample",
            "data.split": {"file": str(split)},
            "augment.channel_dropout": 0.3,
            "evaluation.subsets": True,
        }
    )
    run, masks, scores = (tmp_path / name for name in ("run", "masks", "scores"))
    code, said = cli("check", "-c", config)
    assert code == 0, said
    assert "none: 5 cases; t1c: 1 case" in said
    assert "note: case 'head_003': no channel t1c" in said
    assert "head_004_0001.nii.gz: resampled onto the grid of" in said

    code, said = cli("train", "-c", config, "-o", run)
    assert code == 0, said
    assert "Every subset of the channels" in said
    found = json.loads((run / "validation" / "subsets.json").read_text())
    assert [(s["channels"], s["cases"]) for s in found] == [
        (["flair"], 2),
        (["t1c"], 2),
        (["flair", "t1c"], 2),
    ]
    summary = json.loads((run / "validation" / "summary.json").read_text())
    assert found[2]["mean_dice"] == pytest.approx(summary["mean_dice"])
    assert summary["every_subset"] == found
    assert "Every subset" in (run / "report.html").read_text()

    code, said = cli("predict", "-m", run, "-i", lacking / "imagesTr", "-o", masks)
    assert code == 0, said
    assert "warning" not in said
    assert json.loads((masks / "head_003.json").read_text())["missing"] == ["t1c"]
    shape = nifti.read_header(lacking / "imagesTr" / "head_004_0000.nii.gz").shape
    assert nifti.read_label(masks / "head_004.nii.gz").shape == shape

    code, said = cli("evaluate", "-c", config, "-i", masks, "-o", scores)
    assert code == 0, said
    assert "By the channels that were there" in said
    summary = json.loads((scores / "summary.json").read_text())
    assert [(s["channels"], s["missing"], s["cases"]) for s in summary["subsets"]] == [
        (["flair"], ["t1c"], 1),
        (["flair", "t1c"], [], 5),
    ]
    assert "Missing channels" in (scores / "report.html").read_text()

    code, said = cli(
        *("predict", "-m", run, "-i", lacking / "imagesTr", "-o", tmp_path / "strict"),
        *("--missing", "refuse"),
    )
    assert code == 3
    assert "5 predicted" in said
    assert "failed: head_003" in said

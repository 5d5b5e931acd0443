"""Forty steps of the shipped recipe on real volumes: enough to see that nothing is upside down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg import api
from medseg.config import load
from medseg.volumes import cases, nifti

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "configs" / "hippocampus.yaml"
TRAIN, VALIDATION = 24, 8


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("MEDSEG_DATA")
    if not root or not (Path(root) / "hippocampus").is_dir():
        pytest.skip("MEDSEG_DATA names no folder with hippocampus")
    return Path(root) / "hippocampus"


def test_forty_steps_find_the_hippocampus(data: Path, tmp_path: Path) -> None:
    ids = sorted(file.name.removesuffix(".nii.gz") for file in (data / "labels").glob("*.nii.gz"))
    split = {"train": ids[:TRAIN], "validation": ids[TRAIN : TRAIN + VALIDATION]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    settings = {
        "data.path": data,
        "data.split.file": tmp_path / "split.json",
        "train.budget": "{steps: 40}",
        "train.warmup": 0.1,
        "train.threads": 1,
        "train.ema": 0.9,
    }
    config = load(RECIPE, [f"{key}={value}" for key, value in settings.items()])
    api.train(config, tmp_path / "run", device="cpu", quiet=True)
    by_id = {case.id: case for case in cases.find(config.data).cases}
    scores = []
    for case in split["validation"]:
        label = by_id[case].label
        assert label is not None
        truth = nifti.read_label(label)
        mask = nifti.read_label(tmp_path / "run" / "validation" / f"{case}.nii.gz")
        np.testing.assert_array_equal(mask.affine, truth.affine)
        for value in (1, 2):
            p, t = mask.data == value, truth.data == value
            scores.append(2 * (p & t).sum() / (p.sum() + t.sum()))
    assert np.mean(scores) > 0.5
    summary = json.loads((tmp_path / "run" / "validation" / "summary.json").read_text())
    assert summary["cases"] == VALIDATION

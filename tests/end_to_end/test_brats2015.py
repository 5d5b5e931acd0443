"""DeepMedic's own example data: a few steps of the shipped recipe, inside the brain alone."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg import api
from medseg.config import load
from medseg.networks import checkpoint
from medseg.volumes import nifti

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "configs" / "brats2015_deepmedic.yaml"
CASES = ("brats_2013_pat0003_1", "brats_2013_pat0004_1")


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("MEDSEG_DATA")
    if not root or not (Path(root) / "brats2015").is_dir():
        pytest.skip("MEDSEG_DATA names no folder with brats2015")
    return Path(root) / "brats2015"


def test_sixty_steps_find_the_tumour(data: Path, tmp_path: Path) -> None:
    settings = {
        "data.path": data,
        "train.budget": "{steps: 60}",
        "train.warmup": 0.1,
        "train.ema": 0.8,
        "inference.flip": "[]",
        "inference.overlap": 0.0,
        "inference.prior_correction": 0.5,
        "evaluation.roi": "true",
    }
    config = load(RECIPE, [f"{key}={value}" for key, value in settings.items()])
    summary = api.train(config, tmp_path / "run", device="cpu", quiet=True)
    assert summary["classes"]["whole"]["dice"]["mean"] > 0.3
    assert list(summary["classes"]) == ["whole", "core", "enhancing"]
    for case in CASES:
        mask = nifti.read_label(tmp_path / "run" / "validation" / f"{case}.nii.gz")
        brain = nifti.read_label(data / case / "brainmask.nii.gz")
        np.testing.assert_array_equal(mask.affine, brain.affine)
        assert not mask.data[brain.data == 0].any()
        assert set(np.unique(mask.data)) <= {0, 1, 2, 3, 4}
    priors = checkpoint.load(tmp_path / "run" / "model.safetensors").priors
    assert priors is not None
    assert sum(priors.true[1:]) < 0.2 < sum(priors.seen[1:])  # half of the patches sit on lesion
    with (tmp_path / "run" / "validation" / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(CASES) * 3
    split = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert split["validation"] == list(CASES)

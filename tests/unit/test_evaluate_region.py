"""`evaluation.roi`: what lies outside the region of interest is nobody's merit or fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

import medseg
from medseg.errors import ConfigError, DataError

BOX = (slice(4, 12), slice(4, 12), slice(2, 8))


def write(path: Path, array: Any, dtype: Any = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array).astype(dtype), np.diag([1.0, 1.0, 2.0, 1.0])), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A case whose prediction is right inside the region, and wrong outside."""
    truth, prediction, mask = (np.zeros((16, 16, 10), np.uint8) for _ in range(3))
    mask[BOX] = 1
    truth[5:9, 5:9, 3:6] = 1
    prediction[5:9, 5:9, 3:6] = 1
    prediction[13:16, 13:16] = 1
    truth[0:2, 0:2] = 1
    image = np.where(mask, 50, 0) + np.arange(10)
    for name, array in (("image", image * mask), ("label", truth), ("mask", mask)):
        write(tmp_path / f"a_{name}.nii", array)
    write(tmp_path / "masks" / "a.nii", prediction)
    return tmp_path


def config(folder: Path, *, mask: str | None, computed: str | None, roi: bool = True) -> Any:
    values = {
        "name": "x",
        "data": {
            "layout": "folder", "path": str(folder), "channels": {"t1": "{id}_image.nii"},
            "label": "{id}_label.nii", "mask": mask, "classes": {"lesion": 1},
        },
        "preprocess": {"mask": computed},
        "model": {"encoder": {"name": "resnet"}, "decoder": {"name": "unet"}},
        "train": {"patch": [16, 16, 16], "budget": {"steps": 1}},
        "evaluation": {"roi": roi},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return medseg.load_config(path)


@pytest.mark.parametrize(("mask", "computed"), [("{id}_mask.nii", None), (None, "nonzero")])
def test_what_lies_outside_does_not_count(data: Path, mask: str, computed: str) -> None:
    found = config(data, mask=mask, computed=computed)
    summary = medseg.evaluate(data / "masks", found, data / "scores", quiet=True)
    assert summary["mean_dice"] == 1
    assert summary["classes"]["lesion"]["hd95_mm"]["mean"] == 0
    everywhere = config(data, mask=mask, computed=computed, roi=False)
    summary = medseg.evaluate(data / "masks", everywhere, data / "scores", quiet=True)
    assert summary["mean_dice"] < 0.5


def test_a_region_that_is_not_there_is_named(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.*roi needs a region.*preprocess\.mask"):
        config(data, mask=None, computed=None)
    for section in ("train", "inference"):
        text = (data / "run.yaml").read_text().replace("roi: true", "roi: false")
        (data / "run.yaml").write_text(text)
        with pytest.raises(ConfigError, match=rf"{section}.*roi needs a region"):
            medseg.load_config(data / "run.yaml", [f"{section}.roi=true"])
    (data / "a_mask.nii").unlink()
    found = config(data, mask="{id}_mask.nii", computed=None)
    with pytest.raises(DataError, match=r"a_mask\.nii.*no such file"):
        medseg.evaluate(data / "masks", found, data / "scores", quiet=True)

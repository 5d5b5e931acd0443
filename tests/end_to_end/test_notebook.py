"""The Python of examples/README.md, as it stands there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "examples" / "README.md"


def test_every_line_runs(
    model: Callable[..., Path], heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name, seed in (("run", 1), ("run1", 1), ("run2", 2)):
        (tmp_path / name).mkdir()
        shutil.copy(model(seed=seed), tmp_path / name / "model.safetensors")
    given = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    for path, name in zip(given, ("flair", "t1c"), strict=True):
        shutil.copy(path, tmp_path / f"{name}.nii.gz")
    loaded = [nib.load(path) for path in given]
    both = np.stack([one.get_fdata() for one in loaded], -1)
    nib.save(nib.Nifti1Image(both, loaded[0].affine), tmp_path / "both.nii.gz")
    monkeypatch.chdir(tmp_path)
    got: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), got)

    shape = both.shape[:3]
    assert got["shares"].shape == (2, *shape)
    assert got["doubt"].shape == shape
    assert 0 < got["doubt"].max() <= 0.5
    mask = nib.load("mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), got["shares"].argmax(0))
    np.testing.assert_array_equal(mask.affine, loaded[0].affine)
    assert got["lesion_ml"] == pytest.approx(np.asarray(mask.dataobj).sum() * 4 * 4 * 6 / 1000)
    assert got["case"].notes == ()

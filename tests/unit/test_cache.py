"""The cache of preprocessed cases: what it holds, when it is used again, what damage says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.config import load
from medseg.errors import DataError
from medseg.registry import TRANSFORMS
from medseg.training import cache
from medseg.training.setup import Setup, set_up
from medseg.volumes.load import load_case

Recipe = Callable[..., Path]


def fill(setup: Setup, folder: Path, **replaced: Any) -> tuple[cache.CachedCase, ...]:
    cases = replaced.get("cases", setup.dataset.cases[:2])
    preprocessor = replaced.get("preprocessor", setup.preprocessor)
    return cache.fill(folder, cases, setup.dataset, preprocessor, lambda: None)


@pytest.fixture
def setup(recipe: Recipe) -> Setup:
    return set_up(load(recipe()))


def test_a_cached_case_is_the_prepared_one(setup: Setup, tmp_path: Path) -> None:
    ticks: list[int] = []
    cases = setup.dataset.cases[:2]
    cached = cache.fill(
        tmp_path / "cache", cases, setup.dataset, setup.preprocessor, lambda: ticks.append(1)
    )
    assert [c.id for c in cached] == [c.id for c in cases]
    assert len(ticks) == 2
    for stored, case in zip(cached, cases, strict=True):
        prepared = setup.preprocessor(load_case(case, setup.dataset))
        np.testing.assert_array_equal(stored.image(), prepared.image)
        np.testing.assert_array_equal(stored.label(), prepared.label)
        assert not stored.image().flags.writeable
        assert stored.spacing == pytest.approx(prepared.spacing)
        classes, places = stored.voxels().T
        assert (prepared.label.ravel()[places] == classes).all()
        assert len(places) == np.count_nonzero(prepared.label)  # few enough to be kept all


def test_the_region_of_interest_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    setup = set_up(load(recipe(**{"preprocess.mask": "otsu_plus"})))
    (stored, _), (case, _) = fill(setup, tmp_path), setup.dataset.cases[:2]
    prepared = setup.preprocessor(load_case(case, setup.dataset))
    mask = stored.mask()
    assert mask is not None
    assert mask.dtype == bool
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(mask, prepared.mask)


def test_a_case_without_a_region_has_none(setup: Setup, tmp_path: Path) -> None:
    (stored, _) = fill(setup, tmp_path)
    assert stored.mask() is None
    assert stored.weights() is None


def test_what_is_there_is_not_made_again(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill(setup, tmp_path)
    monkeypatch.setattr(cache, "load_case", None)  # calling it would fail
    assert fill(setup, tmp_path) == first


@pytest.mark.slow
def test_another_input_or_setting_makes_another_entry(recipe: Recipe, tmp_path: Path) -> None:
    seen = set()
    for settings in (
        {},
        {"preprocess.spacing": [4, 4, 5]},
        {"preprocess.crop": "foreground"},
        {"preprocess.mask": "otsu_plus"},
        {"preprocess.normalise": [{"name": "zscore"}]},
    ):
        setup = set_up(load(recipe(**settings)))
        seen.add(fill(setup, tmp_path / "cache")[0].path)
    assert len(seen) == 5


def test_another_voxel_makes_another_entry(recipe: Recipe, heads: Path, tmp_path: Path) -> None:
    import shutil

    import nibabel as nib

    data = tmp_path / "data"
    shutil.copytree(heads, data)
    path = recipe(**{"data.path": str(data)})
    before = fill(set_up(load(path)), tmp_path / "cache")
    for part in ("imagesTr/head_001_0001.nii.gz", "labelsTr/head_001.nii.gz"):
        image = nib.load(data / part)
        voxels = np.asanyarray(image.dataobj).copy()
        voxels[16, 18, 14] = 1 - (voxels[16, 18, 14] > 0)
        nib.save(nib.Nifti1Image(voxels, image.affine, image.header), data / part)
        after = fill(set_up(load(path)), tmp_path / "cache")
        assert after[0].path != before[0].path
        assert after[1].path == before[1].path
        before = after


def test_an_edited_plugin_makes_another_entry(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cached voxels came through its transform."""
    monkeypatch.setattr(TRANSFORMS, "_components", dict(TRANSFORMS._components))
    plugin = tmp_path / "brighter.py"
    text = (
        "from medseg.registry import TRANSFORMS\n"
        "@TRANSFORMS.register('brighter')\n"
        "class Brighter:\n"
        "    def __init__(self) -> None:\n"
        "        pass\n"
        "    def __call__(self, data):\n"
        "        return {**data, 'image': data['image'] + 1}\n"
    )
    plugin.write_text(text)
    path = recipe(**{"plugins": [str(plugin)], "preprocess.normalise": [{"name": "brighter"}]})
    setup = set_up(load(path))
    before = fill(setup, tmp_path / "cache")
    plugin.write_text(text.replace("+ 1", "+ 2"))
    assert fill(setup, tmp_path / "cache")[0].path != before[0].path


def test_no_class_fills_the_list_of_places() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[:40] = 1
    label[50, 50, 50] = 2
    label[55:] = 255
    voxels = cache._voxels(label)
    classes, counts = np.unique(voxels[:, 0], return_counts=True)
    assert classes.tolist() == [1, 2]
    assert 10_000 < counts[0] <= cache._VOXELS_PER_CLASS
    assert counts[1] == 1
    assert (label.ravel()[voxels[:, 1]] == voxels[:, 0]).all()
    planes = np.unravel_index(voxels[voxels[:, 0] == 1, 1], label.shape)[0]
    assert set(planes) == set(range(40))  # spread over all of it

"""The cache of preprocessed cases: what it holds, when it is used again, what damage says."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


# Damage, other versions, full disks, company


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "does not fit|bytes instead of"),
        (lambda path: flip(path, -1000), "its content is not what was written"),
        (lambda path: flip(path, 20), "not a whole case|not what was written"),
    ],
)
def test_a_damaged_file_is_made_anew(
    damage: Callable[[Path], Any], said: str, setup: Setup, tmp_path: Path
) -> None:
    first = fill(setup, tmp_path)
    whole = first[0].path.read_bytes()
    damage(first[0].path)
    with pytest.warns(UserWarning, match=rf"head_001.*({said}).*the case is made anew"):
        again = fill(setup, tmp_path)
    assert again == first
    assert again[0].path.read_bytes() == whole


def test_a_file_of_another_version_is_made_anew(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache.casefile, "VERSION", 999)
        first = fill(setup, tmp_path, cases=setup.dataset.cases[:1])
    with pytest.warns(UserWarning, match=r"another version of medseg \(format 999, here"):
        again = fill(setup, tmp_path, cases=setup.dataset.cases[:1])
    assert again == first
    assert cache.casefile.check(again[0].path).version == cache.casefile.VERSION
    fill(setup, tmp_path)  # and without a warning


def test_folders_of_an_earlier_medseg_are_told_of(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "head_001-0123").mkdir()
    (tmp_path / "head_001-0123" / "case.json").write_text("{}")
    with pytest.warns(UserWarning, match="1 folders of an earlier medseg's cache are not used"):
        fill(setup, tmp_path, cases=())


def test_a_file_that_goes_while_it_is_used_is_named(setup: Setup, tmp_path: Path) -> None:
    (case, _) = fill(setup, tmp_path)
    case.path.unlink()
    with pytest.raises(DataError, match=r"head_001-.*: case 'head_001': No such file"):
        case.image()


def test_a_full_disk_says_how_much_is_needed_and_leaves_nothing_half(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    fsync = os.fsync

    def full(handle: int) -> None:
        if list(folder.glob("head*")) and list(folder.glob(".partial-*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"head_002.*the disk is full") as caught:
            fill(setup, folder, cases=setup.dataset.cases[:3])
    needed = next(folder.glob("head_001*")).stat().st_size / 1e6
    said = re.search(r"It needs ([\d.]+) MB, .*\(1\) up to about ([\d.]+) MB", str(caught.value))
    assert said is not None
    assert float(said[1]) == pytest.approx(needed, rel=0.5)
    assert float(said[2]) == pytest.approx(2 * float(said[1]), abs=0.11)
    assert [file.name[:8] for file in folder.iterdir()] == ["head_001"]
    assert len(fill(setup, folder, cases=setup.dataset.cases[:3])) == 3  # goes on


def test_a_file_size_limit_is_a_full_disk_too(setup: Setup, tmp_path: Path) -> None:
    """The system's own error, not one made up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match=r"the file size limit was reached.*It needs"):
            fill(setup, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_runs_fill_one_cache_at_once(setup: Setup, tmp_path: Path) -> None:
    """Each finds the other's cases or makes its own; whichever is last, all are whole."""
    cases = setup.dataset.cases[:4]
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(
            lambda order: fill(setup, tmp_path, cases=order), (cases, tuple(reversed(cases)))
        )
    assert one == tuple(reversed(two))
    assert len(list(tmp_path.iterdir())) == 4
    for case in one:
        cache.casefile.check(case.path)

"""The files of a case, read at the same time: the same result, whichever is read first."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.volumes import nifti
from medseg.volumes.reading import Job, Reading, turn

SHAPE = (4, 5, 6)
HEADER = nifti.new_header(SHAPE, np.diag([-1.0, -1, 2, 1]))


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Two volumes with a note each, a label, weights, and two files that are no good."""
    for name, value in (("a", 3.5), ("b", 7.5)):
        nifti.write(tmp_path / f"{name}.nii.gz", np.full(SHAPE, value), HEADER)
    nifti.write(tmp_path / "label.nii", np.arange(120).reshape(SHAPE), HEADER)
    nifti.write(tmp_path / "weights.nii", -np.arange(120.0).reshape(SHAPE), HEADER)
    (tmp_path / "bad.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-3])
    return [
        (tmp_path / "a.nii.gz", "volume"),
        (tmp_path / "b.nii.gz", "volumes"),
        (tmp_path / "label.nii", "label"),
        (tmp_path / "weights.nii", "weights"),
        (tmp_path / "bad.nii.gz", "volume"),
    ]


def outcome(jobs: list[Job], threads: int) -> list[str]:
    """All that becomes of files, in the order asked for: shapes, warnings, errors."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught, Reading(jobs, threads) as reading:
        warnings.simplefilter("always")
        for path, kind in jobs * 2:
            try:
                image = reading.get(path, kind)
            except DataError as error:
                told.append(str(error))
            else:
                assert image is not None
                told.append(f"{image.path} {image.data.shape} {image.data.sum()}")
            told += [str(warning.message) for warning in caught]
            caught.clear()
    return told


def test_threads_change_nothing(jobs: list[Job]) -> None:
    alone = outcome(jobs, 1)
    assert len(alone) == 2 * len(jobs) + 2  # each note once
    assert "truncated" in alone[-1]
    assert "at least 0" in alone[-2]
    for threads in (2, 5):
        for _ in range(5):
            assert outcome(jobs, threads) == alone


def test_what_is_no_job_is_not_there(jobs: list[Job]) -> None:
    with Reading(jobs[2:3]) as reading:
        assert reading.get(None, "label") is None
        assert reading.get(jobs[0][0], "volume") is None
        assert reading.get(*jobs[2]) is not None
        reading.forget()
        assert reading.get(*jobs[2]) is None


def test_files_are_read_at_once_and_each_but_once(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    meet, read, opened = threading.Barrier(2), nifti.read, []

    def together(path: Path, **options: bool) -> nifti.Image:
        opened.append(path)
        meet.wait(20)  # breaks unless two are here
        return read(path, **options)

    monkeypatch.setattr(nifti, "read", together)
    with Reading(jobs[:2] * 3, 2) as reading, pytest.warns(nifti.VolumeWarning):
        for path, kind in jobs[:2] * 3:
            assert reading.get(path, kind) is not None
    assert sorted(opened) == [path for path, _ in jobs[:2]]


@pytest.mark.parametrize("threads", [1, 3])
def test_any_other_error_comes_through_and_no_thread_stays(
    threads: int, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, **options: bool) -> nifti.Image:
        time.sleep(0.01)
        raise MemoryError(path.name)

    monkeypatch.setattr(nifti, "read", broken)
    with pytest.raises(MemoryError, match=r"a\.nii\.gz"), Reading(jobs, threads) as reading:
        reading.get(*jobs[0])
    assert not [t for t in threading.enumerate() if t.name.startswith("medseg-read")]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_work_done_together_comes_through(threads: int, jobs: list[Job]) -> None:
    with Reading(jobs, threads) as reading:
        done: list[int] = []
        reading.all(done.append, [(n,) for n in range(5)])
        assert sorted(done) == list(range(5))
        with pytest.raises(ZeroDivisionError):
            reading.all(divmod, [(1, 1), (1, 0)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 3), (1, 9, 2), (33, 17, 40)])
def test_turning_copies_every_voxel(shape: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    for source in (np.asfortranarray(values), values, values.astype(">f4")):
        target = np.zeros(shape, np.float32)
        turn(target, source)
        np.testing.assert_array_equal(target, values)

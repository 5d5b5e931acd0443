"""Promise 5: a file under its final name is complete, whatever interrupts the writing."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.volumes import nifti, writer

SHAPE = (64, 64, 40)
HEADER = nifti.new_header(SHAPE, np.diag([-1.0, -1, 2, 1]))
OLD = np.ones(SHAPE, np.uint8)
OLD[0, 0, 0] = 0
NOISE = np.random.default_rng(0).random(SHAPE)

START = """
    import sys
    import numpy as np
    from medseg.volumes import nifti
    folder = sys.argv[1]
    shape = (64, 64, 40)
    header = nifti.new_header(shape, np.diag([-1.0, -1, 2, 1]))
"""


def child(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(body)]


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_a_size_limit_is_an_error_that_says_so(name, tmp_path):
    nifti.write(tmp_path / name, OLD, HEADER)
    body = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0).random(shape)
        nifti.write(f"{folder}/NAME", noise, header)
    """.replace("NAME", name)
    run = subprocess.run([*child(body), str(tmp_path)], check=False, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"{name}: the file size limit was reached" in run.stderr
    assert only(tmp_path, name)
    np.testing.assert_array_equal(nifti.read_label(tmp_path / name).data, OLD)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_a_full_disk_is_an_error_that_says_so(name, small_disk):
    nifti.write(small_disk / "old.nii.gz", OLD, HEADER)
    for target in (name, "old.nii.gz"):
        with pytest.raises(DataError, match=f"{target}: the disk is full"):
            nifti.write(small_disk / target, NOISE, HEADER)
    assert only(small_disk, "old.nii.gz")
    np.testing.assert_array_equal(nifti.read_label(small_disk / "old.nii.gz").data, OLD)


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_whole_file_or_none(tmp_path):
    body = """
        masks = [np.random.default_rng(n).integers(0, 2 + n, shape) for n in range(2)]
        print("ready", flush=True)
        for turn in range(10**9):
            nifti.write(f"{folder}/mask.nii.gz", masks[turn % 2], header)
    """
    masks = [np.random.default_rng(n).integers(0, 2 + n, SHAPE) for n in range(2)]
    moments, interrupted = random.Random(0), 0
    for _ in range(12):
        with subprocess.Popen(
            [*child(body), str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0, 0.1))
            run.send_signal(signal.SIGKILL)
        if (tmp_path / "mask.nii.gz").exists():
            found = nifti.read_label(tmp_path / "mask.nii.gz").data
            assert any(np.array_equal(found, mask) for mask in masks)
        left = [path for path in tmp_path.iterdir() if path.name != "mask.nii.gz"]
        assert all(path.name.startswith(".partial-") for path in left)
        interrupted += bool(left)
        for path in left:
            path.unlink()
    assert interrupted


@pytest.mark.parametrize("change", ["flip", "truncate", "append", "empty"])
def test_what_reads_back_differently_never_gets_the_name(change, tmp_path, monkeypatch):
    store = writer._store

    def damaged(temporary: Path, *args) -> None:
        store(temporary, *args)
        data = bytearray(temporary.read_bytes())
        data[len(data) // 2] ^= 1
        whole = bytes(data) if change == "flip" else temporary.read_bytes()
        changed = {"truncate": whole[:-5], "append": whole + b"x", "empty": b""}
        temporary.write_bytes(changed.get(change, whole))

    for name in ("mask.nii", "mask.nii.gz"):
        nifti.write(tmp_path / name, OLD, HEADER)
        with monkeypatch.context() as patch:
            patch.setattr(writer, "_store", damaged)
            with pytest.raises(DataError, match=f"{name}: .*read back"):
                nifti.write(tmp_path / name, NOISE, HEADER)
        np.testing.assert_array_equal(nifti.read_label(tmp_path / name).data, OLD)
    assert only(tmp_path, "mask.nii", "mask.nii.gz")


def test_a_disk_that_fills_at_the_flush_is_an_error(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"mask\.nii\.gz: the disk is full"):
        nifti.write(tmp_path / "mask.nii.gz", OLD, HEADER)
    assert only(tmp_path)


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nifti.write(tmp_path / "mask.nii.gz", OLD, HEADER)
    assert only(tmp_path)


def test_a_name_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "mask.nii.gz").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "mask.nii.gz", tmp_path / "file" / "mask.nii.gz"):
        with pytest.raises(DataError, match=r"mask\.nii\.gz: cannot be written"):
            nifti.write(path, OLD, HEADER)
    assert only(tmp_path, "mask.nii.gz", "file")

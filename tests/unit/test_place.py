"""A folder is known again, whatever was mounted meanwhile, and no other is taken for it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.batch.place import Place, Stopped, error_number, try_writing
from medseg.errors import DataError


@pytest.mark.parametrize("witness", ["", "ledger.jsonl"])
def test_a_share_that_was_mounted_anew_is_the_same(witness: str, tmp_path: Path) -> None:
    """Its device has another number then."""
    (tmp_path / "ledger.jsonl").touch()
    place = replace(Place.of(tmp_path, witness), identity=(0, 0))
    place.check()


@pytest.mark.parametrize("witness, stray", [("", ""), ("ledger.jsonl", ""), ("ledger.jsonl", "x")])
def test_a_mount_point_without_its_share_is_not(witness: str, stray: str, tmp_path: Path) -> None:
    if stray:
        (tmp_path / stray).touch()
    place = Place.of(tmp_path, witness)
    if not witness:  # else the number of the inode may be the old one
        place = replace(place, identity=(0, 0))
    with pytest.raises(Stopped, match=r"another folder has taken its place; .* is mounted"):
        place.check()


def test_what_is_no_folder_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(DataError, match="No such file"):
        Place.of(folder)
    folder.mkdir()
    place = Place.of(folder)
    folder.rmdir()
    with pytest.raises(Stopped, match=r"the folder is gone \(No such file or directory\)"):
        place.check()
    folder.write_text("a file")
    with pytest.raises(Stopped, match=r"gone \(Not a directory\)"):
        place.check()


def test_a_try_leaves_no_trace(tmp_path: Path) -> None:
    try_writing(tmp_path)
    Place.of(tmp_path).check_writing(OSError(errno.ENOSPC, "full"))
    Place.of(tmp_path).check_writing(ValueError("nothing of a disk"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="cannot be written"):
        try_writing(Path("/proc/self"))


def test_the_number_of_an_error_is_that_of_its_cause() -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as error:
            raise DataError("a", "b") from error
    except DataError as error:
        assert error_number(error) == errno.EDQUOT
    assert error_number(DataError("a", "b")) is None

"""Folders on shares and disks that may vanish or fill up while a run goes on."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from medseg.errors import DataError, MedsegError
from medseg.files import atomic

_PROBE, _PROBE_FULL = 1 << 12, 1 << 20  # bytes; a disk with less than a MiB left is full


class Stopped(MedsegError):  # noqa: N818  (no error of a user: a state of the run)
    """What makes every further case pointless: a folder vanished, or nothing can be written."""


@dataclass(frozen=True)
class Place:
    """A folder as it was when the run began: another one under its name is not taken for it.

    Args:
        path: The folder.
        identity: Its device and inode; an unmounted share leaves a folder of another device.
        witness: A file in it that decides whether it is the same: numbers of inodes are given out
            again, and those of devices change when a share is mounted anew. Empty: there is none;
            then a folder of another identity is taken for it unless it is empty.
    """

    path: Path
    identity: tuple[int, int]
    witness: str = ""

    @classmethod
    def of(cls, path: Path, witness: str = "") -> Place:
        """Look at a folder.

        Raises:
            DataError: It is not there.
        """
        try:
            return cls(path, _identity(path), witness)
        except OSError as error:
            raise DataError(path, error.strerror or str(error)) from error

    def check(self) -> None:
        """See that it is still there.

        Raises:
            Stopped: It is gone, or something else lies in its place.
        """
        try:
            if self._is_known(_identity(self.path)):
                return
            what = "another folder has taken its place"
        except OSError as error:
            what = f"the folder is gone ({error.strerror or error})"
        raise Stopped(
            f"{self.path}: {what}; the run stops here. See whether its share or disk is mounted, "
            "and run the same command again: it goes on with what is missing"
        )

    def _is_known(self, identity: tuple[int, int]) -> bool:
        if self.witness:
            return (self.path / self.witness).exists()
        return identity == self.identity or next(self.path.iterdir(), None) is not None

    def check_writing(self, error: BaseException) -> None:
        """After a file could not be written: see whether any still can.

        Raises:
            Stopped: None can, or the folder is gone.
        """
        self.check()
        code = error_number(error)
        if code is None:
            return
        is_full = code in (errno.ENOSPC, errno.EDQUOT)
        try:
            try_writing(self.path, _PROBE_FULL if is_full else _PROBE)
        except DataError as found:
            raise Stopped(
                f"{self.path}: nothing can be written any more "
                f"({os.strerror(error_number(found) or code)}); the run stops here. Make room or "
                "give back the right to write, and run the same command again"
            ) from found


def try_writing(folder: Path, size: int = _PROBE) -> None:
    """Write a file of `size` bytes into a folder and remove it, whatever others do there.

    Raises:
        DataError: It cannot be written.
    """
    trial = folder / f".writable-{token_hex(8)}"
    with atomic(trial) as temporary:
        temporary.write_bytes(bytes(size))
    trial.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return status.st_dev, status.st_ino


def error_number(error: BaseException | None) -> int | None:
    """The errno of an error of the operating system, or of the one that it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__
    return None

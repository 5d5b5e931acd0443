"""The files of a case, read at the same time: unpacking leaves Python's lock to other threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from medseg.errors import DataError
from medseg.volumes import nifti
from medseg.volumes.image import Array, Image

Kind = Literal["volume", "volumes", "label", "weights"]
Job = tuple[Path, Kind]
MOST = 8  # files read at once, on however many cores


class Reading:
    """Files that are being read, from entering to leaving.

    What is odd about one is warned of when it is asked for, and an error raised then: so neither
    depends on which file was read first.

    Args:
        jobs: What to read. A file that is named twice is read once.
        threads: How many read at once; None: as many as there are cores for this process.
    """

    def __init__(self, jobs: Iterable[Job], threads: int | None = None) -> None:
        self._jobs = list(dict.fromkeys(jobs))
        self._threads = min(threads or cores(), len(self._jobs), MOST)
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[Job, Future[Image]] = {}
        self._read: dict[Job, Image | DataError] = {}

    def __enter__(self) -> Self:
        if self._threads > 1:
            self._pool = ThreadPoolExecutor(self._threads, "medseg-read")
            self._begun = {job: self._pool.submit(_read, job) for job in self._jobs}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def get(self, path: Path | None, kind: Kind) -> Image | None:
        """What a file holds; None if there is none, or it is not among the jobs.

        Raises:
            DataError: It cannot be used.
        """
        if path is None or (path, kind) not in self._jobs:
            return None
        job = (path, kind)
        if job not in self._read:
            self._read[job] = found = self._result(job)
            if isinstance(found, Image):
                nifti.say(found)
        known = self._read[job]
        if isinstance(known, DataError):
            raise known
        return known

    def forget(self) -> None:
        """Let go of all that was read: it can no more be asked for."""
        self._jobs.clear()
        self._read.clear()

    def all(self, work: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> None:
        """Call a function with each of several arguments, at the same time where that helps."""
        if self._pool is None:
            for each in arguments:
                work(*each)
            return
        for done in [self._pool.submit(work, *each) for each in arguments]:
            done.result()

    def _result(self, job: Job) -> Image | DataError:
        try:
            return self._begun.pop(job).result() if self._pool else _read(job)
        except DataError as error:
            return error


def turn(target: Array, source: Array) -> None:
    """Copy (I, J, K), slices slowest as files have them, to where they run fastest.

    Args:
        target: Where to, C-contiguous.
        source: Of the same shape.
    """
    for j in range(target.shape[1]):  # a row of all slices fits into the cache
        target[:, j] = source[:, j]


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(job: Job) -> Image:
    path, kind = job
    if kind == "weights":
        return _weights(path)
    if kind == "label":
        return nifti.read_label(path, warn=False)
    return nifti.read(path, volumes=kind == "volumes", warn=False)


def _weights(path: Path) -> Image:
    image = nifti.read(path, finite=True, warn=False)
    least = float(image.data.min())
    if least < 0:
        raise DataError(path, f"a weight of {least:g}: weights must be at least 0")
    if not image.data.any():
        raise DataError(path, "every weight is 0: no patch could be drawn")
    return image

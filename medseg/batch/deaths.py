"""A process that was to predict a case and is gone: what its end tells, in words."""

from __future__ import annotations

import signal
from collections import deque

from medseg.batch import outputs
from medseg.batch.entry import Entry
from medseg.batch.job import Job
from medseg.volumes.dataset import Case

ATTEMPTS = 2
"""How many processes a case may cost before it has failed."""

_CAUSES = {
    signal.SIGKILL: "out of memory?",
    signal.SIGTERM: "ended from outside?",
    signal.SIGSEGV: "a fault in native code: a library, a driver or a plugin?",
    signal.SIGABRT: "a fault in native code: a library, a driver or a plugin?",
    signal.SIGFPE: "a fault in native code: a library, a driver or a plugin?",
    signal.SIGILL: "a library was built for another processor?",
    signal.SIGBUS: "a disk or /dev/shm is full, or a file that was read shrank?",
}


def told(exitcode: int | None) -> str:
    """Say how a process ended, by its exit code: that of `multiprocessing`, or of a shell."""
    if exitcode is None:
        return "cut off, though it still runs"
    number = -exitcode if exitcode < 0 else exitcode - 128
    if number not in set(signal.Signals):
        return f"ended with exit code {exitcode}: it called exit?"
    cause = _CAUSES.get(signal.Signals(number))
    return f"killed by signal {number}" + (f": {cause}" if cause else "")


class Deaths:
    """What workers died of, and who is tried again.

    Args:
        job: Whose cases they are.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._count: dict[str, int] = {}
        self.again = deque[Case]()  # to be done once nothing else runs

    def add(self, case: Case, reason: str) -> Entry | None:
        """A worker has ended over a case: it is tried again, or it has failed."""
        self._count[case.id] = self._count.get(case.id, 0) + 1
        if self._count[case.id] < ATTEMPTS:
            self.again.append(case)
            return None
        reason = f"{ATTEMPTS} workers ended over this case, the last with none beside it: {reason}"
        try:  # what an earlier run made of it is stale
            outputs.discard(self._job.output, case.id)
        except OSError as error:
            reason += f" (and what is stale cannot be removed: {error.strerror or error})"
        return Entry.failure(case.id, reason)

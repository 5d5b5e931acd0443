"""Data workers end with the training, however it ends, and one that dies is no riddle.

Batches come from workers in shared memory, by torch's `file_descriptor` strategy, its default on
Linux: the name of a block is gone from /dev/shm as soon as it is open, so that nothing stays behind
even of processes that are killed. `file_system` would need a process of its own to clean up.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from medseg.config.schema import Train
from medseg.errors import MedsegError

Stream = Generator[Any]  # of batches
_PATIENCE = 3.0  # seconds until the death of a process is known to all
_DIED = re.compile(  # by torch's RuntimeErrors
    r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?:is killed by signal: "
    r"(?P<signal>[^.]+)|exited unexpectedly(?: with exit code (?P<code>\d+))?)"
)


@contextmanager
def watched(settings: Train) -> Iterator[Callable[[Stream], Stream]]:
    """Give a function that keeps a stream of batches: it and its workers end with the block.

    Raises:
        MedsegError: A worker died, of what, and how to go on.
    """
    with ExitStack() as stack:
        try:
            yield lambda stream: stack.enter_context(closing(stream))
        except RuntimeError as error:  # raised wherever the main process was at the time
            death = _DIED.search(str(error))
            if death is None:
                raise
            code = int(death["code"]) if death["code"] else None
            raise MedsegError(_told(death["pid"], death["signal"], code, settings)) from error


def death(workers: Sequence[BaseProcess], settings: Train) -> MedsegError | None:
    """The error of the workers that died; None: all live.

    A worker that dies while it hands over a batch shows as whatever then fails in this process; and
    of one that a forkserver started no signal comes.
    """
    end = time.monotonic() + _PATIENCE
    while all(worker.exitcode is None for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    for worker in workers:
        code = worker.exitcode
        if code is not None:
            name = signal.strsignal(-code) if code < 0 else None
            return MedsegError(_told(str(worker.pid), name, None if name else code, settings))
    return None


def _told(pid: str, name: str | None, code: int | None, settings: Train) -> str:
    if name == "Bus error":
        cause = f"shared memory may have run out, {_shared_memory()}: give a container more"
    elif name is not None:
        cause = "the machine's memory may have run out, and the system have ended it (dmesg tells)"
    else:
        cause = (
            "what it printed above tells why; a script that trains needs "
            "`if __name__ == '__main__':` around it"
        )
    end = f"ended by signal {name!r}" if name else f"ended{f' with code {code}' if code else ''}"
    return (
        f"a data worker, process {pid}, {end}: {cause}. Go on from the last state with "
        f"--resume, and with fewer train.workers ({settings.workers} now; the weights do not "
        "depend on them) if it comes again"
    )


def _shared_memory() -> str:
    folder = Path("/dev/shm")  # noqa: S108  (only looked at)
    if not folder.is_dir():
        return "of which there is no count"
    usage = shutil.disk_usage(folder)
    return f"{usage.free >> 20} MiB of {usage.total >> 20} free in {folder}"

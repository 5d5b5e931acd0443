"""Data workers end with the training, however it ends, and one that dies is no riddle.

Batches come from workers in shared memory, by torch's `file_descriptor` strategy, its default on
Linux: the name of a block is gone from /dev/shm as soon as it is open, so that nothing stays behind
even of processes that are killed. `file_system` would need a process of its own to clean up.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from medseg.config.schema import Train
from medseg.errors import MedsegError
from medseg.training.dataset import Batch

Stream = Generator[Batch]
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
            raise MedsegError(_told(death, settings)) from error


def _told(death: re.Match[str], settings: Train) -> str:
    signal, code = death["signal"], death["code"]
    if signal == "Bus error":
        cause = f"shared memory may have run out, {_shared_memory()}: give a container more"
    elif signal is not None:
        cause = "the machine's memory may have run out, and the system have ended it (dmesg tells)"
    else:
        cause = (
            "what it printed above tells why; a script that trains needs "
            "`if __name__ == '__main__':` around it"
        )
    end = (
        f"ended by signal {signal!r}" if signal else f"ended{f' with code {code}' if code else ''}"
    )
    return (
        f"a data worker, process {death['pid']}, {end}: {cause}. Go on from the last state with "
        f"--resume, and with fewer train.workers ({settings.workers} now; the weights do not "
        "depend on them) if it comes again"
    )


def _shared_memory() -> str:
    folder = Path("/dev/shm")  # noqa: S108  (only looked at)
    if not folder.is_dir():
        return "of which there is no count"
    usage = shutil.disk_usage(folder)
    return f"{usage.free >> 20} MiB of {usage.total >> 20} free in {folder}"

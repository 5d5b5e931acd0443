"""The process at the other end of `medseg.batch.pool`: one model, one case after the other.

Nothing heavy is imported before the process has said how it ends, so that it ends well even while
torch loads: at Ctrl-C the parent decides; when the parent is gone, so is this process, whatever it
does; a request to end (SIGTERM) unwinds, so that no partial file stays.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from medseg.batch.job import Job, Worker
    from medseg.volumes.dataset import Case

GRACE_S = 10.0
"""How long a process may take to end after it was asked to, before it is killed."""


def main(channel: Connection) -> None:
    """Take a job, then cases; give back what became of each, until the channel is closed.

    Sends (kind, value): ("ready", None) once the model is loaded; ("broken", reason) instead, if
    it cannot be; ("entry", Entry) for each case; ("stopped", reason) if going on is in vain, and
    ("lost", reason) if its device is of no more use; ("warning", text) at any time.

    Args:
        channel: The pipe. It gives a job and a number of threads, then cases.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    say = _speaker(channel)
    _forward_warnings(say)
    try:
        _work(channel, say)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        channel.close()  # the parent wants no more
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to unwind


def _work(channel: Connection, say: Callable[[str, Any], None]) -> None:
    job, threads = channel.recv()
    try:
        worker = load(job, threads)
    except Exception as error:  # noqa: BLE001  (the parent raises it)
        from medseg.batch.entry import told

        say("broken", told(error))
        return
    say("ready", None)
    kind, value = "ready", None
    while kind not in ("stopped", "lost"):
        kind, value = _do(worker, channel.recv())
        say(kind, value)


def _do(worker: Worker, case: Case) -> tuple[str, Any]:
    from medseg.batch.place import Stopped

    try:
        entry = worker(case)
    except Stopped as error:
        return "stopped", str(error)
    lost = _lost(worker.predictor.device) if entry.status == "failed" else None
    return ("entry", entry) if lost is None else ("lost", lost)


def load(job: Job, threads: int) -> Worker:
    """Load the model of a job in this process, which computes with so many threads.

    Raises:
        MedsegError: It cannot be loaded, or is another than the job's.
    """
    import numba
    import torch

    from medseg.batch.job import Worker
    from medseg.memory import keep_freed

    keep_freed()
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    return Worker(job)


def _lost(device: torch.device) -> str | None:
    """Why a device answers no more: after some errors CUDA refuses all that a process asks."""
    import torch

    if device.type == "cpu":
        return None
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _speaker(channel: Connection) -> Callable[[str, Any], None]:
    lock = threading.Lock()

    def say(kind: str, value: Any) -> None:
        with lock:  # warnings may come from any thread
            channel.send((kind, value))

    return say


def _forward_warnings(say: Callable[[str, Any], None]) -> None:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say("warning", str(message))

    warnings.showwarning = show


def _unwind(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)

"""Data workers that end with the training they work for, even if that is killed.

Torch's own watch looks at the parent's number. That of a worker from a fork server is the server,
which lives for as long as its workers do: the two would wait for each other for ever.
"""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait


def end_with_parent(worker: int) -> None:
    """Watch, in a thread, the process that trains; for `worker_init_fn` of a DataLoader."""
    del worker
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)

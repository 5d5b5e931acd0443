"""What a worker of a cluster made here does first: leave Ctrl-C to the process that made it."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by dask as a worker starts."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)

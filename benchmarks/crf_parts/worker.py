"""What the workers share: one call in a fresh process, its time, its memory, its marginals.

A worker runs in the Python of the one it measures, so this needs numpy only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Refine = Callable[..., Any]


def serve(refine: Refine) -> None:
    """Do the job that the first argument tells (JSON), and print what it took (JSON).

    A call on a small crop comes first: it imports and compiles all there is.

    Args:
        refine: Takes the job, image (M, I, J, K), brain (I, J, K) and probabilities
            (C, I, J, K), and returns marginals (C, I, J, K).
    """
    job = json.loads(sys.argv[1])
    first = _seconds(lambda: refine(job, *_inputs(job, "warm")))
    inputs = _inputs(job, job["part"])
    found: list[Any] = []
    before = _forget_peak()
    cpu = time.process_time()
    wall = _seconds(lambda: found.append(refine(job, *inputs)))
    cpu = time.process_time() - cpu
    peak = _status("VmHWM")
    told = {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mib": None if peak is None or before is None else peak - before,
        "first_call_s": first,
    }
    if job.get("marginals"):
        np.save(job["marginals"], found[0])
    print(json.dumps(told))


def _inputs(job: Job, part: str) -> list[Any]:
    folder = Path(job["inputs"]) / part
    return [np.load(folder / f"{name}.npy") for name in ("image", "brain", f"p{job['classes']}")]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forget_peak() -> float | None:
    """Make the highest memory so far the present one, which is returned (MiB; Linux only).

    Inputs are in memory by now. ru_maxrss would not do: it cannot be set back.
    """
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(f"{key}:")), None)

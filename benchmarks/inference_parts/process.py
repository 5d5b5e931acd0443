"""One call in a process of its own: CPU seconds, seconds on the clock, peak memory (Linux only).

Peak memory is that of the call: the highest resident size while it ran, less the size before it,
after what was free had been given back to the system. ru_maxrss would not do, for it cannot be set
back; where the kernel does not let the peak be forgotten, it is a lower bound.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Cost:
    """What a call took.

    Args:
        cpu_s: CPU seconds of all threads.
        wall_s: Seconds on the clock.
        peak_mb: Highest resident memory above that at the start, in MB (10^6 bytes).
    """

    cpu_s: float
    wall_s: float
    peak_mb: float


def measured(call: Callable[[], Any]) -> tuple[Any, Cost]:
    """Call once, and tell what it took beside what it gave."""
    before = _forget_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, Cost(cpu, wall, (_status("VmHWM") - before) / 1e6)


def spawn(script: Path, job: dict[str, Any], threads: int = 1) -> dict[str, Any]:
    """Run a script with a job (JSON) as its argument; return the JSON of its last line.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    done = subprocess.run(
        [sys.executable, str(script), json.dumps({**job, "threads": threads})],
        env=environment(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} {job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(threads: int) -> dict[str, str]:
    """That of a process with so many threads, in which scripts find their neighbours."""
    paths = [str(HERE.parent), str(HERE.parent / "plugins"), os.environ.get("PYTHONPATH", "")]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def told(cost: Cost, **more: Any) -> None:
    """Print a result as `spawn` reads it."""
    print(json.dumps({**asdict(cost), **more}), flush=True)


def _forget_peak() -> float:
    """Make the highest memory so far the present one, which is returned, in bytes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024.0 for x in lines if x.startswith(f"{key}:"))

"""A program and all that it starts: seconds, CPU seconds, and memory while it runs (Linux only)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inference_parts.process import environment

_EVERY_S = 0.1


def run(script: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run a driver in a session of its own.

    Returns:
        What it told, with "wall_s" from its start to its end, "cpu_s" and "peak_mb": the largest
        sum of its processes' proportional set sizes, looked at ten times a second (10^6 bytes).

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    log = Path(job["output"]).parent / f"{Path(job['output']).name}.log"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with log.open("w+") as out:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(job)],
            env=environment(job["threads"]), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                time.sleep(_EVERY_S)
        finally:
            _end(process.pid)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in log.read_text().splitlines() if line.startswith('{"call_s"')]
    if process.returncode or not lines:
        raise RuntimeError(f"{script.name}: {process.returncode}\n{log.read_text()[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(lines[-1]), "wall_s": wall, "cpu_s": cpu, "peak_mb": peak / 1e6}


def _memory(session: int) -> int:
    """Bytes of all processes of a session; what several share counts once."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        total += sum(int(x.split()[1]) * 1024 for x in lines if x.startswith("Pss:"))
    return total


def _end(group: int) -> None:
    """End what a driver may have left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return

"""What a training step takes, measured: memory and seconds, in a fresh process each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Triple

_KILLED = (-9, 137)  # what the system does to a process for which there is no memory left
_LONGEST = 900.0  # seconds; a step that takes that long is none to plan with


@dataclass(frozen=True)
class Request:
    """What to try.

    Args:
        config: YAML of the run.
        base: Where its relative paths start.
        channels: Of the input.
        classes: Of the output, background included.
        regions: The classes that make up each of `data.classes`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        volume: Voxels of a volume to predict.
        spacing: Its voxel size in mm.
        memory: Bytes that the process, or torch on a GPU, may take; 0: no limit.
        next: YAML of another run, whose work for a step is to be compared.
    """

    config: str
    base: str
    channels: int
    classes: int
    regions: tuple[tuple[int, ...], ...]
    device: str
    volume: tuple[int, int, int]
    spacing: Triple
    memory: int = 0
    next: str | None = None


@dataclass(frozen=True)
class Seconds:
    """CPU seconds of all threads, and seconds on the clock."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Measured:
    """What steps and a prediction took.

    Args:
        device: "cpu" or "cuda".
        precision: Of the steps.
        idle: Bytes of a process that has loaded torch and does nothing; 0 on a GPU.
        peak: The most bytes it ever had, `idle` included; on a GPU, those of torch there.
        free: Bytes that the machine, or the GPU, could still give.
        start_up: CPU seconds of all but training: imports, the network.
        step: Seconds of a step, the median of a few.
        predict: Of the prediction of the volume.
        next: How many times the work of this run's step the next one's is.
    """

    device: str
    precision: str
    idle: int
    peak: int
    free: int
    start_up: float
    step: Seconds
    predict: Seconds
    next: float


@dataclass(frozen=True)
class TooMuch:
    """There was not enough memory.

    Args:
        idle: Bytes of a process that has loaded torch and does nothing; 0: not known.
    """

    idle: int = 0


def run(request: Request) -> Measured | TooMuch:
    """Try a training step in a process of its own.

    Raises:
        MedsegError: It failed for another reason.
    """
    there = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "medseg.planning.trying"],
            input=json.dumps(asdict(request)), capture_output=True, text=True, check=False,
            timeout=_LONGEST, env={**os.environ, "PYTHONPATH": there},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise MedsegError(
            f"a few training steps took more than {_LONGEST:.0f} s on this device: give --memory, "
            "for a smaller network, or --device"
        ) from error
    if done.returncode in _KILLED:
        return TooMuch()
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MedsegError(f"a training step could not be tried: {said}")
    return _read(json.loads(done.stdout.splitlines()[-1]))


def _read(answer: Mapping[str, Any]) -> Measured | TooMuch:
    if "out_of_memory" in answer:
        return TooMuch(answer["idle"])
    step, predict = (Seconds(*answer[key]) for key in ("step", "predict"))
    return Measured(**{**answer, "step": step, "predict": predict})

"""What a case is while it is worked on, and what is told of it in the end."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from medseg.errors import MedsegError
from medseg.inference.predictor import Ready
from medseg.postprocess.prediction import Prediction
from medseg.volumes.dataset import Case
from medseg.volumes.load import LoadedCase


@dataclass(frozen=True)
class Entry:
    """What became of one case: a line of the ledger. It can be pickled.

    Args:
        id: The case.
        status: "done", "kept" (it was up to date) or "failed".
        reason: Why it failed.
        time: When it ended, UTC, ISO 8601.
        seconds: What each stage took: read, prepare, predict, postprocess, write.
        inputs: Hash of each input file.
        model: Hash of the model; of several, joined by "+".
        settings: Hash of the settings.
        outputs: Hash of each file written, by name relative to the output folder.
        notes: What was odd but accepted, such as ambiguous geometry.
        worker: Who did it: host-pid.
    """

    id: str
    status: Literal["done", "kept", "failed"]
    reason: str = ""
    time: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    model: str = ""
    settings: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    worker: str = ""

    @classmethod
    def failure(cls, case: str, reason: str) -> Entry:
        """A case that failed outside a worker, which may have died of it."""
        return cls(case, "failed", reason, now(), worker=whoami())

    def plain(self) -> dict[str, Any]:
        """The entry as plain values, for JSON."""
        return asdict(self)


@dataclass(eq=False)
class Task:
    """A case on its way through a worker's stages.

    Args:
        case: Which.
        record: What goes into its record beside the mask.
        seconds: What each stage took.
        is_kept: Its outputs are up to date; nothing is to do.
        reason: Why it failed, if it did; later stages leave it alone.
        loaded: As read.
        ready: On the network's grid.
        prediction: As the network gave it.
    """

    case: Case
    record: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    is_kept: bool = False
    reason: str = ""
    loaded: LoadedCase | None = None
    ready: Ready | None = None
    prediction: Prediction | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to compute or to write."""
        return self.is_kept or bool(self.reason)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Take the seconds of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.perf_counter() - start, 4)


def told(error: BaseException) -> str:
    """An error as a reason: with its type, unless it is one of ours."""
    text = readable(str(error).strip() or repr(error))
    return text if isinstance(error, MedsegError) else f"{type(error).__name__}: {text}"


def readable(text: object) -> str:
    """A text that any file and terminal takes: bytes of paths that are no UTF-8 are escaped."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def whoami() -> str:
    """Who works here: host-pid."""
    return f"{socket.gethostname()}-{os.getpid()}"

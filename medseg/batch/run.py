"""Many volumes: one bad case costs one case, and a rerun does only what is missing or stale.

Read `predict_cases` for the order of things: refuse what cannot be right, take the ledger, let an
engine turn cases into entries, write each down, and say what became of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.batch.job import Engine, Entry, Job, Stopped, Watch, Worker
from medseg.batch.ledger import FAILURES, Ledger, write_failures
from medseg.batch.pipeline import pipelined
from medseg.batch.place import Place
from medseg.batch.refusals import common_folder, refuse
from medseg.batch.shard import WHOLE, Shard
from medseg.console import Tick
from medseg.errors import DataError, MedsegError
from medseg.inference.predictor import Predictor
from medseg.volumes.dataset import Case

__all__ = ["FAILURES", "Outcome", "Start", "predict_cases"]

_BETWEEN_LISTS = 5.0  # seconds between lists of failures, while the run goes on

Start = Callable[[Worker, Watch], Engine]
"""Makes an engine of a worker of this process (its job can be sent to others) and a watch."""


@dataclass
class Outcome:
    """What became of each case, by id.

    Args:
        done: Predicted.
        kept: Up to date.
        failed: Why each failed.
        untried: Left because the run stopped.
        stopped: Why it did; empty: it went to its end.
    """

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    untried: list[str] = field(default_factory=list)
    stopped: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every case has its mask."""
        return not (self.failed or self.untried or self.stopped)

    def add(self, entry: Entry) -> None:
        """Count what became of a case."""
        if entry.status == "failed":
            self.failed[entry.id] = entry.reason
        else:
            (self.kept if entry.status == "kept" else self.done).append(entry.id)

    def plain(self) -> dict[str, Any]:
        """The outcome as plain values, for JSON."""
        return asdict(self)


def predict_cases(
    job: Job,
    predictor: Predictor,
    cases: Sequence[Case],
    tick: Tick,
    *,
    source: Path | None = None,
    shard: Shard = WHOLE,
    start: Start = pipelined,
    tell: Callable[[Entry], None] | None = None,
) -> Outcome:
    """Predict cases into a folder.

    Writes `ID.nii.gz` and `ID.json` for each, `ID_probabilities.nii.gz` where the config asks for
    them, else `confidence/ID.nii.gz` where it counts lesions (the probabilities within the
    predicted foreground, 0 elsewhere: all that the confidence of a lesion needs), a ledger, and
    `failures.json` and `failures.csv` while any case has failed last.

    Args:
        job: What to do with each.
        predictor: Its model.
        cases: All of them, of every shard, in natural order.
        tick: Called after each case of this shard.
        source: What the user gave as input, if it was one place.
        shard: Which of the cases are done here.
        start: Makes the engine.
        tell: Called with what became of each case.

    Raises:
        MedsegError: Nothing was begun: the run cannot be right, or another process does it.
    """
    refuse(cases, predictor.checkpoint.channels, job.output, source)
    mine, outcome = shard.take(cases), Outcome()
    with Ledger(job.output, shard, cases) as ledger:
        job = replace(_absolute(job), ledger=shard.ledger, inputs=_root(cases, source))
        engine = start(Worker(job, predictor), _watch(tick, outcome))
        book = _Book(ledger, Place.of(job.output, shard.ledger))
        try:
            with closing(engine(mine)) as entries:  # whatever goes wrong here ends its processes
                for entry in entries:
                    outcome.add(entry)
                    book.add(entry)
                    tick(_failed(outcome, entry.id))
                    if tell is not None:
                        tell(entry)
        except Stopped as error:
            outcome.stopped = str(error)
        finally:
            tried = {*outcome.done, *outcome.kept, *outcome.failed}
            outcome.untried = [case.id for case in mine if case.id not in tried]
            book.close(outcome)
    return outcome


class _Book:
    """Writes down what became of cases: in the ledger, and those that failed in lists."""

    def __init__(self, ledger: Ledger, folder: Place) -> None:
        self._ledger, self._folder = ledger, folder
        self._listed = float("-inf")

    def add(self, entry: Entry) -> None:
        """Write down one case.

        Raises:
            Stopped: That cannot be written.
        """
        try:
            self._ledger.append(entry)
            if entry.status == "failed" and time.monotonic() > self._listed + _BETWEEN_LISTS:
                write_failures(self._folder.path)
                self._listed = time.monotonic()
        except (OSError, DataError) as error:
            self._folder.check_writing(error)
            raise Stopped(f"{self._ledger.path}: cannot be written: {error}") from error

    def close(self, outcome: Outcome) -> None:
        """Write down the end, as far as what has stopped the run allows that."""
        try:
            self._folder.check()
            write_failures(self._folder.path)
            counts = {key: len(value) for key, value in outcome.plain().items() if key != "stopped"}
            self._ledger.end(**counts, stopped=outcome.stopped)
        except (OSError, MedsegError) as error:
            outcome.stopped = outcome.stopped or str(error)


def _absolute(job: Job) -> Job:
    """The job as processes with another current folder can do it."""
    models = tuple(model.absolute() for model in job.models)
    return replace(job, models=models, output=job.output.absolute())


def _root(cases: Sequence[Case], source: Path | None) -> Path | None:
    """The folder without which no input can be read."""
    is_folder = source is not None and source.is_dir()
    return source.absolute() if is_folder and source is not None else common_folder(cases)


def _watch(tick: Tick, outcome: Outcome) -> Watch:
    return lambda stage, case: tick.show(_failed(outcome, f"{stage} {case}"))


def _failed(outcome: Outcome, note: str) -> str:
    return f"{note}  {len(outcome.failed)} failed"

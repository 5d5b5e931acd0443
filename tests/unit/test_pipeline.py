"""Reading, computing and writing overlap, in order, within bounds, and stop cleanly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from medseg.batch.entry import Entry
from medseg.batch.pipeline import AHEAD, BEHIND, pipelined
from medseg.batch.place import Stopped
from medseg.batch.run import Outcome, _watch
from medseg.console import Tick
from medseg.volumes.dataset import Case

CASES = [Case(f"c{n}", ()) for n in range(12)]
WAIT = 20  # seconds until a thread that should have come is given up


def quiet(stage: str, case: str) -> None:
    pass


class Fake:
    """A worker whose stages are functions of a case's id, and which knows what is in memory."""

    def __init__(self, **stages: Callable[[str], Any]) -> None:
        self.stages = stages
        self.inside: set[str] = set()
        self.most = 0
        self.written: list[str] = []
        self.threads: dict[str, set[str]] = {}

    def _do(self, stage: str, case: str) -> None:
        self.threads.setdefault(stage, set()).add(threading.current_thread().name)
        self.stages.get(stage, lambda _: None)(case)

    def read(self, case: Case) -> str:
        self.inside.add(case.id)
        self.most = max(self.most, len(self.inside))
        self._do("read", case.id)
        return case.id

    def compute(self, case: str) -> str:
        self._do("compute", case)
        return case

    def write(self, case: str) -> Entry:
        self._do("write", case)
        self.inside.discard(case)
        self.written.append(case)
        return Entry(case, "done")


def ids(entries: Iterator[Entry]) -> list[str]:
    return [entry.id for entry in entries]


def run(worker: Fake, watch: Any = quiet) -> Iterator[Entry]:
    return pipelined(worker, watch)(CASES)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("medseg-")] == []


def test_entries_come_in_the_order_of_the_cases() -> None:
    worker = Fake()
    assert ids(run(worker)) == [case.id for case in CASES]
    assert ids(pipelined(worker, quiet)([])) == []  # type: ignore[arg-type]


def test_the_network_stays_in_the_calling_thread() -> None:
    worker = Fake()
    ids(run(worker))
    assert worker.threads["compute"] == {threading.current_thread().name}
    assert all(name.startswith("medseg-read") for name in worker.threads["read"])
    assert all(name.startswith("medseg-write") for name in worker.threads["write"])


def test_the_next_is_read_and_the_last_written_while_one_computes() -> None:
    """Each stage waits for the others: were they not at work at once, none would get on."""
    reading, writing = threading.Event(), threading.Event()

    def read(case: str) -> None:
        if case == "c2":
            reading.set()

    def write(case: str) -> None:
        if case == "c0":
            writing.set()

    def compute(case: str) -> None:
        if case == "c1":
            assert reading.wait(WAIT)
            assert writing.wait(WAIT)

    assert len(ids(run(Fake(read=read, write=write, compute=compute)))) == len(CASES)


@pytest.mark.parametrize("slow", ["read", "compute", "write"])
def test_memory_is_bounded_whatever_is_slow(slow: str) -> None:
    pause = threading.Event()
    worker = Fake(**{slow: lambda _: pause.wait(0.01)})
    ids(run(worker))
    assert 2 <= worker.most <= AHEAD + 1 + BEHIND


def test_a_slow_writer_holds_the_network_up_rather_than_memory() -> None:
    free = threading.Event()
    computed: list[str] = []

    def compute(case: str) -> None:
        computed.append(case)
        if case == f"c{BEHIND}":
            threading.Timer(0.2, free.set).start()
        assert len(computed) <= BEHIND + 1 or free.is_set()

    worker = Fake(write=lambda _: free.wait(WAIT), compute=compute)
    assert len(ids(run(worker))) == len(CASES)


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
@pytest.mark.parametrize("kind", [Stopped, KeyboardInterrupt])
def test_what_was_computed_before_a_stop_is_still_told(
    stage: str, kind: type[BaseException]
) -> None:
    def fail(case: str) -> None:
        if case == "c4":
            raise kind("enough")

    worker, told = Fake(**{stage: fail}), []
    with pytest.raises(kind):
        for entry in run(worker):
            told.append(entry.id)  # noqa: PERF401  (up to the exception)
    assert told == worker.written
    assert told[:4] == ["c0", "c1", "c2", "c3"]
    assert len(told) <= 5


def test_who_stops_listening_stops_the_work() -> None:
    worker = Fake()
    entries = run(worker)
    next(entries)
    entries.close()  # type: ignore[attr-defined]
    assert len(worker.written) < len(CASES)


def test_the_bar_tells_stage_case_and_failures() -> None:
    class Seen(Tick):
        def show(self, note: str) -> None:
            notes.append(note)

    notes: list[str] = []
    outcome = Outcome(failed={"c0": "no"})
    _watch(Seen(3), outcome)("reading", "c1")
    assert notes == ["reading c1  1 failed"]


def test_it_says_what_it_waits_for() -> None:
    said: list[tuple[str, str]] = []
    ids(run(Fake(), lambda stage, case: said.append((stage, case))))
    for stage in ("reading", "predicting", "writing"):
        assert [case for told, case in said if told == stage] == [case.id for case in CASES]

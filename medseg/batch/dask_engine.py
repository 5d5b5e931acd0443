"""Workers on one or many machines, by dask: each takes one case at a time, from this process.

dask may give a worker several tasks ahead, and when the worker is killed it suspects all of them.
Here a worker has one case at most and each case names its worker, so that it is plain which case a
worker died of, and none is blamed for its neighbour. What happens then is as in the pool: a second
attempt at the end, alone, and then the case has failed, by name.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

from medseg.batch import dask_worker
from medseg.batch.dask_cluster import CONNECT_S, Cluster
from medseg.batch.deaths import Deaths
from medseg.batch.entry import Entry, told
from medseg.batch.job import Engine, Job, Watch, Worker
from medseg.batch.place import Stopped
from medseg.errors import MedsegError
from medseg.version import VERSION
from medseg.volumes.dataset import Case

PATIENCE_S = 60.0
"""How long a run without any worker waits for one."""

STARTS = 3
"""How many workers may be lost before they have a case, with no case done in between."""

_LOOK_S = 1.0
_GONE = "the worker is gone: killed, out of memory, or its machine was lost"


def on_dask(cluster: Cluster) -> Callable[[Worker, Watch], Engine]:
    """Make the engine that predicts on a cluster.

    Args:
        cluster: Where the workers are.
    """

    def start(worker: Worker, watch: Watch) -> Engine:
        def engine(cases: Sequence[Case]) -> Generator[Entry]:
            with cluster.client() as client:
                yield from _Run(client, worker.job, cases, watch).work()

        return engine

    return start


@dataclass(eq=False)
class _Seat:
    """A worker of the cluster.

    Args:
        address: Its address.
        threads: What dask gave it of its machine.
        stage: What it was asked for last: its version, to load the model, or a case.
        task: The future of that, while it runs.
        case: The case that it does.
        is_refused: It is not used.
    """

    address: str
    threads: int
    stage: Literal["version", "model", "case"] = "version"
    task: Any = None
    case: Case | None = None
    is_refused: bool = False

    @property
    def is_free(self) -> bool:
        return self.stage == "case" and self.task is None and not self.is_refused


class _Run:
    """The workers of one run, the cases that wait, and what workers died of."""

    def __init__(self, client: Any, job: Job, cases: Sequence[Case], watch: Watch) -> None:
        self._client, self._job, self._watch = client, job, watch
        self._waiting, self._deaths = deque(cases), Deaths(job)
        self._seats: dict[str, _Seat] = {}
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._barren = 0  # workers lost since the last case that was done
        self._has_begun = False
        self._looked, self._manned = float("-inf"), time.monotonic()

    def work(self) -> Iterator[Entry]:
        while self._waiting or self._deaths.again or self._busy():
            yield from self._look()
            self._hand_out()
            try:
                future = self._ended.get(timeout=_LOOK_S)
            except Empty:
                continue
            seat = next((seat for seat in self._seats.values() if seat.task is future), None)
            entry = None if seat is None else self._hear(seat)
            if entry is not None:
                yield entry

    def _busy(self) -> bool:
        return any(seat.case is not None for seat in self._seats.values())

    def _look(self) -> Iterator[Entry]:
        """See which workers have come and gone."""
        if self._client.status == "running" and time.monotonic() < self._looked + _LOOK_S:
            return
        there, self._looked = self._addresses(), time.monotonic()
        for address in self._seats.keys() - there.keys():
            seat = self._seats.pop(address)
            if seat.task is not None:
                seat.task.cancel()
                entry = self._lose(seat, _GONE)
                if entry is not None:
                    yield entry
        for address in there.keys() - self._seats.keys():
            self._seats[address] = seat = _Seat(address, max(1, there[address]))
            self._submit(seat, dask_worker.version)
        if any(not seat.is_refused for seat in self._seats.values()):
            self._manned = self._looked
        elif self._looked > self._manned + PATIENCE_S:
            raise self._end(f"dask has had no worker for {PATIENCE_S:.0f} s")

    def _addresses(self) -> dict[str, int]:
        """The workers that there are, with their threads.

        Raises:
            Stopped: The scheduler is gone.
        """
        while self._client.status in ("running", "connecting"):  # as long as the client tries
            try:
                if self._client.status == "running":
                    found: dict[str, int] = self._client.nthreads()
                    return found
            except OSError:
                pass  # its status will say more
            time.sleep(0.1)
        raise self._end("the scheduler of dask is lost")

    def _hand_out(self) -> None:
        for seat in [seat for seat in self._seats.values() if seat.is_free]:
            if self._waiting:
                self._give(seat, self._waiting.popleft())
            elif self._deaths.again and not self._busy():
                self._give(seat, self._deaths.again.popleft())

    def _give(self, seat: _Seat, case: Case) -> None:
        seat.case = case
        self._submit(seat, dask_worker.predict, self._job, seat.threads, case)
        self._watch("predicting", case.id)

    def _submit(self, seat: _Seat, function: Callable[..., Any], *values: Any) -> None:
        seat.task = self._client.submit(
            function, *values, workers=[seat.address], pure=False, retries=0
        )
        seat.task.add_done_callback(self._ended.put)

    def _hear(self, seat: _Seat) -> Entry | None:
        """Take what became of what a worker was asked for."""
        task, seat.task = seat.task, None
        if task.status == "cancelled":  # the connection was lost, and all that the scheduler knew
            self._put_back(seat)
            del self._seats[seat.address]
            return None
        try:
            value = task.result(timeout=CONNECT_S)
        except Stopped as error:
            self._put_back(seat)
            self._refuse(seat, str(error))
        except Exception as error:  # noqa: BLE001  (whatever went wrong there)
            killed = type(error).__name__ == "KilledWorker"
            if seat.case is None and not killed:
                self._refuse(seat, told(error))
            else:
                return self._lose(seat, _GONE if killed else told(error))
        else:
            task.release()
            return self._answered(seat, value)
        return None

    def _answered(self, seat: _Seat, value: Any) -> Entry | None:
        if seat.stage == "version":
            if value == VERSION:
                seat.stage = "model"
                self._submit(seat, dask_worker.prepare, self._job, seat.threads)
            else:
                self._refuse(seat, f"medseg {value} is there, and {VERSION} here")
        elif seat.stage == "model":
            seat.stage = "case"
        else:
            seat.case, self._barren, self._has_begun = None, 0, True
            entry: Entry = value
            return entry
        return None

    def _put_back(self, seat: _Seat) -> None:
        if seat.case is not None:
            self._waiting.appendleft(seat.case)
            seat.case = None

    def _lose(self, seat: _Seat, reason: str) -> Entry | None:
        case, seat.case = seat.case, None
        if case is not None:
            return self._deaths.add(case, f"{reason} ({seat.address})")
        self._barren += 1
        if self._barren >= STARTS:
            raise self._end(f"{STARTS} workers of dask ended before they had a case; {reason}")
        return None

    def _refuse(self, seat: _Seat, reason: str) -> None:
        """Leave a worker out. Before anything is done, that is for the user to mend."""
        seat.is_refused, text = True, f"worker {seat.address} of dask is refused: {reason}"
        if not self._has_begun or all(seat.is_refused for seat in self._seats.values()):
            raise self._end(text)
        warnings.warn(text, stacklevel=2)

    def _end(self, reason: str) -> MedsegError:
        return Stopped(reason) if self._has_begun else MedsegError(reason)

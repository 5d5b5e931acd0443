"""Several processes on one machine, each with the model, that take cases as they are free.

A process that is killed (by the kernel when memory runs out, by a fault in native code) costs its
case a second attempt: at the end, when nothing else runs and all memory is its own. A case that
ends a process again has failed, by name, and all others are done.

Processes are spawned, never forked: torch and CUDA do not survive a fork.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from medseg.batch import pool_worker
from medseg.batch.deaths import Deaths, told
from medseg.batch.entry import Entry
from medseg.batch.job import Engine, Job, Watch, Worker
from medseg.batch.place import Stopped
from medseg.batch.seats import Seat
from medseg.errors import MedsegError
from medseg.volumes.dataset import Case

STARTS = 2
"""How often a seat's process may end without a case to blame before the seat stays empty."""


def pooled(seats: Sequence[Seat]) -> Callable[[Worker, Watch], Engine]:
    """Make the engine of processes on this machine.

    Args:
        seats: One for each process; see `medseg.batch.seats.seats`.
    """

    def start(worker: Worker, watch: Watch) -> Engine:
        def engine(cases: Sequence[Case]) -> Generator[Entry]:
            crew = _Crew(worker.job, seats, cases, watch)
            try:
                yield from crew.work()
            finally:
                crew.dismiss()

        return engine

    return start


@dataclass
class _Hand:
    """One process, as its parent sees it."""

    process: BaseProcess
    channel: Connection
    seat: int
    is_ready: bool = False
    case: Case | None = None

    @property
    def is_free(self) -> bool:
        return self.is_ready and self.case is None


class _Crew:
    """The processes of one run, the cases that wait, and those to be tried again, alone."""

    def __init__(
        self, job: Job, seats: Sequence[Seat], cases: Sequence[Case], watch: Watch
    ) -> None:
        self._job, self._seats, self._watch = job, seats, watch
        self._waiting, self._deaths = deque(cases), Deaths(job)
        self._hands: list[_Hand] = []
        self._leaving: list[_Hand] = []
        self._starts = [0] * len(seats)  # of each seat, that came to nothing
        self._last = ""
        self._was_ready = False

    def work(self) -> Iterator[Entry]:
        while self._waiting or self._deaths.again or self._busy():
            self._staff()
            self._hand_out()
            for channel in wait([hand.channel for hand in self._hands]):
                hand = next(hand for hand in self._hands if hand.channel is channel)
                entry = self._hear(hand)
                if entry is not None:
                    yield entry

    def dismiss(self) -> None:
        """End every process: those at work are asked to, and killed when they do not."""
        for hand in self._hands:
            if not hand.is_free:
                hand.process.terminate()
            self._release(hand)
        self._await_leaving()

    def _busy(self) -> bool:
        return any(hand.case is not None for hand in self._hands)

    def _staff(self) -> None:
        """Start as many processes as there is work for.

        Raises:
            MedsegError: None can start.
            Stopped: None can any more.
        """
        busy = sum(hand.case is not None for hand in self._hands)
        wanted = busy + len(self._waiting) or min(1, len(self._deaths.again))
        taken = {hand.seat for hand in self._hands}
        for seat, failures in enumerate(self._starts):
            if len(taken) < wanted and seat not in taken and failures < STARTS:
                self._hands.append(self._start(seat))
                taken.add(seat)
        if not self._hands and self._was_ready:
            raise Stopped(f"no worker is left: {self._last}")
        if not self._hands:
            raise MedsegError(
                f"no worker could start: {self._last}. A Python script that starts workers must do "
                'so under `if __name__ == "__main__":`'
            )

    def _start(self, seat: int) -> _Hand:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=pool_worker.main, args=(theirs,), name=f"medseg worker {seat}", daemon=True
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the channel
        chair = self._seats[seat]
        hand = _Hand(process, ours, seat)
        _send(hand, (replace(self._job, device=chair.device), chair.threads))
        return hand

    def _hand_out(self) -> None:
        for hand in [hand for hand in self._hands if hand.is_free]:
            if self._waiting:
                self._give(hand, self._waiting)
        if self._waiting or self._busy():
            return
        free = [hand for hand in self._hands if hand.is_free]
        for hand in free[1:] if self._deaths.again else free:
            self._release(hand)
        if self._deaths.again and free:
            self._await_leaving()  # what they held of memory is free now
            self._give(free[0], self._deaths.again)

    def _give(self, hand: _Hand, cases: deque[Case]) -> None:
        if _send(hand, cases[0]):
            hand.case = cases.popleft()
            self._watch("predicting", hand.case.id)

    def _hear(self, hand: _Hand) -> Entry | None:
        """Take what a process says, or that it has ended."""
        try:
            kind, value = hand.channel.recv()
        except (EOFError, OSError):
            hand.process.join(pool_worker.GRACE_S)
            return self._bury(hand, told(hand.process.exitcode))
        match kind:
            case "ready":
                hand.is_ready = self._was_ready = True
            case "entry":
                hand.case, self._starts[hand.seat] = None, 0
                entry: Entry = value
                return entry
            case "warning":
                warnings.warn(value, stacklevel=2)
            case "lost":
                return self._bury(hand, f"its device failed: {value}")
            case "stopped":
                raise Stopped(value)
            case "broken":
                if self._was_ready:  # what others have done stays done, and they go on
                    return self._bury(hand, value)
                raise MedsegError(value)
        return None

    def _bury(self, hand: _Hand, reason: str) -> Entry | None:
        case = hand.case
        self._release(hand)
        self._last = reason
        if case is None:
            self._starts[hand.seat] += 1
            if self._starts[hand.seat] == STARTS:
                warnings.warn(
                    f"a worker of {len(self._seats)} is given up, it ended {STARTS} times "
                    f"without a case: {reason}", stacklevel=2,
                )  # fmt: skip
            return None
        return self._deaths.add(case, reason)

    def _release(self, hand: _Hand) -> None:
        hand.channel.close()
        self._hands = [other for other in self._hands if other is not hand]
        self._leaving.append(hand)

    def _await_leaving(self) -> None:
        end = time.monotonic() + pool_worker.GRACE_S
        for hand in self._leaving:
            hand.process.join(max(0.0, end - time.monotonic()))
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
            hand.process.close()
        self._leaving.clear()


def _send(hand: _Hand, value: Any) -> bool:
    """Whether it arrived; if not, the process has ended, and its channel will say so."""
    try:
        hand.channel.send(value)
    except OSError:
        return False
    return True

"""Which network, on which patches: the largest that the memory holds and the time can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from medseg.console import Tick
from medseg.errors import ConfigError, MedsegError
from medseg.planning import network, rules, schedule, trial
from medseg.planning.amounts import in_mib, told
from medseg.planning.choice import Choice, Choices, by, text_of
from medseg.planning.drafts import Basis
from medseg.planning.network import Shape
from medseg.planning.rules import Size
from medseg.planning.trial import Measured, Request, TooMuch

_SLACK = 0.95  # of the memory, when a patch is made to fit by what the last one took
_LEAST_SHARE = 0.2  # of a patch's voxels that one shrinking leaves at least


@dataclass(frozen=True)
class Terms:
    """What a plan has to keep to.

    Args:
        budget: Seconds of training.
        memory: Bytes; None: a share of what is free.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Of the training; None: one on a CPU.
        reading: CPU seconds to read all cases once.
    """

    budget: float
    memory: int | None
    device: str
    threads: int | None
    reading: float

    def on(self, device: str) -> int | None:
        """Threads of the training on a device, "cpu" or "cuda"; None: all."""
        return self.threads or (1 if device != "cuda" else None)


@dataclass(frozen=True)
class Fitted:
    """A network that fits.

    Args:
        choices: All but the schedule's.
        shape: Of the network.
        measured: What its steps took.
        memory: Bytes that it had to keep to.
        plan: What the budget holds.
    """

    choices: Choices
    shape: Shape
    measured: Measured
    memory: int
    plan: schedule.Schedule


Try = Callable[[Request], Measured | TooMuch]


class Search:
    """Networks tried one after the other, the cheapest first.

    Args:
        basis: What the data say.
        terms: Time, memory and device.
        asked: A request for a trial, as far as it does not depend on the network.
        tick: Told of each trial.
        attempt: What tries a request.
    """

    def __init__(
        self, basis: Basis, terms: Terms, asked: Request, tick: Tick, attempt: Try = trial.run
    ) -> None:
        self.basis, self.terms, self.asked = basis, terms, asked
        self.tick, self.attempt = tick, attempt

    def best(self) -> Fitted:
        """The largest network of which the memory holds a step, and the budget enough of them.

        Raises:
            ConfigError: The budget is too short for the smallest.
            MedsegError: The memory is too little for the smallest, or a trial failed.
        """
        smallest, *larger = self.basis.sizes
        chosen = self._fitted(smallest, larger[0])
        if not isinstance(chosen, Fitted):
            raise _too_small(self.terms, chosen)
        if chosen.plan.steps < rules.LEAST_STEPS:
            raise _too_short(self.terms, chosen.plan)
        for size, following in zip(larger, (*larger[1:], None), strict=True):
            expected = chosen.plan.steps / chosen.measured.next
            if expected < size.least_steps / 2:  # so far off that a trial need not tell
                break
            found = self._fitted(size, following)
            if not isinstance(found, Fitted) or found.plan.steps < size.least_steps:
                break
            chosen = found
        self.tick(to=self.tick.total)
        return chosen

    def _fitted(self, size: Size, larger: Size | None) -> Fitted | Measured | TooMuch:
        """A network of some size, its patch and batch shrunk until the memory holds them.

        Where even the smallest are too large: what they took.
        """
        shape = first = network.shape(self.basis.grid, size)
        batch = network.batch_for(shape)
        while True:
            draft = self.basis.draft(shape, batch)
            self.tick.show(f"{size.name}: {batch} x {by(shape.patch)} voxels")
            found = self.attempt(self._request(draft, shape, larger))
            memory = self.terms.memory or _share(found)
            if isinstance(found, Measured) and found.peak <= memory:
                patch = _with_memory(draft["train.patch"], found, memory, first, shape)
                plan = self._plan(found, shape)
                return Fitted(draft | {"train.patch": patch}, shape, found, memory, plan)
            if batch > rules.BATCH:
                batch = max(rules.BATCH, batch // 2)
                continue
            if found.idle >= memory:
                return found
            smaller = _smaller(self.basis, shape, _shrink(found, memory))
            if smaller is not None:
                shape = smaller
            elif batch > 1:
                batch = 1
            else:
                return found

    def _request(self, draft: Choices, shape: Shape, larger: Size | None) -> Request:
        timed = {
            "train.budget": Choice({"steps": 1}),
            "train.threads": Choice(self.terms.on(self.asked.device.partition(":")[0])),
        }
        following = None
        if larger is not None:
            bigger = network.shape(self.basis.grid, larger)
            batch = network.batch_for(bigger)
            following = text_of(self.basis.draft(bigger, batch) | timed)
        return replace(
            self.asked,
            config=text_of(draft | timed),
            volume=shape.patch,
            memory=self.terms.memory or 0,
            next=following,
        )

    def _plan(self, found: Measured, shape: Shape) -> schedule.Schedule:
        grid, terms = self.basis.grid, self.terms
        times = schedule.windows(grid, shape.patch)
        threads = terms.on(found.device)
        return schedule.make(terms.budget, found, terms.reading, times, threads=threads)


def _shrink(found: Measured | TooMuch, memory: int) -> float:
    """The share of its voxels that a patch may keep."""
    if isinstance(found, TooMuch):
        return rules.SHRINK
    room = _SLACK * (memory - found.idle) / max(1, found.peak - found.idle)
    return min(rules.SHRINK, max(_LEAST_SHARE, room))


def _smaller(basis: Basis, shape: Shape, share: float) -> Shape | None:
    """The same network on a patch of at most this share of the voxels; None: none is left."""
    found, voxels = shape, float(shape.voxels)
    while found.voxels >= share * shape.voxels:
        voxels *= share
        found = network.shape(basis.grid, shape.size, voxels)
        if max(found.patch) < rules.LEAST_PATCH:
            return None
    return found


def _share(found: Measured | TooMuch) -> int:
    free = found.free if isinstance(found, Measured) else 0
    return int(rules.MEMORY_SHARE * free)


def _with_memory(patch: Choice, found: Measured, memory: int, first: Shape, shape: Shape) -> Choice:
    """The patch's reason with what its steps took."""
    took = f"training takes {in_mib(found.peak)} (measured) of {in_mib(memory)}"
    if found.idle:
        took += f", {in_mib(found.idle)} of them before it begins"
    if shape.patch != first.patch:
        took += f"; {by(first.patch)} took more than there is"
    return Choice(patch.value, f"{patch.why}; {took}")


def _too_small(terms: Terms, found: Measured | TooMuch) -> MedsegError:
    given = in_mib(terms.memory) if terms.memory else "half of what is free"
    idle = f", {in_mib(found.idle)} of them before it begins" if found.idle else ""
    took = (
        f"takes {in_mib(found.peak)}{idle}" if isinstance(found, Measured) else f"takes more{idle}"
    )
    return MedsegError(
        f"{given} of memory is too little: training the smallest network on its smallest patch "
        f"{took}; give more by --memory"
    )


def _too_short(terms: Terms, plan: schedule.Schedule) -> ConfigError:
    least = (plan.start_up + rules.LEAST_STEPS * plan.step) / (1 - rules.VALIDATED)
    return ConfigError(
        f"a budget of {told(terms.budget)} is too short: {plan.start_up:.0f} s pass before the "
        f"first step, and one takes {plan.step:.2g} s; give --budget {ceil(least)}s at least"
    )

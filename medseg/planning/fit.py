"""Which network, on which patches: the largest that the memory holds and the time can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from medseg.console import Tick
from medseg.errors import MedsegError
from medseg.planning import network, rules, schedule, trial
from medseg.planning.amounts import in_mib
from medseg.planning.choice import Choice, Choices, by, text_of
from medseg.planning.drafts import Basis
from medseg.planning.network import Shape, Whole
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


def best(
    basis: Basis,
    terms: Terms,
    asked: Request,
    tick: Tick,
    attempt: Try = trial.run,
) -> Fitted:
    """The largest network of which the budget holds enough steps.

    Args:
        basis: What the data say.
        terms: Time, memory and device.
        asked: A request for a trial, as far as it does not depend on the network.
        tick: Told of each trial.
        attempt: What tries a request.

    Raises:
        MedsegError: The memory is too small for any network, or a trial failed.
    """
    chosen: Fitted | None = None
    for size, larger in zip(basis.sizes, (*basis.sizes[1:], None), strict=True):
        if chosen is not None:
            steps = chosen.plan.steps / chosen.measured.next
            if steps < size.least_steps / 2:  # so far off that a trial need not tell
                break
        fitted = _fitting(basis, size, larger, terms, asked, tick, attempt)
        if fitted is None or fitted.plan.steps < size.least_steps:
            if chosen is None:
                raise _too_small(terms)
            break
        chosen = fitted
        tick(size.name)
    assert chosen is not None
    return chosen


def _fitting(
    basis: Basis,
    size: Size,
    larger: Size | None,
    terms: Terms,
    asked: Request,
    tick: Tick,
    attempt: Try,
) -> Fitted | None:
    """A network of some size, its patch and batch shrunk until the memory holds them."""
    share, whole = 1.0, basis.grid.largest_voxels <= rules.WHOLE_VOXELS
    shape = network.shape(basis.grid, size)
    batch, first = network.batch_for(shape), shape
    while True:
        draft = basis.draft(shape, batch) | ({} if whole else _windows(basis))
        tick.show(f"{size.name}: {batch} x {by(shape.patch)} voxels")
        request = _request(basis, asked, draft, shape, larger, terms, whole=whole)
        found = attempt(request)
        memory = terms.memory or _share(found)
        if isinstance(found, Measured) and found.peak <= memory:
            draft["train.patch"] = _with_memory(draft["train.patch"], found, memory, first, shape)
            plan = _plan(basis, terms, found, shape, whole=whole)
            return Fitted(draft, shape, found, memory, plan)
        if isinstance(found, Measured) and whole and found.step_peak <= memory:
            whole = False  # the step fits; it is the prediction in one pass that does not
        elif batch > rules.BATCH:
            batch = max(rules.BATCH, batch // 2)
        else:
            share *= _shrink(found, memory)
            smaller = network.shape(basis.grid, size, share)
            if max(smaller.patch) >= rules.LEAST_PATCH:
                shape = smaller
            elif batch > 1:
                batch = 1
            else:
                return None


def _request(
    basis: Basis,
    asked: Request,
    draft: Choices,
    shape: Shape,
    larger: Size | None,
    terms: Terms,
    *,
    whole: bool,
) -> Request:
    timed = {
        "train.budget": Choice({"steps": 1}),
        "train.threads": Choice(terms.on(asked.device.partition(":")[0])),
    }
    following = None
    if larger is not None:
        bigger = network.shape(basis.grid, larger)
        following = text_of(basis.draft(bigger, network.batch_for(bigger)) | timed)
    return replace(
        asked,
        config=text_of(draft | timed),
        volume=_volume(basis, shape, whole=whole),
        memory=terms.memory or 0,
        next=following,
    )


def _volume(basis: Basis, shape: Shape, *, whole: bool) -> Whole:
    """The largest volume where it is predicted in one pass; a window elsewhere."""
    if not whole:
        return shape.patch
    i, j, k = (round(n) for n in basis.grid.largest)
    return i, j, k


def _plan(
    basis: Basis, terms: Terms, found: Measured, shape: Shape, *, whole: bool
) -> schedule.Schedule:
    grid = basis.grid
    times = prod(grid.size) / grid.largest_voxels if whole else schedule.windows(grid, shape.patch)
    return schedule.make(terms.budget, found, terms.reading, times, threads=terms.on(found.device))


def _windows(basis: Basis) -> Choices:
    if basis.choices["inference.mode"].value == "window":
        return {}
    return {"inference.mode": Choice("window", "the memory does not hold a volume in one pass")}


def _shrink(found: Measured | TooMuch, memory: int) -> float:
    """The share of its voxels that a patch keeps."""
    if isinstance(found, TooMuch):
        return rules.SHRINK
    room = _SLACK * (memory - found.idle) / max(1, found.step_peak - found.idle)
    return min(rules.SHRINK, max(_LEAST_SHARE, room))


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


def _too_small(terms: Terms) -> MedsegError:
    given = in_mib(terms.memory) if terms.memory else "half of what is free"
    return MedsegError(
        f"{given} of memory is too small: the smallest network takes more for one patch of "
        f"{rules.LEAST_PATCH} voxels along an axis; give more by --memory"
    )

"""When training ends, and how far along it is: the schedule anneals over the same fraction."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from medseg.config.schema import Budget, Train


@dataclass
class Clock:
    """Progress through a budget.

    A budget of steps or epochs depends on nothing but the step, which keeps a resumed run exact.
    One of seconds depends on the machine: a resumed run goes on from the seconds spent so far.

    Args:
        budget: The section of the config.
        steps_per_epoch: Steps in one pass over the cases.
        spent: Seconds spent by earlier processes of this run.
    """

    budget: Budget
    steps_per_epoch: int
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._start = 0.0 if self.budget.cpu_seconds else time.monotonic()

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, where the budget tells."""
        if self.budget.epochs is not None:
            return self.budget.epochs * self.steps_per_epoch
        return self.budget.steps

    def elapsed(self) -> float:
        """Seconds spent, of the kind that the budget counts (the clock's where it counts none)."""
        now = time.process_time() if self.budget.cpu_seconds else time.monotonic()
        return self.spent + now - self._start

    def fraction(self, step: float) -> float:
        """How much of the budget is gone before a step, 0 to 1.

        Args:
            step: Of epochs: of as many steps as `steps_per_epoch` counts.
        """
        if self.total_steps is not None:
            return min(1.0, step / self.total_steps)
        seconds = self.budget.cpu_seconds or self.budget.wall_seconds
        assert seconds is not None
        return min(1.0, self.elapsed() / seconds)


def learning_rate(settings: Train, fraction: float) -> float:
    """The learning rate at a fraction of the budget.

    A linear rise, then half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5) or a
    polynomial of power 0.9 (Chen et al. 2018, doi:10.1109/TPAMI.2017.2699184).
    """
    rise = min(1.0, 0.02 + fraction / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * fraction))
    else:
        fall = (1 - fraction) ** 0.9
    return settings.lr * rise * fall


def steps_per_epoch(settings: Train, cases: int) -> int:
    """Steps in one pass over the training cases, a patch from each."""
    return math.ceil(cases / (settings.batch * settings.accumulate))

"""How long to train, how often to validate, and what depends on the number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from medseg.planning import rules
from medseg.planning.amounts import told
from medseg.planning.choice import Choice, Choices
from medseg.planning.grid import Grid
from medseg.planning.network import Shape, Whole
from medseg.planning.trial import Measured

_OVERLAP = 0.5  # of windows: the default of `inference`
_PATCH_CUT = 1.05  # a step's time over that of the network: data take at most a twentieth


@dataclass(frozen=True)
class Schedule:
    """A time budget and what it holds.

    Args:
        seconds: Of the budget.
        on_cpu: Whether it counts CPU seconds, or those of the clock.
        steps: Optimiser steps that fit.
        step: Seconds of one.
        start_up: Seconds before the first.
        case: Seconds of a case's validation.
    """

    seconds: float
    on_cpu: bool
    steps: float
    step: float
    start_up: float
    case: float


def make(
    budget: float, measured: Measured, reading: float, windows: float, *, threads: int | None
) -> Schedule:
    """How many steps a budget holds, by what was measured.

    Args:
        budget: In seconds.
        measured: Of the network.
        reading: CPU seconds to read all cases once: they are checked, then cached.
        windows: How many times the volume that was predicted a case is.
        threads: Of the training; None: all.
    """
    on_cpu = measured.device == "cpu" and threads == 1
    step = (measured.step.cpu if on_cpu else measured.step.wall) * _PATCH_CUT
    case = (measured.predict.cpu if on_cpu else measured.predict.wall) * windows
    start_up = measured.start_up + 2 * reading
    left = budget * (1 - rules.VALIDATED) - start_up
    return Schedule(budget, on_cpu, max(0.0, left) / step, step, start_up, case)


def windows(grid: Grid, patch: Whole) -> float:
    """How many windows the median volume takes."""
    counts = [
        1 + max(0, ceil((n - p) / (p * (1 - _OVERLAP))))
        for n, p in zip(grid.size, patch, strict=True)
    ]
    return float(prod(counts))


def choices(
    plan: Schedule, measured: Measured, shape: Shape, validate: int, threads: int | None
) -> Choices:
    """Budget, learning rate, average and validations.

    Args:
        plan: The schedule.
        measured: On this machine.
        shape: Of the network.
        validate: Cases that validate.
        threads: Of the training; None: all.
    """
    kind = "of the CPU" if plan.on_cpu else "on the clock"
    budget = (
        f"{told(plan.seconds)} {kind}: about {plan.steps:,.0f} steps, since one takes "
        f"{plan.step:.3g} s here (measured, {measured.device} in {measured.precision}) and "
        f"{plan.start_up:.0f} s pass before the first"
    )
    key = "cpu_seconds" if plan.on_cpu else "wall_seconds"
    decay = _decay(plan.steps)
    lr = f"as in {shape.size.source}" if shape.size.source != "judgement" else "by judgement"
    made: Choices = {
        "train.budget": Choice({key: plan.seconds}, budget),
        "train.lr": Choice(shape.size.lr, f"for the {shape.size.name} network, {lr}"),
        "train.ema": Choice(
            decay, f"reaches back {1 / (1 - decay):.0f} of about {plan.steps:,.0f} steps"
        ),
        "train.weight_decay": Choice(rules.DECAY, "keeps the weights of muon's steps small"),
        "train.threads": _threads(plan, measured, threads),
    }
    if measured.device != "cpu":
        made["train.workers"] = Choice(rules.WORKERS, "processes that prepare patches for the GPU")
    return made | _validations(plan, validate)


def _threads(plan: Schedule, measured: Measured, threads: int | None) -> Choice:
    if plan.on_cpu:
        return Choice(1, "one thread, in which CPU seconds are those of the clock; see --threads")
    why = "as asked" if threads is not None else f"all: the {measured.device} computes"
    return Choice(threads, why)


def _decay(steps: float) -> float:
    wanted = max(1.0, steps / rules.AVERAGED)
    return min(rules.AVERAGES, key=lambda decay: abs(1 / (1 - decay) - wanted))


def _validations(plan: Schedule, cases: int) -> Choices:
    """As many validations as the default, of fewer cases; then fewer; at last one at the end."""
    most = plan.seconds * rules.VALIDATED
    affordable = int(most / (rules.VALIDATIONS * plan.case))
    told = f"a case takes {plan.case:.2g} s, and {rules.VALIDATED:.0%} of the budget {most:.0f} s"
    least = min(rules.LEAST_VALIDATED, cases)
    if affordable >= cases:
        return {"train.validation_cases": Choice(None, f"{told}: all {cases} ten times")}
    if affordable >= least:
        why = f"{told}: so many of {cases}, ten times"
        return {"train.validation_cases": Choice(affordable, why)}
    times = int(most / (least * plan.case))
    if times >= 2:
        return {
            "train.validation_cases": Choice(least, f"{told}: so many of {cases}, {times} times"),
            "train.validate_every": Choice(max(1, int(plan.steps / times)), f"{times} times"),
        }
    return {
        "train.validation_cases": Choice(1, f"{told}: one of {cases}, at the end"),
        "train.validate_every": Choice(rules.NEVER, "the last one alone, which always runs"),
    }

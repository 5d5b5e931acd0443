"""Tables of results: of each seed over all cases of all folds, then over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from accuracy_parts.runs import Result, Run

HEADS = ("CPU s", "seeds", "Dice", "HD95 mm", "worst class-case", "steps", "outside", "CPU s spent")


def of_seed(results: Sequence[Result]) -> dict[str, float]:
    """Figures of one seed from the results of its folds: every case is scored once.

    Dice and HD95 are means over the classes of the mean over cases; a mask or a truth that is
    empty has no distance and is left out of HD95, but counted in "missed".
    """
    cases = [case for result in results for case in result["scores"].values()]
    dice, hd95, missed = [], [], 0
    for name in cases[0]:
        dice.append([case[name][0] for case in cases if case[name][0] is not None])
        hd95.append([case[name][1] for case in cases if case[name][1] is not None])
        missed += len(cases) - len(hd95[-1])
    means = [statistics.fmean(values) for values in hd95 if values]
    outside = [result["outside"] for result in results if "outside" in result]
    return {
        "dice": statistics.fmean(statistics.fmean(values) for values in dice),
        "hd95": statistics.fmean(means) if means else float("nan"),
        "worst": min(min(values) for values in dice),
        "missed": missed,
        "steps": statistics.fmean(result["steps"] for result in results),
        "outside": statistics.fmean(outside) if outside else float("nan"),
        "cpu_s": statistics.fmean(result["cpu_s"] for result in results),
    }


def rows(runs: Sequence[Run], results: dict[str, Result]) -> dict[Any, list[dict[str, float]]]:
    """Figures of each seed whose folds are all done, by tool, seconds and change."""
    found: dict[Any, list[dict[str, float]]] = {}
    folds: dict[Any, list[Run]] = {}
    for run in runs:
        folds.setdefault((run.tool, run.seconds, run.change, run.seed), []).append(run)
    for (tool, seconds, change, _), mine in folds.items():
        if all(run.key in results for run in mine):
            told = of_seed([results[run.key] for run in mine])
            found.setdefault((tool, seconds, change), []).append(told)
    return found


def line(name: str, seconds: int, seeds: Sequence[dict[str, float]]) -> str:
    """A row: means over the seeds, with their range."""
    missed = statistics.fmean(seed["missed"] for seed in seeds)
    hd95 = spread([seed["hd95"] for seed in seeds], 2)
    hd95 += f", {missed:.1f} without" if missed else ""
    figures = [
        spread([seed["dice"] for seed in seeds], 3), hd95,
        spread([seed["worst"] for seed in seeds], 3), spread([seed["steps"] for seed in seeds], 0),
        spread([seed["outside"] for seed in seeds], 3),
        spread([seed["cpu_s"] for seed in seeds], 0),
    ]  # fmt: skip
    return f"| {name} | {seconds} | {len(seeds)} | {' | '.join(figures)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """A mean and its range, as 0.884 (0.881-0.886)."""
    if any(value != value for value in values):  # not a number: the tool does not tell it
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def head(name: str) -> str:
    """The first two lines of a table."""
    heads = (name, *HEADS)
    return f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|"

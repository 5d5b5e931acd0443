"""The charts of a tuning: the mean change with its interval, and every case before and after."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from medseg.evaluation.figures import FALSE, FOUND, INK, MISSED, panels, short
from medseg.tuning.report_words import signed
from medseg.tuning.result import MEAN, CaseResult, Interval, Result

WIDTH = 5.8  # inches
MOST_CASES = 60
_LONGEST = 24  # letters of a case id


def forest(result: Result) -> str:
    """Mean difference and 95 % interval of the mean and of each class, around a line at zero."""
    from matplotlib.ticker import MaxNLocator

    names = (MEAN, *result.classes) if len(result.classes) > 1 else result.classes
    rows = {name: result.intervals[name] for name in names if name in result.intervals}

    def panel(axes: Any, _: str) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for place, (name, interval) in enumerate(rows.items()):
            _interval(axes, place, interval, is_mean=name == MEAN)
        axes.set_yticks(range(len(rows)), [_label(name, result) for name in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("mean change (right of the line: better)")

    height = 0.8 + 0.36 * len(rows)
    return panels([MEAN] if rows else [], panel, height, "Mean change and its interval",
                  width=WIDTH)  # fmt: skip


def dumbbells(result: Result) -> str:
    """The mean score of each case before and after, the greatest loss on top."""
    cases = [case for case in worst_first(result) if mean(case.before) is not None]
    shown = cases[:MOST_CASES]

    def panel(axes: Any, _: str) -> None:
        for place, case in enumerate(shown):
            before, after = mean(case.before), mean(case.after)
            colour = _colour(case.change)
            axes.plot([before, after], [place, place], color=colour, linewidth=2.2, alpha=0.7)
            axes.plot(before, place, "o", markersize=5, mec=INK, mfc="none", mew=0.9)
            axes.plot(after, place, "o", markersize=5.4, color=colour, mew=0)
        axes.set_yticks(range(len(shown)), _told_apart([case.case_id for case in shown]))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("mean score of the case: open circle before, full circle after")

    height = 0.7 + 0.2 * len(shown)
    return panels([MEAN] if shown else [], panel, height, "Each case before and after",
                  width=WIDTH)  # fmt: skip


def worst_first(result: Result) -> list[CaseResult]:
    """The cases by their change, the greatest loss first."""
    return sorted(result.cases, key=lambda case: case.change)


def mean(scores: Any) -> float | None:
    """Over the classes that count; None where none does."""
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else None


def _interval(axes: Any, place: int, interval: Interval, *, is_mean: bool) -> None:
    middle, low, high = interval
    colour = FOUND if low > 0 else MISSED if high < 0 else FALSE
    axes.plot([low, high], [place, place], color=colour, linewidth=3 if is_mean else 1.8)
    axes.plot(middle, place, "D" if is_mean else "o", markersize=7, color=colour, mew=0)
    axes.annotate(
        f"{signed(middle)}  ({signed(low)} to {signed(high)})", (1.01, place),
        xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=8,
    )  # fmt: skip


def _label(name: str, result: Result) -> str:
    if name == MEAN:
        return "mean"
    return f"{short(name)} (protected)" if name in result.protect else short(name)


def _colour(change: float) -> str:
    return FOUND if change > 0 else MISSED if change < 0 else FALSE


def _told_apart(names: Sequence[str]) -> list[str]:
    """Case ids that leave room for the chart: if some are long, without what all have in common."""
    if len(names) == 1 or max(map(len, names)) <= _LONGEST:
        return list(map(_shortened, names))
    start = _in_common(names)
    end = _in_common([name[start:][::-1] for name in names])
    told = (_shortened(name[start : len(name) - end]) for name in names)
    return [f"{'…' * (start > 0)}{name}{'…' * (end > 0)}" for name in told]


def _in_common(names: Sequence[str]) -> int:
    """How many letters all begin with."""
    same = (len(set(letters)) == 1 for letters in zip(*names, strict=False))
    return sum(takewhile(bool, same))


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:7]}…{name[8 - _LONGEST :]}"

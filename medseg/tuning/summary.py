"""A tuning in words and as a table."""

from __future__ import annotations

import statistics

from rich.markup import escape
from rich.table import Table

from medseg.tuning.gate import FEWEST, Judgement
from medseg.tuning.result import MEAN, Interval, Result, Scores

NAMES = {"dice": "Dice", "iou": "IoU", "nsd": "NSD", "lesion_f1": "lesion F1"}
"""Each of `scoring.SCORES` as it is shown."""
_UNCHANGED = "The model predicts as before."


def verdict(name: str, score: str, found: Judgement, accepted: bool) -> str:
    """What became of a step, in one or two sentences.

    Args:
        name: The postprocessor.
        score: One of `scoring.SCORES`.
        found: What the gate says.
        accepted: Whether the step is part of the model now.
    """
    cases, mean = len(found.before), found.intervals.get(MEAN)
    start = f"{name} {'is part of the model now' if accepted else 'was rejected'}"
    if mean is None:
        return f"{start}: none of {cases} cases has a class to score, in truth or prediction."
    if not any(mean):
        return (
            f"{start}: none of its options surely helped on the other cases, so that it changed "
            f"none of {cases} held-out cases. {_UNCHANGED}"
        )
    figures = f"{mean[0]:+.4f} (95 % {mean[1]:+.4f} to {mean[2]:+.4f})"
    text = f"{start}: on {cases} held-out cases it changed mean {NAMES[score]} by {figures}"
    if accepted:
        names = ", ".join(found.protect)
        return f"{text}." + (f" It may not change {names}: not surely improved." if names else "")
    if cases < FEWEST:
        return f"{text}; {FEWEST} cases are needed to tell gain from chance. {_UNCHANGED}"
    why = "no sure gain" if not found.accepted else "yet all cases together would leave it out"
    return f"{text}, {why}. {_UNCHANGED}"


def table(result: Result) -> Table:
    """Each class before and after, on held-out cases."""
    title = f"{result.name}: mean {NAMES[result.score_name]} of {len(result.cases)} held-out cases"
    shown = Table(title=title, title_justify="left")
    shown.add_column("Class")
    for heading in ("Before", "After", "Change", "95 %"):
        shown.add_column(heading, justify="right")
    shown.add_column("Gate")
    gate = "accepted" if result.accepted else "rejected"
    is_single = len(result.classes) == 1
    for name in result.classes:
        found = result.intervals.get(name)
        before, after = (_mean([getattr(case, side) for case in result.cases], name)
                         for side in ("before", "after"))  # fmt: skip
        note = "protected" if name in result.protect else gate if is_single else ""
        shown.add_row(escape(name), before, after, *_interval(found), note)
    if not is_single:
        shown.add_row("together", "", "", *_interval(result.intervals.get(MEAN)), gate)
    return shown


def _mean(scores: list[Scores], name: str) -> str:
    known = [score for case in scores if (score := case[name]) is not None]
    return f"{statistics.fmean(known):.3f}" if known else "-"


def _interval(found: Interval | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found[0]:+.4f}", f"{found[1]:+.4f} to {found[2]:+.4f}"

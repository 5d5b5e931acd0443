"""A tuning in words and as a table."""

from __future__ import annotations

import statistics

import numpy as np
from rich.markup import escape
from rich.table import Table

from medseg.tuning.gate import FEWEST, Judgement
from medseg.tuning.place import Place
from medseg.tuning.result import MEAN, Interval, Result, Scores

NAMES = {"dice": "Dice", "iou": "IoU", "nsd": "NSD", "lesion_f1": "lesion F1"}
"""Each of `scoring.SCORES` as it is shown."""


def verdict(place: Place, score: str, found: Judgement, accepted: bool) -> str:
    """What became of a step, and what that does to predictions, in a few sentences.

    Args:
        place: The step, and what the model held of it so far.
        score: One of `scoring.SCORES`.
        found: What the gate says.
        accepted: Whether the step is part of the model now.
    """
    if not accepted:
        return f"{place.name} was rejected: {_why(score, found)}. {_what_runs(place)}"
    names = ", ".join(found.protect)
    kept = f" It may not change {names}: not surely improved." if names else ""
    return f"{place.name} is part of the model now: {_figures(score, found)}.{kept}"


def _figures(score: str, found: Judgement) -> str:
    mean, low, high = found.intervals[MEAN]
    return (
        f"on {len(found.before)} held-out cases it changed mean {NAMES[score]} by {mean:+.4f} "
        f"(95 % {low:+.4f} to {high:+.4f})"
    )


def _why(score: str, found: Judgement) -> str:
    cases, mean = len(found.before), found.intervals.get(MEAN)
    if mean is None:
        return f"none of {cases} cases has a class to score, in truth or prediction"
    if not any(mean):
        return (
            "none of its options surely helped on the other cases, so that it changed none of "
            f"{cases} held-out cases"
        )
    return f"{_figures(score, found)}{_doubt(mean, found)}"


def _doubt(mean: Interval, found: Judgement) -> str:
    speaking = int((~np.isnan(found.after - found.before)).any(1).sum())
    if mean[2] < 0:
        return ", a sure loss"
    if speaking < FEWEST:
        return f"; {FEWEST} cases are needed to tell gain from chance"
    if found.accepted:
        return ", yet all cases together would leave it out"
    if mean[1] > 0:
        return ", yet no gain is beyond chance by the sign-flip test"
    return ", no sure gain"


def _what_runs(place: Place) -> str:
    """What predictions are made with after a rejection."""
    told = []
    if place.was_accepted:
        told.append(f"The {place.name} that was accepted earlier was taken out of the model.")
    if place.in_config is not None:
        told.append(
            f"The config's own {place.in_config} still runs; take it out of `postprocess` to "
            "switch it off."
        )
    return " ".join(told) or "The model predicts as before."


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

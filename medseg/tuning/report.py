"""The page of a tuning: the verdict, what it rests on, and the cases that got worse first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medseg import files
from medseg.errors import DataError
from medseg.evaluation import report_page as page
from medseg.evaluation.overlay import (
    BEFORE_COLOUR,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    CaseView,
)
from medseg.evaluation.report_tables import COLUMNS, row, table, text
from medseg.tuning import report_curves as curves
from medseg.tuning import report_figures as figures
from medseg.tuning import report_words as words
from medseg.tuning.gate import FEWEST, LEVEL
from medseg.tuning.result import MEAN, CaseResult, Result

WORST, BEST = 6, 3  # cases drawn
MOST_CANDIDATES = 40


def write(path: Path, result: Result, view: Callable[[str], CaseView]) -> None:
    """Write the page of a tuning as one HTML file that needs nothing else.

    Args:
        path: The .html file.
        result: What the tuning found.
        view: Loads one case for its picture, with `prediction` after and `before` before the step;
            called for the few cases that changed most, one at a time. A case it refuses with a
            DataError is named without a picture.

    Raises:
        DataError: There is no case, or the file cannot be written.
    """
    if not result.cases:
        raise DataError(path, "a tuning needs at least one case to tell of")
    cases = figures.worst_first(result)
    score = COLUMNS[result.score_name][0]
    sections = [
        _verdict(result),
        _tiles(result, score),
        page.section("How sure it is", _chart(figures.forest(result)), _sure(result, score)),
        page.section(
            "Every case before and after",
            _chart(figures.dumbbells(result)),
            f"Mean {score} over the classes. {_left_out(len(cases))}",
        ),
        page.section("Cases that got worse", _pictures(_worse(cases), result, view), _KEY),
        page.section("Greatest gains", _pictures(_better(cases), result, view), _KEY),
        page.section("All cases, greatest loss first", _case_table(cases, result), _CASES),
        page.section("The options", _options(result), _in_words(result)),
        page.section("The curve", _chart(curves.curve(result)), _curve_lead(score)),
        page.section("Lesions found and false", _chart(curves.rates(result)), _RATES),
        page.section("What was tried", _candidate_table(result, score), _TRIED),
        page.section("How it was decided", page.card(f"<p>{_decided(result)}</p>")),
        page.section("What to do next", page.facts(_next(result))),
    ]
    files.write_text(path, page.page(_title(result), "".join(sections), _STYLE))


def _title(result: Result) -> str:
    off = "rejected" if result.still_runs else "stays off"
    return f"Tuning of {result.name}: {'accepted' if result.accepted else off}"


def _verdict(result: Result) -> str:
    kind = "verdict on" if result.accepted else "verdict"
    return f'<div class="card {kind}">{escape(result.verdict)}</div>\n'


def _tiles(result: Result, score: str) -> str:
    changes = [case.change for case in result.cases]
    found = result.intervals.get(MEAN)
    return page.tiles(
        (
            (words.signed(found[0]) if found else "–", f"mean change of {score}"),
            (len(changes), "held-out cases"),
            (sum(change > 0 for change in changes), "better"),
            (sum(change < 0 for change in changes), "worse"),
            (sum(change == 0 for change in changes), "unchanged"),
        )
    )


def _chart(svg: str) -> str:
    return page.card(f'<div class="chart">{svg}</div>') if svg else ""


def _sure(result: Result, score: str) -> str:
    names = escape(", ".join(result.protect))
    kept = (
        f" Protected: {names}. The step may not change these masks; their lines show what it would "
        "do if it might, and the mean is that of the other classes."
        if names
        else ""
    )
    return (
        f"Change of the {score} on cases that had no say in the options, with its 95 % interval: "
        f"blue wholly above zero, orange wholly below, grey neither.{kept}"
    )


def _left_out(count: int) -> str:
    return (
        f"The {figures.MOST_CASES} with the greatest loss of {count}; the table has all."
        if count > figures.MOST_CASES
        else ""
    )


def _worse(cases: Sequence[CaseResult]) -> list[CaseResult]:
    return [case for case in cases if case.change < 0][:WORST]


def _better(cases: Sequence[CaseResult]) -> list[CaseResult]:
    return [case for case in reversed(cases) if case.change > 0][:BEST]


def _pictures(cases: Sequence[CaseResult], result: Result, view: Callable[[str], CaseView]) -> str:
    return "".join(
        page.picture(
            case.case_id,
            view,
            (
                f"{name}: {text(case.before[name], 3)} → {text(case.after[name], 3)}"
                for name in result.classes
                if case.before.get(name) is not None
            ),
        )
        for case in cases
    )


def _case_table(cases: Sequence[CaseResult], result: Result) -> str:
    classes = result.classes if len(result.classes) > 1 else ()
    rows = (
        row(
            [case.case_id],
            [
                words.signed(case.change),
                text(figures.mean(case.before), 3),
                text(figures.mean(case.after), 3),
                *(_cell(case, name) for name in classes),
            ],
        )
        for case in cases
    )
    return table(["Case"], ["Change", "Before", "After", *map(escape, classes)], rows)


def _cell(case: CaseResult, name: str) -> str:
    before, after = case.before.get(name), case.after.get(name)
    if before is None or after is None:
        return "–"
    return f"{text(after, 3)}<br><small>{words.signed(after - before)}</small>"


def _all_options(result: Result) -> dict[str, Any]:
    return {**result.default_options, **result.options}


def _in_words(result: Result) -> str:
    return escape(words.in_words(result.name, _all_options(result)))


def _options(result: Result) -> str:
    rows = (
        row([name], [escape(words.value(given)), escape(_default(name, result))])
        for name, given in _all_options(result).items()
    )
    return table(["Option"], ["Chosen", "Default"], rows)


def _default(name: str, result: Result) -> str:
    known = result.default_options
    return words.value(known[name]) if name in known else "must be given"


def _candidate_table(result: Result, score: str) -> str:
    chosen = [case.chosen for case in result.cases]
    best_first = sorted(result.candidates, key=lambda tried: tried[1], reverse=True)
    rows = (
        row(
            [_told(options, result)],
            [text(mean, 4), str(chosen.count(options)), _final(options, result)],
        )
        for options, mean in best_first[:MOST_CANDIDATES]
    )
    left = len(best_first) - MOST_CANDIDATES
    more = f"<p>{left} more scored less.</p>" if left > 0 else ""
    headings = [f"Mean {score}", "Times chosen with a case left out", "Stored"]
    return table(["Options that differ from the defaults"], headings, rows) + more


def _told(options: Mapping[str, Any] | None, result: Result) -> str:
    if options is None:
        return "the step left out"
    known = result.default_options
    differ = {k: given for k, given in options.items() if k not in known or known[k] != given}
    return ", ".join(f"{k}: {words.value(given)}" for k, given in differ.items()) or "the defaults"


def _final(options: Mapping[str, Any] | None, result: Result) -> str:
    return "yes" if options == result.options else ""


def _decided(result: Result) -> str:
    return _DECIDED.format(
        count=len(result.cases),
        fewest=FEWEST,
        level=f"{LEVEL:.1%}".replace("%", " %"),
        minutes=_minutes(result.seconds),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def _next(result: Result) -> dict[str, str]:
    usual = f"predicts {'with' if result.accepted else 'without'} it, as decided here"
    if result.still_runs:
        usual = "predicts with the config's own options of it, until it leaves `postprocess`"
    if result.name != "crf":
        return {"medseg predict -m RUN …": usual}
    return {
        "medseg predict -m RUN …": usual,
        "medseg predict -m RUN … --crf on": "predicts with it in any case",
        "medseg predict -m RUN … --crf off": "predicts without it",
    }


def _curve_lead(score: str) -> str:
    return f"Mean {score} over all cases of each option tried; the ring is what is stored. {_TRIED}"


_KEY = (
    f'<i class="key" style="border-color:{TRUTH_COLOUR}"></i>truth &nbsp; '
    f'<i class="key" style="border-top-style:dashed;border-color:{BEFORE_COLOUR}"></i>before '
    f'&nbsp; <i class="key" style="border-color:{PREDICTION_COLOUR}"></i>after. '
    "Slices through the largest connected change; the patient’s right is on the left."
)
_CASES = (
    "Each case is judged with options chosen on the other cases; the change is the mean over the "
    "classes. Per class: the score after, and its change below; – where the class is neither in "
    "the truth nor predicted."
)
_TRIED = "Scores on all cases, so they flatter: the figures further up are those to believe."
_RATES = (
    "Each threshold with the size that is stored: the share of all true lesions that it finds, "
    "against false lesions per case. The ring is what is stored, the square the step left out."
)
_DECIDED = (
    "Each of the {count} cases was left out once: the options were chosen on the others, the "
    "simplest candidate within one standard error of the best, and judged on the one left out. "
    "The intervals come from drawing the cases anew 10,000 times (percentile bootstrap of the "
    "paired differences). A class passes if its interval lies wholly above zero, and signs thrown "
    "at random give so high a mean in fewer than {level} of all throws (sign-flip test over the "
    "cases), with at least {fewest} cases; if some pass, the others are protected. The step is "
    "accepted if the mean of the classes that passed, with the others protected, passes too, and "
    "all cases together did not choose to leave it out. It took {minutes}."
)
_STYLE = """
.verdict { font-size: 18px; margin: 0 0 16px; border-left: 5px solid #e69f00;
  overflow-wrap: anywhere; }
.verdict.on { border-left-color: var(--accent); }
.chart { max-width: 700px; margin: 0 auto; }
"""

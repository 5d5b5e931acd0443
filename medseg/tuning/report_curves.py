"""The curves of a tuning: the score by the options tried, and lesions found by false ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, prod
from typing import Any

from medseg.evaluation.figures import FALSE, FOUND, INK, SERIES, panels, short
from medseg.tuning import report_words as words
from medseg.tuning.report_figures import WIDTH
from medseg.tuning.result import Options, Point, Result

_FEWEST = 3  # values of an option that make a curve
_RING = {"marker": "o", "markersize": 11, "mfc": "none", "mec": INK, "mew": 1.6, "linestyle": ""}


def curve(result: Result) -> str:
    """The mean score by one option, a line for each value of another; nothing for other searches.

    Drawn where all combinations of the values of one or two numeric options were tried. Values
    stand at equal distances, in order: what is tried is often a geometric series.
    """
    varied = _varied(result)
    if not varied:
        return ""
    across, *others = varied
    label = others[0] if others else ""
    scores = {_place(options, varied): mean for options, mean in _tried(result)}

    def panel(axes: Any, _: str) -> None:
        values = varied[across]
        lines = varied[label] if label else [None]
        for n, line in enumerate(lines):
            points = [scores[(v, line) if label else (v,)] for v in values]
            shade = SERIES[n % len(SERIES)]
            style = "-" if n < len(SERIES) else "--"
            axes.plot(range(len(values)), points, style, marker="o", markersize=3, linewidth=1.4,
                      color=shade, label=f"{label} {words.value(line)}")  # fmt: skip
        off = [mean for options, mean in result.candidates if options is None]
        if off and not isnan(off[0]):
            axes.axhline(off[0], color=FALSE, linewidth=1.4, linestyle=":", label="left out")
        place = _place(result.options, varied)
        if place in scores:
            axes.plot(values.index(place[0]), scores[place], **_RING)
        axes.set_xticks(range(len(values)), [words.value(v) for v in values])
        axes.set(xlabel=across, ylabel="mean score")
        axes.legend(frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return panels([across], panel, 3.2, "Mean score by the options tried", width=WIDTH)


def rates(result: Result) -> str:
    """Sensitivity against false lesions per case of each threshold, one panel a class."""
    known = [point for point in result.points if point.sensitivity is not None]
    names = [name for name in result.classes if any(p.class_name == name for p in known)]

    def panel(axes: Any, name: str) -> None:
        mine = [point for point in known if point.class_name == name]
        steps = sorted((p for p in mine if p.options is not None), key=_threshold)
        x, y = [p.false_per_case for p in steps], [p.sensitivity for p in steps]
        axes.plot(x, y, "-o", color=FOUND, linewidth=1.4, markersize=4)
        for n, ((right, up), told) in enumerate(_labels(steps).items()):
            axes.annotate(
                told, (right, up), xytext=(5, -10 if n % 2 else 6), textcoords="offset points",
                fontsize=7, color=INK,
            )  # fmt: skip
        for point in mine:
            style = {**_RING, "marker": "s", "markersize": 7} if point.options is None else _RING
            if point.options in (None, result.options):
                axes.plot(point.false_per_case, point.sensitivity, **style)
        axes.set(title=short(name), xlabel="false lesions per case", ylabel="lesion sensitivity")
        axes.set_ylim(-0.03, 1.06)
        axes.margins(x=0.12)

    return panels(names, panel, 2.9, "Lesions found by false lesions per case", columns=2,
                  width=WIDTH if len(names) == 1 else 9)  # fmt: skip


def _tried(result: Result) -> list[tuple[Options, float]]:
    return [(options, mean) for options, mean in result.candidates if options is not None]


def _varied(result: Result) -> Mapping[str, Sequence[float]]:
    """One or two numeric options and all values of each, the more of them first; else nothing."""
    options = [options for options, _ in _tried(result)]
    names = sorted({name for given in options for name in given})
    rows = {name: {_key(given.get(name)) for given in options} for name in names}
    varied = {name: values for name, values in rows.items() if len(values) > 1}
    if not 0 < len(varied) <= 2 or prod(map(len, varied.values())) != len(options):
        return {}
    if not all(_is_number(value) for values in varied.values() for value in values):
        return {}
    ordered = sorted(varied, key=lambda name: -len(varied[name]))
    if len(varied[ordered[0]]) < _FEWEST:
        return {}
    return {name: sorted(varied[name]) for name in ordered}


def _place(options: Options, varied: Mapping[str, Sequence[float]]) -> tuple[Any, ...]:
    return tuple(_key(options.get(name)) for name in varied)


def _key(value: Any) -> Any:
    """A value to compare by; lists have no hash."""
    return value if _is_number(value) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(steps: Sequence[Point]) -> dict[tuple[float, float | None], str]:
    """The thresholds by place, the highest first; several of one place in one label."""
    told: dict[tuple[float, float | None], str] = {}
    for point in reversed(steps):
        place = (point.false_per_case, point.sensitivity)
        before = f"{told[place]}, " if place in told else ""
        told[place] = f"{before}{words.value(_threshold(point))}"
    return told


def _threshold(point: Point) -> Any:
    given = (point.options or {}).get("threshold", 0.5)
    return given if _is_number(given) else 0.0

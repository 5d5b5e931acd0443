"""Axes and lines of the picture of a training: steps and time, trends, names where lines end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.evaluation.figures import Curve

_SMOOTHED = 20  # records, from which on a line shows its trend
_LINE = 0.058  # height of a line of text in a large panel, as a share of it
_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_DAY = 86400


@dataclass(frozen=True)
class Label:
    """A name beside the end of a line: at `y`, in the panel's units."""

    y: float
    text: str
    colour: str
    weight: str = "normal"


def trend(axes: Any, curve: Curve, colour: str, form: str, *, is_log: bool = False) -> None:
    """A line, thin where there is enough of it to show its trend, which is told at its end."""
    from matplotlib.ticker import LogLocator
    from scipy.ndimage import gaussian_filter1d

    x, y = np.array(curve, dtype=float).T
    scaled = np.log(y) if is_log else y
    is_long = len(curve) >= _SMOOTHED
    low, high = np.percentile(scaled, (0.5, 99.5)) if is_long else (scaled.min(), scaled.max())
    smooth = np.clip(scaled, low, high)  # a spike, such as the first step's, moves no trend
    smooth = gaussian_filter1d(smooth, 1 + len(y) / 60, mode="nearest") if is_long else smooth
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    limits, smooth = np.array((low - margin, high + margin)), np.exp(smooth) if is_log else smooth
    if is_long:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(x, smooth, color=colour, linewidth=2)
    else:
        marked(axes, curve, color=colour, linewidth=1.6)
    if is_log:
        axes.set_yscale("log", subs=[])
        few = limits[1] - limits[0] < np.log(300)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
    axes.set_ylim(*(np.exp(limits) if is_log else limits))
    axes.annotate(
        form.format(smooth[-1]).replace("-", "−"), (1, smooth[-1]), (4, 0), color=colour,
        xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8.5,
        annotation_clip=False,
    )  # fmt: skip


def marked(axes: Any, curve: Curve, *, least: int = 30, **style: Any) -> None:
    """A line, with its points where there are few."""
    x, y = zip(*curve, strict=True)
    marker = "o" if len(curve) < least else ""
    axes.plot(x, y, marker=marker, markersize=3, **style)


def beside(axes: Any, labels: Sequence[Label]) -> None:
    """Names at the right, each as near to the end of its line as the others leave room."""
    low, high = axes.get_ylim()
    labels = sorted(labels, key=lambda label: label.y)
    places = _apart([(label.y - low) / (high - low) for label in labels], _LINE)
    for label, place in zip(labels, places, strict=True):
        axes.annotate(
            label.text, (1, place), (4, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", color=label.colour, weight=label.weight, fontsize=8.5,
            annotation_clip=False,
        )  # fmt: skip


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places, at least `gap` from each other, near those wanted and within 0 to 1."""
    groups: list[tuple[float, int]] = []  # middle and members of those that touch
    for place in wanted:
        middle, n = place, 1
        while groups and middle - groups[-1][0] < gap * (groups[-1][1] + n) / 2:
            other, m = groups.pop()
            middle, n = (middle * n + other * m) / (n + m), n + m
            half = gap * (n - 1) / 2
            middle = max(half, min(middle, 1 - half))
        groups.append((middle, n))
    return [middle + gap * (k - (n - 1) / 2) for middle, n in groups for k in range(n)]


def steps(axes: Any, last: int) -> None:
    """The steps below: from 0 to the last, a little room on both sides."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(
        (lambda value, _: f"{value / 1000:g}k" if value else "0") if last >= 10_000 else "{x:,.0f}"
    )


def elapsed(axes: Any, times: Curve) -> None:
    """The time above: seconds by step, the clock's or of whatever kind the budget counts."""
    if not times:
        return
    at, seconds = np.array([(0.0, 0.0), *times], dtype=float).T
    seconds = np.maximum.accumulate(seconds)
    most = seconds[-1]
    every = next((t for t in _TIMES if most / t <= 5), _DAY * max(1, round(most / _DAY / 5)))
    marks = np.arange(0, most + 1e-9, every)
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(marks, seconds, at), [clock(mark) for mark in marks])
    above.tick_params(length=2, labelsize=8, pad=1)
    above.spines["top"].set_visible(False)
    for text in above.get_xticklabels():
        text.set_alpha(0.7)


def clock(seconds: float) -> str:
    """12 s, 5 min, 1.5 h, 2 d."""
    for unit, size in (("d", _DAY), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds else "0"


def ink() -> str:
    """The colour of text, in the style that is drawn in."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])

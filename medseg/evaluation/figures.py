"""The report's charts, as SVG that takes the page's text colour and so reads in light and dark."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

import numpy as np

from medseg.evaluation.scores import CaseScores

INK = "#123457"  # stands for the page's text colour until the SVG is written
FOUND, MISSED, FALSE = "#0072b2", "#e69f00", "#999999"  # Okabe and Ito's colour-blind-safe set
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
BOXES = {
    "dice": "Dice",
    "nsd": "NSD",
    "precision": "Precision",
    "recall": "Recall",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "volume_error_ml": "Volume error (mL)",
    "lesion_f1": "Lesion F1",
}
RATIOS = {"dice", "nsd", "precision", "recall", "lesion_f1"}
MOST_POINTS = 400  # of one measure; beyond it only outliers are drawn
Log = Sequence[Mapping[str, Any]]
Curve = list[tuple[float, float]]


def box_plots(cases: Sequence[CaseScores]) -> str:
    """Box plots, one panel a measure, one box a class; infinite values are left out."""
    names = list(cases[0].measures)
    rows = {name: [case.row(name) for case in cases] for name in names}
    shown = [key for key in BOXES if any(key in group[0] for group in rows.values())]

    def panel(axes: Any, key: str) -> None:
        values = [[row[key] for row in rows[n] if isfinite(row.get(key, np.inf))] for n in names]
        _boxes(axes, values, crowded=len(cases) * len(names) > MOST_POINTS)
        axes.set_title(BOXES[key])
        axes.set_yticks(range(1, len(names) + 1), map(short, names))
        axes.invert_yaxis()
        if key in RATIOS:
            axes.set_xlim(-0.02, 1.02)

    return panels(shown, panel, 0.75 + 0.42 * len(names), "Distribution of each measure by class")


def lesion_sizes(cases: Sequence[CaseScores]) -> str:
    """How many lesions of which size were found, missed, or false; one panel a class."""

    def panel(axes: Any, name: str) -> None:
        lesions = [case.lesions[name] for case in cases]
        groups = {
            "found": [v for case in lesions for v in case.found_mm3],
            "missed": [v for case in lesions for v in case.missed_mm3],
            "false": [v for case in lesions for v in case.false_mm3],
        }
        volumes = [volume for group in groups.values() for volume in group] or [1.0]
        edges = np.geomspace(min(volumes) * 0.9, max(volumes) * 1.1, 13)
        axes.hist(
            list(groups.values()), edges, stacked=True, color=(FOUND, MISSED, FALSE),
            label=[f"{key} ({len(group)})" for key, group in groups.items()], rwidth=0.92,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.9g}")
        axes.set(title=short(name), xlabel="lesion volume (mm³)", ylabel="lesions")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, labelcolor=INK)

    names = [name for name in cases[0].measures if name in cases[0].lesions]
    return panels(names, panel, 2.6, "Lesions by volume: found, missed, false", columns=2)


def panels(
    keys: Sequence[str],
    panel: Callable[[Any, str], None],
    height: float,
    label: str,
    columns: int = 4,
    width: float = 11,
) -> str:
    """One small chart for each key, in rows of `columns`, as one SVG; nothing without keys.

    Args:
        keys: What the charts are of.
        panel: Draws one: (axes, key). `INK` is the page's text colour.
        height: Of a row, in inches.
        label: What a reader who cannot see it is told.
        columns: The most charts beside each other.
        width: Of all together, in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if not keys:
        return ""
    columns = min(columns, len(keys))
    lines = -(-len(keys) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, key in zip(grid, keys, strict=False):
            panel(axes, key)
        for axes in grid[len(keys) :]:
            axes.set_axis_off()
        return svg(figure, label)


def svg(figure: Any, label: str) -> str:
    """A figure drawn in `STYLE` as SVG; `label` is what a reader who cannot see it is told."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has the glyph
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def short(name: str, most: int = 20) -> str:
    """A name that leaves room for its chart; the tables have it in full."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _boxes(axes: Any, values: Sequence[Sequence[float]], crowded: bool) -> None:
    line = {"color": INK, "linewidth": 1.0}
    boxes = axes.boxplot(
        values, orientation="horizontal", widths=0.55, patch_artist=True, showfliers=crowded,
        medianprops={"color": INK, "linewidth": 1.8}, whiskerprops=line, capprops=line,
        boxprops=dict(line), flierprops={"markersize": 2, "markeredgecolor": INK, "alpha": 0.5},
    )  # fmt: skip
    for place, (box, group, colour) in enumerate(
        zip(boxes["boxes"], values, _cycle(len(values)), strict=True), start=1
    ):
        box.set(facecolor=colour, alpha=0.55)
        if not crowded:
            spread = 0.22 * np.sin(2.4 * np.arange(len(group)))  # apart, and the same every time
            axes.plot(group, place + spread, "o", markersize=2.6, color=INK, alpha=0.45, mew=0)


def _cycle(count: int) -> list[str]:
    return [SERIES[index % len(SERIES)] for index in range(count)]


STYLE = {
    "figure.constrained_layout.hspace": 0.08,
    "figure.constrained_layout.wspace": 0.04,
    "svg.fonttype": "none",
    "svg.hashsalt": "medseg",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
}

"""The report's charts of lesions: FROC, and recall by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medseg.evaluation.figures import FOUND, INK, MISSED, panels, short
from medseg.evaluation.froc import RATES

_LEAST = RATES[0] / 2  # false lesions per case at the chart's left end


def froc_curves(summary: Mapping[str, Any]) -> str:
    """Sensitivity against false lesions per case, one panel a class that has a curve."""
    curves = {n: found["froc"] for n, found in summary["classes"].items() if "froc" in found}

    def panel(axes: Any, name: str) -> None:
        found = curves[name]
        points = np.array([[0, 0], *found["curve"]], dtype=float)
        right = max(RATES[-1], points[-1, 0])
        start = np.interp(_LEAST, points[:, 0], points[:, 1])
        inside = points[points[:, 0] > _LEAST]
        x, y = np.array([[_LEAST, start], *inside]).T
        axes.plot(x, y, color=FOUND, linewidth=1.8)
        axes.plot([x[-1], right], [y[-1], y[-1]], color=FOUND, linewidth=1.2, linestyle=":")
        axes.plot(RATES, list(found["sensitivity"].values()), "o", markersize=4.5, color=FOUND,
                  mew=0)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_xlim(_LEAST, right * 1.1)
        axes.set_ylim(-0.02, 1.04)
        axes.set_title(f"{short(name)}: mean of the circles {found['mean']:.3f}")
        axes.set(xlabel="false lesions per case", ylabel="lesion sensitivity")

    return panels(list(curves), panel, 2.8, "FROC: sensitivity by false lesions per case",
                  columns=2)  # fmt: skip


def recall_by_size(summary: Mapping[str, Any]) -> str:
    """The share of true lesions found in each bin of volume, one panel a class."""
    sizes = {
        name: found["by_size"]
        for name, found in summary["classes"].items()
        if any(row["found"] + row["missed"] for row in found.get("by_size", ()))
    }

    def panel(axes: Any, name: str) -> None:
        rows = sizes[name]
        for place, row in enumerate(rows):
            count = row["found"] + row["missed"]
            height = row["recall"] or 0.0
            axes.bar(place, float(count > 0), color=MISSED, alpha=0.35, width=0.7)
            axes.bar(place, height, color=FOUND, width=0.7)
            told = f"{row['found']} of {count}" if count else "none"
            axes.annotate(told, (place, 1.03), ha="center", va="bottom", color=INK, fontsize=8)
        axes.set_xticks(range(len(rows)), [_size(row) for row in rows])
        axes.set_xlim(-0.6, max(len(rows), 3) - 0.4)
        axes.set_ylim(0, 1.16)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(visible=False, axis="x")
        axes.set(title=short(name), xlabel="lesion volume (mm³)", ylabel="found")

    return panels(list(sizes), panel, 2.6, "Share of true lesions found by volume", columns=2)


def _size(row: Mapping[str, Any]) -> str:
    low, high = row["from_mm3"], row["below_mm3"]
    if high is None:
        return f"{low:,.6g} and more" if low else "all"
    return f"{low:,.6g} to {high:,.6g}" if low else f"below {high:,.6g}"

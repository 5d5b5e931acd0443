"""The report's tables: the summary of the set, its lesions, and every case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isinf, isnan
from typing import Any

from medseg.evaluation.froc import RATES
from medseg.evaluation.scores import CaseScores

MASKS = {  # heading and decimals
    "dice": ("Dice", 3),
    "iou": ("IoU", 3),
    "precision": ("Precision", 3),
    "recall": ("Recall", 3),
    "nsd": ("NSD", 3),
    "hd95_mm": ("HD95 (mm)", 2),
    "assd_mm": ("ASSD (mm)", 2),
    "truth_ml": ("True (mL)", 2),
    "volume_ml": ("Predicted (mL)", 2),
    "volume_error_ml": ("Error (mL)", 2),
}
LESIONS = {
    "sensitivity": ("Lesion sensitivity", 3),
    "precision": ("Lesion precision", 3),
    "f1": ("Lesion F1", 3),
    "tp": ("Found", 0),
    "fn": ("Missed", 0),
    "fp": ("False", 0),
}
COLUMNS = MASKS | {f"lesion_{key}": column for key, column in LESIONS.items()}
POOLED = LESIONS | {
    "false_per_case": ("False per case", 2),
    "split": ("Split", 0),
    "merged": ("Merged", 0),
}
MOST_ROWS = 2000


def summary_table(summary: Mapping[str, Any]) -> str:
    """One row a class: mean ± sd of each measure, and of how many cases where some are left out."""
    rows = (
        row([name], (_spread(found[key], decimals) for key, (_, decimals) in MASKS.items()))
        for name, found in summary["classes"].items()
    )
    return table(["Class"], [heading for heading, _ in MASKS.values()], rows)


def lesion_table(summary: Mapping[str, Any]) -> str:
    """One row a class: its lesions over all cases together; nothing if none were counted."""
    pooled = {n: found["pooled"] for n, found in summary["classes"].items() if "pooled" in found}
    rows = (
        row([name], (text(found[key], decimals) for key, (_, decimals) in POOLED.items()))
        for name, found in pooled.items()
    )
    headings = [heading for heading, _ in POOLED.values()]
    return table(["Class"], headings, rows) if pooled else ""


def froc_table(summary: Mapping[str, Any]) -> str:
    """One row a class: its sensitivity at each rate of false lesions; nothing without a curve."""
    curves = {n: found["froc"] for n, found in summary["classes"].items() if "froc" in found}
    if not curves:
        return ""
    headings = [f"{rate:g}" for rate in RATES]
    rows = (
        row([name], (text(v, 3) for v in (*found["sensitivity"].values(), found["mean"])))
        for name, found in curves.items()
    )
    return table(["Sensitivity at false lesions per case"], [*headings, "Mean"], rows)


def case_table(cases: Sequence[CaseScores]) -> str:
    """One row a case and class, in the order given."""
    rows = [(case, name) for case in cases for name in case.measures]
    values = [case.row(name) for case, name in rows[:MOST_ROWS]]
    columns = [key for key in COLUMNS if key in values[0]]
    body = (
        row([case.case_id, name], (text(found[key], COLUMNS[key][1]) for key in columns))
        for (case, name), found in zip(rows, values, strict=False)
    )
    left = len(rows) - len(values)
    more = f"<p>{left} more rows are in scores.csv.</p>" if left else ""
    return table(["Case", "Class"], [COLUMNS[key][0] for key in columns], body) + more


def text(value: float | None, decimals: int) -> str:
    """A number for the eye: `–` where there is none, `∞` where it is infinite."""
    if value is None or isnan(value):
        return "–"
    return "∞" if isinf(value) else f"{value:.{decimals}f}"


def row(names: Sequence[str], cells: Iterable[str]) -> str:
    """A line of a table: names, which are escaped, then cells, which are HTML."""
    head = "".join(f'<td class="name">{escape(name)}</td>' for name in names)
    return f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def table(names: Sequence[str], headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table that scrolls on its own; headings are HTML."""
    head = "".join(f'<th class="name">{name}</th>' for name in names)
    head += "".join(f"<th>{heading}</th>" for heading in headings)
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _spread(found: Mapping[str, Any], decimals: int) -> str:
    count = f"<br><small>n = {found['count']}</small>" if found["left_out"] else ""
    spread = f"<br><small>± {text(found['sd'], decimals)}</small>" if found["count"] > 1 else ""
    return text(found["mean"], decimals) + spread + count

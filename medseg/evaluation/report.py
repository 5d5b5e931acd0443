"""The report: one HTML file that opens anywhere, offline, and holds its figures itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg import files
from medseg.config.schema import Evaluation
from medseg.errors import DataError
from medseg.evaluation import figures, lesion_figures, progress, subsets
from medseg.evaluation import report_page as page
from medseg.evaluation.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, CaseView
from medseg.evaluation.report_tables import (
    case_table,
    froc_table,
    lesion_table,
    summary_table,
    text,
)
from medseg.evaluation.scores import CaseScores, summarise
from medseg.evaluation.subsets import Subset

DRAWN = 12


@dataclass(frozen=True, eq=False)
class Report:
    """What a report tells.

    Args:
        title: The heading.
        cases: The scored cases, at least one.
        settings: How they were measured.
        log: Records of a run's `log.jsonl`, for the training curves.
        facts: What the reader should know of the run, e.g. versions; name to value.
        subsets: The cases by the channels they were predicted from.
        every_subset: The same of cases predicted with every subset of the channels on purpose.
    """

    title: str
    cases: Sequence[CaseScores]
    settings: Evaluation
    log: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    subsets: Sequence[Subset] = ()
    every_subset: Sequence[Subset] = ()


def write(
    path: Path,
    report: Report,
    view: Callable[[str], CaseView] | None = None,
    drawn: int = DRAWN,
) -> None:
    """Write a report as one HTML file.

    Args:
        path: The .html file.
        report: What it tells.
        view: Loads one case for its picture; called for the `drawn` cases of lowest mean Dice, one
            at a time. A case it refuses with a DataError is named without a picture.
        drawn: How many cases to draw.

    Raises:
        DataError: There is no case, or the file cannot be written.
    """
    if not report.cases:
        raise DataError(path, "a report needs at least one scored case")
    worst_first = sorted(report.cases, key=lambda case: (case.dice, case.case_id))
    summary = summarise(report.cases, report.settings)
    sections = [
        _tiles(summary),
        page.section("Summary", summary_table(summary), _SUMMARY),
        page.section("Distributions", page.card(figures.box_plots(worst_first))),
        page.section("Training", page.card(progress.training_curves(report.log))),
        page.section(
            "Lesions",
            lesion_table(summary) + page.card(figures.lesion_sizes(worst_first)),
            _lesion_rule(report.settings),
        ),
        page.section("Lesions found by size", page.card(lesion_figures.recall_by_size(summary))),
        page.section(
            "FROC", froc_table(summary) + page.card(lesion_figures.froc_curves(summary)), _FROC
        ),
        page.section("Missing channels", subsets.html(report.subsets), _SUBSETS),
        page.section("Every subset", subsets.html(report.every_subset), _EVERY_SUBSET),
        page.section("Worst cases", _pictures(worst_first[:drawn], view), _PICTURES),
        page.section("All cases, worst first", case_table(worst_first)),
        page.section("How it was measured", _rules(report.settings)),
        page.section("This run", page.facts(report.facts)),
    ]
    files.write_text(path, page.page(report.title, "".join(sections)))


def _tiles(summary: Mapping[str, Any]) -> str:
    tiles = [(summary["cases"], "cases"), (text(summary["mean_dice"], 3), "mean class Dice")]
    for name, found in summary["classes"].items():
        if "pooled" in found:
            tiles.append((text(found["pooled"]["f1"], 3), f"lesion F1, {name}, pooled"))
    return page.tiles(tiles[:5])


def _pictures(cases: Sequence[CaseScores], view: Callable[[str], CaseView] | None) -> str:
    return "".join(_picture(case, view) for case in cases) if view else ""


def _picture(case: CaseScores, view: Callable[[str], CaseView]) -> str:
    return page.picture(
        case.case_id,
        view,
        (
            f"{name}: Dice {text(found.dice, 3)}, HD95 {text(found.hd95_mm, 1)} mm, "
            f"{text(found.truth_ml, 2)} mL true, {text(found.volume_ml, 2)} mL predicted"
            for name, found in list(case.measures.items())[:8]
        ),
    )


def _rules(settings: Evaluation) -> str:
    return page.card(f"<p>{_MEASURED.format(tolerance=settings.tolerance_mm)}</p>")


def _lesion_rule(settings: Evaluation) -> str:
    least = f"Lesions below {settings.min_lesion_mm3:g} mm³ are not counted. "
    rule = _RULES[settings.lesion_rule].format(
        iou=f"an IoU of {settings.lesion_overlap:g}" if settings.lesion_overlap else "one voxel",
        share=f"{settings.lesion_overlap:.0%}".replace("%", " %")
        if settings.lesion_overlap
        else "one voxel",
    )
    return (
        f"Connected components ({settings.connectivity} neighbours), over all cases. {rule} "
        "Split: true lesions that two or more predicted ones touch; merged: predicted lesions that "
        f"touch two or more true ones. {least if settings.min_lesion_mm3 else ''}"
        "Each lesion is a row of lesions.csv."
    )


_RULES = {
    "one_to_one": "A true lesion is found when a predicted one overlaps it by at least {iou}; each "
    "lesion enters one pair at most.",
    "any_overlap": "A true lesion is found when predictions cover at least {share} of it, and a "
    "predicted one is false when less than that of it is true.",
}

_FROC = (
    "Predicted lesions are dropped by their confidence, the mean probability within, the least "
    "sure first. Sensitivity over all true lesions against false lesions per case; between two "
    "thresholds the line is straight, and dotted where nothing is left to add."
)

_SUMMARY = "Mean ± standard deviation over the cases."

_SUBSETS = "Mean Dice of the cases by the channels that were there (●) or missing (○)."

_EVERY_SUBSET = (
    "Mean Dice of all these cases, predicted with every subset of the channels; "
    "the others (○) were taken as missing."
)

_PICTURES = (
    f'<i class="key" style="border-color:{TRUTH_COLOUR}"></i>truth &nbsp; '
    f'<i class="key" style="border-color:{PREDICTION_COLOUR}"></i>prediction. '
    "Slices through the largest connected error; the patient’s right is on the left."
)

_MEASURED = (
    "Distances run between the centres of surface voxels (those with a face neighbour outside the "
    "mask). HD95 is the larger of the two directed 95th percentiles, ASSD the mean over both "
    "surfaces, NSD the share of both surfaces within {tolerance:g} mm. Where truth and prediction "
    "are both empty, ratios are 1 and distances 0. Where one of them is empty, ratios are 0 and "
    "distances infinite; infinite values are left out of means, and the number of values that "
    "remain is given as n."
)

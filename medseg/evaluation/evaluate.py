"""Score a folder of masks against the truth and show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.config.schema import Evaluation
from medseg.console import Tick
from medseg.errors import DataError, raise_all
from medseg.evaluation import report, scores
from medseg.evaluation.overlay import CaseView
from medseg.volumes import nifti
from medseg.volumes.dataset import Case, Labels
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Image


def evaluate(
    predictions: Path,
    cases: Sequence[Case],
    labels: Labels,
    settings: Evaluation,
    output: Path,
    tick: Tick,
    *,
    title: str = "Evaluation",
    log: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score masks and write `scores.csv`, `summary.json` and `report.html`.

    Args:
        predictions: Folder of masks, `ID.nii.gz` or `ID.nii`, of label values.
        cases: What to score; each needs a label.
        labels: What the values mean.
        settings: What to measure.
        output: Folder for the results.
        tick: Called after each case.
        title: Heading of the report.
        log: Records of the training, for its curves.
        facts: What else the report should tell.

    Returns:
        The summary.

    Raises:
        DataErrors: Masks are missing or on another grid than the truth.
    """
    files = _masks(predictions, cases)
    scored = []
    for case in cases:
        prediction, truth = _pair(files[case.id], case)
        scored.append(
            scores.score_case(
                case.id, prediction.data, truth.data, truth.spacing, labels.classes, settings,
                labels.ignore,
            )
        )  # fmt: skip
        tick(f"{case.id}  Dice {scored[-1].dice:.3f}")
    summary = scores.write(output, scored, settings)
    by_id = {case.id: case for case in cases}

    def view(case_id: str) -> CaseView:
        return _view(files[case_id], by_id[case_id])

    told = report.Report(title, scored, settings, log, facts or {})
    report.write(output / "report.html", told, view)
    return summary


def _masks(folder: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """The mask of each case.

    Raises:
        DataErrors: Some have none, or a case has no label.
    """
    found, problems = {}, []
    for case in cases:
        names = [folder / f"{case.id}{ending}" for ending in (".nii.gz", ".nii")]
        there = [name for name in names if name.is_file()]
        if case.label is None:
            problems.append(DataError(case.channels[0].path, f"case {case.id!r} has no label"))
        elif not there:
            problems.append(
                DataError(names[0], f"no prediction of case {case.id!r}; run medseg predict first")
            )
        else:
            found[case.id] = there[0]
    raise_all(problems)
    return found


def _pair(mask: Path, case: Case) -> tuple[Image, Image]:
    assert case.label is not None
    prediction, truth = nifti.read_label(mask), nifti.read_label(case.label)
    differ = same_grid(truth.shape, truth.affine, prediction.shape, prediction.affine)
    if differ:
        raise DataError(mask, f"not on the grid of {truth.path}: {differ}")
    return prediction, truth


def _view(mask: Path, case: Case) -> CaseView:
    prediction, truth = _pair(mask, case)
    channel = case.channels[0] if case.channels else None
    if channel is None:
        background = truth.data.astype("float32")
    else:
        stack = nifti.read(channel.path, volumes=channel.index is not None).data
        background = stack if channel.index is None else stack[channel.index]
    return CaseView(case.id, background, prediction.data, truth.data, truth.affine)

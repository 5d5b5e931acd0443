"""Score a folder of masks against the truth and show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.config.schema import Evaluation
from medseg.console import Tick
from medseg.errors import DataError, raise_all
from medseg.evaluation import probabilities, report, scores, subsets
from medseg.evaluation.lesion_records import folder_names, painted
from medseg.evaluation.lesions import Matching
from medseg.evaluation.overlay import CaseView
from medseg.evaluation.subsets import Subset
from medseg.files import check_writable
from medseg.volumes import nifti
from medseg.volumes.dataset import Case, Dataset
from medseg.volumes.geometry import same_grid
from medseg.volumes.image import Array, Image

MAPS = "lesions"


@dataclass(frozen=True)
class Job:
    """What to score and how.

    Args:
        dataset: The cases; each needs a label.
        settings: What to measure.
        title: Heading of the report.
        log: Records of the training, for the report's curves.
        facts: What else the report should tell; name to value.
        every_subset: Scores of every subset of the channels, if they were made.
        region: Gives the region of interest (I, J, K) of a case: what lies outside is background
            in both masks; None: all of it counts.
    """

    dataset: Dataset
    settings: Evaluation
    title: str = "Evaluation"
    log: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    every_subset: Sequence[Subset] = ()
    region: Callable[[Case], Array] | None = None


def evaluate(predictions: Path, job: Job, output: Path, tick: Tick) -> dict[str, Any]:
    """Score masks and write `scores.csv`, `summary.json` and `report.html`.

    Where lesions are counted, also `lesions.csv` and, if asked for, a painted map of each case (see
    `lesion_records`). Their confidences come from the probabilities beside the masks, if there.

    Args:
        predictions: Folder of masks, `ID.nii.gz` or `ID.nii`, of label values.
        job: What to score.
        output: Folder for the results.
        tick: Called after each case.

    Returns:
        The summary.

    Raises:
        DataErrors: Masks are missing, or on another grid than the truth.
    """
    cases = {case.id: case for case in job.dataset.cases}
    files = _masks(predictions, job.dataset.cases)
    check_writable(output)
    scored = []
    for case in job.dataset.cases:
        scored.append(_score(files[case.id], case, job, output))
        tick(f"{case.id}  Dice {scored[-1].dice:.3f}")
    by_channels = subsets.observed(predictions, job.dataset, scored)
    more = {"subsets": [subset.as_json() for subset in by_channels]}
    if job.every_subset:
        more["every_subset"] = [subset.as_json() for subset in job.every_subset]
        subsets.write(output, job.every_subset)
    summary = scores.write(output, scored, job.settings, more)
    shown = (by_channels, job.every_subset)
    report.write(
        output / "report.html",
        report.Report(job.title, scored, job.settings, job.log, job.facts, *shown),
        lambda case_id: _view(files[case_id], cases[case_id], job),
    )
    return summary


def _score(mask: Path, case: Case, job: Job, output: Path) -> scores.CaseScores:
    prediction, truth = _pair(mask, case, job.region)
    labels = job.dataset.labels
    for image in (prediction, truth):
        labels.to_indices(image.data, image.path)  # refuses a value that it does not know
    return scores.score_case(
        case.id,
        prediction.data,
        truth.data,
        truth.spacing,
        labels.classes,
        job.settings,
        labels.ignore,
        _beside(prediction, case, job, output) if job.settings.lesions else None,
    )


def _beside(prediction: Image, case: Case, job: Job, output: Path) -> scores.Beside:
    """What the lesions of a case need: its place, its probabilities, and where to paint them."""
    labels = job.dataset.labels
    folders = folder_names(labels.classes) if len(labels.classes) > 1 else {}

    def paint(name: str, found: Matching) -> None:
        path = output / MAPS / folders.get(name, "") / f"{case.id}.nii.gz"
        nifti.write(path, painted(found, prediction.shape), prediction)

    return scores.Beside(
        prediction.affine,
        probabilities.find(prediction, case.id, labels),
        paint if job.settings.lesion_maps else None,
    )


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
            problems.append(DataError(case.files[0], f"case {case.id!r} has no label"))
        elif not there:
            problems.append(
                DataError(names[0], f"no prediction of case {case.id!r}; run medseg predict first")
            )
        else:
            found[case.id] = there[0]
    raise_all(problems)
    return found


def _pair(mask: Path, case: Case, region: Callable[[Case], Array] | None) -> tuple[Image, Image]:
    """Prediction and truth on one grid, background outside the region of interest."""
    assert case.label is not None
    prediction, truth = nifti.read_label(mask), nifti.read_label(case.label)
    differ = same_grid(truth.shape, truth.affine, prediction.shape, prediction.affine)
    if differ:
        raise DataError(mask, f"not on the grid of {truth.path}: {differ}")
    if region is not None:
        inside = region(case)
        prediction = replace(prediction, data=prediction.data * inside)
        truth = replace(truth, data=truth.data * inside)
    return prediction, truth


def _view(mask: Path, case: Case, job: Job) -> CaseView:
    prediction, truth = _pair(mask, case, job.region)
    dataset, ignore = job.dataset, job.dataset.labels.ignore
    counted = np.ones(truth.shape, dtype=bool) if ignore is None else truth.data != ignore
    channel = case.channels[dataset.reference(case)]  # the one that is on the truth's grid
    assert channel is not None
    stack = nifti.read(channel.path, volumes=channel.index is not None).data
    background = stack if channel.index is None else stack[channel.index]
    return CaseView(
        case.id, background, prediction.data * counted, truth.data * counted, truth.affine
    )

"""Check every case of a dataset before anything is trained, and say all that is wrong at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from medseg.errors import DataError, DataErrors, raise_all
from medseg.volumes.dataset import IGNORE_INDEX, Case, Dataset, Indices
from medseg.volumes.geometry import orientation
from medseg.volumes.load import LoadedCase, load_case

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class CaseReport:
    """What a case was found to be.

    Args:
        id: The case.
        shape: Voxels (I, J, K); None where the case could not be read.
        spacing: Voxel size in mm along (i, j, k).
        orientation: Where the voxel axes point, e.g. "RAS".
        voxels: Label value: number of voxels; 0 is background; only values that occur.
        notes: What is odd but accepted.
        problems: What must be mended.
        missing: Names of the channels that it lacks.
    """

    id: str
    shape: tuple[int, int, int] | None = None
    spacing: Spacing | None = None
    orientation: str = ""
    voxels: dict[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[DataError, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What all cases were found to be.

    Args:
        cases: One report each, in the dataset's order.
        problems: What is wrong with the set as a whole.
        notes: What is odd about it, but accepted.
    """

    cases: tuple[CaseReport, ...]
    problems: tuple[DataError, ...] = ()
    notes: tuple[str, ...] = ()

    def raise_problems(self) -> None:
        """Raise everything that is wrong.

        Raises:
            DataError: One thing is; DataErrors: several are.
        """
        raise_all([*(p for case in self.cases for p in case.problems), *self.problems])


def check_cases(
    dataset: Dataset,
    *,
    need_labels: bool,
    progress: Callable[[], None] | None = None,
    train: Collection[str] | None = None,
    threads: int = 2,
    region: Callable[[LoadedCase], LoadedCase] | None = None,
) -> CheckReport:
    """Read every file of every case once, and collect what is wrong.

    Args:
        dataset: The cases.
        need_labels: Whether a case without a label, or a class that never occurs, is a problem.
        progress: Called after each case.
        train: Ids in which every class must occur; None: all.
        threads: Cases read at the same time; decompression runs beside Python.
        region: Gives a loaded case its region of interest, or says by a DataError why it cannot.
    """

    def check(case: Case) -> CaseReport:
        return _check(case, dataset, need_labels, region)

    reports = []
    with ThreadPoolExecutor(threads) as pool:
        for report in pool.map(check, dataset.cases):
            reports.append(report)
            if progress is not None:
                progress()
    found = CheckReport(tuple(reports))
    return judged(found, dataset, train) if need_labels else found


def judged(report: CheckReport, dataset: Dataset, train: Collection[str] | None) -> CheckReport:
    """The same cases, with what is wrong or odd about them as a set to train on.

    Args:
        report: Of `check_cases`.
        dataset: The cases.
        train: Ids in which every class must occur; None: all.
    """
    reports = report.cases
    training = [case for case in reports if train is None or case.id in train]
    if any(not case.voxels for case in training):
        return CheckReport(reports)  # what occurs is unknown while some cannot be read
    problems = (*_nowhere(dataset, train), *_absent(dataset, training))
    return CheckReport(reports, problems, () if problems else tuple(_idle(dataset, training)))


def _check(
    case: Case,
    dataset: Dataset,
    need_labels: bool,
    region: Callable[[LoadedCase], LoadedCase] | None,
) -> CaseReport:
    problems: list[DataError] = []
    if need_labels and case.label is None:
        reason = f"case {case.id!r} has no label: set data.label to where the labels are"
        problems.append(DataError(case.files[0], reason))
    try:
        loaded = load_case(case, dataset)
        loaded = loaded if region is None else region(loaded)
    except DataError as error:
        return CaseReport(case.id, problems=(*problems, error))
    except DataErrors as errors:
        return CaseReport(case.id, problems=(*problems, *errors.errors))
    voxels: dict[int, int] = {}
    if loaded.label is not None and case.label is not None:
        voxels = _count(loaded.label, dataset)
        if len(voxels) == 1 and 0 not in voxels:
            (value,) = voxels
            reason = f"every voxel has label {value}: no background is left; mend the label"
            problems.append(DataError(case.label, reason))
    return CaseReport(
        case.id,
        loaded.reference.shape,
        loaded.reference.spacing,
        orientation(loaded.reference.affine),
        voxels,
        (*loaded.notes, *_outside(case, loaded)),
        tuple(problems),
        dataset.missing(case),
    )


def _count(label: Indices, dataset: Dataset) -> dict[int, int]:
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1)
    present = np.flatnonzero(counts)
    values = dataset.labels.to_values(present)
    return {int(v): int(counts[index]) for v, index in zip(values, present, strict=True)}


def _outside(case: Case, loaded: LoadedCase) -> tuple[str, ...]:
    if loaded.label is None or loaded.mask is None:
        return ()
    where = case.mask or "the computed region of interest"
    outside = int(np.count_nonzero((loaded.label > 0) & ~loaded.mask))
    return (f"{case.label}: {outside} labelled voxels lie outside {where}",) if outside else ()


def _nowhere(dataset: Dataset, train: Collection[str] | None) -> Iterator[DataError]:
    """Channels that all training cases lack: of these nothing could be learnt."""
    training = [case for case in dataset.cases if train is None or case.id in train]
    for n, name in enumerate(dataset.channels):
        if all(case.channels[n] is None for case in training):
            yield DataError(
                dataset.source,
                f"channel {name!r} is missing in all {len(training)} training cases: correct its "
                "pattern or column in data.channels, or take it out",
            )


def _absent(dataset: Dataset, training: Sequence[CaseReport]) -> Iterator[DataError]:
    """Classes of which no training case has a voxel."""
    present = _values(training)
    for name, values in dataset.labels.classes.items():
        if not present & set(values):
            yield DataError(
                dataset.source,
                f"class {name!r} (label {', '.join(map(str, values))}) occurs in none of the "
                f"{len(training)} training cases: correct data.classes or the split",
            )


def _idle(dataset: Dataset, training: Sequence[CaseReport]) -> Iterator[str]:
    """Label values of regions that no training case has: nothing could be learnt of them."""
    present = _values(training)
    for value in dataset.labels.values:
        if value not in present:
            regions = [name for name, values in dataset.labels.classes.items() if value in values]
            yield (
                f"{dataset.source}: label {value} of {', '.join(regions)} occurs in none of the "
                f"{len(training)} training cases: if it is a slip, correct data.classes"
            )


def _values(training: Sequence[CaseReport]) -> set[int]:
    return {value for report in training for value in report.voxels}

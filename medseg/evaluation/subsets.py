"""Dice by which channels were there: what a model makes of the rest where some are missing."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medseg import files
from medseg.errors import DataError
from medseg.evaluation.metrics import ratio
from medseg.evaluation.report_tables import row, table, text
from medseg.evaluation.scores import CaseScores, LabelMap
from medseg.evaluation.surfaces import Mask
from medseg.volumes.dataset import Dataset

Key = tuple[tuple[str, ...], tuple[str, ...]]  # all channels, and those of them that are missing


@dataclass(frozen=True)
class Subset:
    """The cases that were predicted from the same channels.

    Args:
        channels: Those that were there, in the model's order.
        missing: Those that were not, and taken as 0.
        cases: How many cases.
        dice: Class name to the mean Dice over the cases.
    """

    channels: tuple[str, ...]
    missing: tuple[str, ...]
    cases: int
    dice: Mapping[str, float]

    @property
    def mean_dice(self) -> float:
        """Mean over the classes."""
        return statistics.fmean(self.dice.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values, as in `summary.json`."""
        return {
            "channels": list(self.channels),
            "missing": list(self.missing),
            "cases": self.cases,
            "mean_dice": self.mean_dice,
            "dice": dict(self.dice),
        }


def dice(
    prediction: LabelMap,
    truth: LabelMap,
    classes: Mapping[str, tuple[int, ...]],
    ignore: int | None = None,
    region: Mask | None = None,
) -> dict[str, float]:
    """Dice of each class of a label map, as `metrics.measure` has it: two empty masks agree.

    Args:
        prediction: Label values, (I, J, K).
        truth: Label values, (I, J, K).
        classes: Class name to the label values that make it up.
        ignore: Label value of the truth whose voxels are left out.
        region: (I, J, K), what counts; None: all.
    """
    known = np.ones(truth.shape, dtype=bool) if region is None else region
    known = known if ignore is None else known & (truth != ignore)
    found = {}
    for name, values in classes.items():
        p, t = np.isin(prediction, values) & known, np.isin(truth, values) & known
        found[name] = ratio(2 * int((p & t).sum()), int(p.sum()) + int(t.sum()))
    return found


def gathered(scores: Iterable[tuple[Key, Mapping[str, float]]]) -> tuple[Subset, ...]:
    """Gather cases by their channels, the fewest first.

    Args:
        scores: For each prediction its channels, and Dice by class.
    """
    by_key: dict[Key, list[Mapping[str, float]]] = {}
    for key, found in scores:
        by_key.setdefault(key, []).append(found)
    return tuple(
        Subset(
            tuple(name for name in channels if name not in missing),
            missing,
            len(found),
            {name: statistics.fmean(case[name] for case in found) for name in found[0]},
        )
        for (channels, missing), found in sorted(by_key.items(), key=lambda item: -len(item[0][1]))
    )


def observed(folder: Path, dataset: Dataset, cases: Sequence[CaseScores]) -> tuple[Subset, ...]:
    """Gather scored cases by the channels that their masks were predicted from.

    Those are what the record beside a mask says; without one, what the dataset says.

    Args:
        folder: Of the masks, `ID.nii.gz`, and their records, `ID.json`.
        dataset: Holds the cases.
        cases: Their scores.
    """
    known = {case.id: (dataset.channels, dataset.missing(case)) for case in dataset.cases}
    return gathered(
        (
            _recorded(folder / f"{case.case_id}.json") or known[case.case_id],
            {name: found.dice for name, found in case.measures.items()},
        )
        for case in cases
    )


def write(folder: Path, subsets: Sequence[Subset]) -> None:
    """Write `subsets.json` and `subsets.csv`, a row a subset and class.

    Raises:
        DataError: The folder cannot be written.
    """
    files.write_json(folder / "subsets.json", [subset.as_json() for subset in subsets])
    with (
        files.atomic(folder / "subsets.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["channels", "missing", "cases", "class", "dice"])
        for subset in subsets:
            names = [" + ".join(subset.channels), " + ".join(subset.missing)]
            for name, found in subset.dice.items():
                writer.writerow([*names, subset.cases, name, found])


def html(subsets: Sequence[Subset]) -> str:
    """One row a subset; nothing where there are fewer than two."""
    if len(subsets) < 2:
        return ""
    channels = channels_of([subset.as_json() for subset in subsets])
    classes = list(subsets[0].dice)
    rows = (
        row(
            [" + ".join(subset.channels)],
            [
                *("●" if name in subset.channels else "○" for name in channels),
                str(subset.cases),
                *(text(subset.dice[name], 3) for name in classes),
                text(subset.mean_dice, 3),
            ],
        )
        for subset in subsets
    )
    headings = [*map(escape, (*channels, "Cases", *classes)), "Mean Dice"]
    return table(["Channels"], headings, rows)


def channels_of(subsets: Sequence[Mapping[str, Any]]) -> list[str]:
    """All channels that subsets, as plain values, speak of; in the order of the fullest."""
    fullest_first = sorted(subsets, key=lambda subset: len(subset["missing"]))
    names = (n for found in fullest_first for n in (*found["channels"], *found["missing"]))
    return list(dict.fromkeys(names))


def _recorded(record: Path) -> Key | None:
    try:
        known = files.read_json(record)
        channels, missing = (tuple(known[key]) for key in ("channels", "missing"))
    except (DataError, KeyError, TypeError):
        return None
    is_sound = all(isinstance(name, str) for name in channels) and set(missing) <= set(channels)
    return (channels, missing) if is_sound else None

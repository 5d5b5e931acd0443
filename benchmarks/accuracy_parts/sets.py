"""The data sets: who trains, who is scored, and what each tool must know of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import CONFIGS

from medseg.config import load
from medseg.config.schema import Split
from medseg.volumes.cases import find
from medseg.volumes.nifti import read, read_label
from medseg.volumes.split import split

Case = dict[str, str]  # "id", "image", "label"


@dataclass(frozen=True)
class Fold:
    """A split.

    Args:
        train: Cases to learn from.
        validation: Cases that are scored.
    """

    train: tuple[Case, ...]
    validation: tuple[Case, ...]

    def store(self, path: Path) -> Path:
        """Write it as medseg reads it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = {name: [c["id"] for c in getattr(self, name)] for name in ("train", "validation")}
        path.write_text(json.dumps(ids))
        return path


@dataclass(frozen=True)
class DataSet:
    """A set of cases.

    Args:
        name: On the command line.
        config: medseg's shipped config.
        path: What `data.path` is.
        folds: The splits; each is a training of its own.
        seconds: Budgets of CPU seconds, by default.
        channel: As nnU-Net names it, which decides its normalisation.
        classes: Of the labels, background left out.
        monai: The MONAI recipe's patch and range.
    """

    name: str
    config: str
    path: Path
    folds: tuple[Fold, ...]
    seconds: tuple[int, ...]
    channel: str
    classes: tuple[str, ...]
    monai: dict[str, Any]


def hippocampus(data: Path) -> DataSet:
    """Task04 of the Medical Segmentation Decathlon: 182 cases train, 26 are scored."""
    folder = data.resolve() / "hippocampus"
    ids = json.loads((folder / "split.json").read_text())

    def cases(part: str) -> tuple[Case, ...]:
        return tuple(
            {
                "id": name,
                "image": f"{folder}/images/{name}.nii.gz",
                "label": f"{folder}/labels/{name}.nii.gz",
            }
            for name in ids[part]
        )

    return DataSet(
        "hippocampus", "hippocampus.yaml", folder, (Fold(cases("train"), cases("validation")),),
        (60, 150, 300, 900), "T1", ("anterior", "posterior"),
        {"patch": [32, 48, 32], "range": None},
    )  # fmt: skip


def sts_pet(data: Path) -> DataSet:
    """35 patients with soft-tissue sarcoma, PET, in five folds, the same for all seeds."""
    manifest = data.resolve() / "sts_sarcoma" / "manifest.csv"
    dataset = find(load(CONFIGS / "sts_pet.yaml", [f"data.path={manifest}"]).data)
    case: dict[str, Case] = {}
    for found in dataset.cases:
        (channel,) = found.channels
        assert channel is not None
        case[found.id] = {
            "id": found.id,
            "image": str(channel.path),
            "label": str(found.label),
        }
    folds = []
    for n in range(5):
        ids = split(dataset, Split(folds=5, fold=n), 0)
        parts = ([case[i] for i in part] for part in (ids.train, ids.validation))
        folds.append(Fold(*map(tuple, parts)))
    return DataSet(
        "sts_pet", "sts_pet.yaml", manifest, tuple(folds), (160, 600), "PET", ("tumour",),
        {"patch": [32, 32, 48], "range": [0, 10]},
    )  # fmt: skip


SETS = {"hippocampus": hippocampus, "sts_pet": sts_pet}


def thresholds(data: DataSet) -> dict[str, float]:
    """Mean Dice of what needs no learning, in PET: SUV over 2.5, and over a fifth of its maximum.

    Args:
        data: Of SUV; each case is scored in one fold.
    """
    found: dict[str, list[float]] = {"SUV > 2.5": [], "SUV > 20 % of the maximum": []}
    for fold in data.folds:
        for case in fold.validation:
            suv, truth = read(Path(case["image"])).data, read_label(Path(case["label"])).data > 0
            for name, limit in zip(found, (2.5, 0.2 * suv.max()), strict=True):
                mask = suv > limit
                found[name].append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    return {name: float(np.mean(values)) for name, values in found.items()}

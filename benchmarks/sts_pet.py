"""Claim: on whole-body PET, five folds, medseg is at least as good as a plain MONAI recipe.

    python benchmarks/sts_pet.py DATA [--seconds 160] [--seeds 1] [--no-peer]

DATA is the folder with manifest.csv (35 patients with soft-tissue sarcoma, doi
10.7937/K9/TCIA.2015.7GO2GSKS). Each fold trains for that many CPU seconds of one thread on 28
patients and predicts the other 7; the mean is over all 35. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import CONFIGS, machine, mean, medseg, peer

from medseg.config import load
from medseg.config.schema import Split
from medseg.volumes.cases import find
from medseg.volumes.dataset import Dataset
from medseg.volumes.nifti import read, read_label
from medseg.volumes.split import split


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    manifest = options.data.resolve() / "manifest.csv"
    dataset = find(load(CONFIGS / "sts_pet.yaml", [f"data.path={manifest}"]).data)
    print(f"{machine()}\n\n| recipe | CPU s a fold | Dice | of each fold |")
    print("|---|---|---|---|", flush=True)
    thresholds(dataset)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            ways = {"medseg": ours} if options.no_peer else {"medseg": ours, "MONAI UNet": theirs}
            for name, way in ways.items():
                results = []
                for fold in range(5):
                    output = Path(folder) / f"{name}-{seed}-{fold}"
                    found = way(output, manifest, dataset, fold, seed, options.seconds)
                    print(name, seed, fold, found, file=sys.stderr, flush=True)
                    results.append(found)
                each = " ".join(f"{result['dice']:.3f}" for result in results)
                print(
                    f"| {name}, seed {seed} | {options.seconds} "
                    f"| {mean(results, 'dice')} | {each} |",
                    flush=True,
                )


def ours(
    output: Path, manifest: Path, dataset: Dataset, fold: int, seed: int, seconds: int
) -> dict[str, Any]:
    """One fold of medseg. The split is of seed 0 always, so that all seeds see the same folds."""
    file = stored_split(output, dataset, fold)
    return medseg(
        "sts_pet.yaml", output / "run", f"data.path={manifest}", f"data.split.file={file}",
        f"seed={seed}", f"train.budget={{cpu_seconds: {seconds}}}",
    )  # fmt: skip


def theirs(
    output: Path, manifest: Path, dataset: Dataset, fold: int, seed: int, seconds: int
) -> dict[str, Any]:
    """One fold of the peer."""
    ids = json.loads(stored_split(output, dataset, fold).read_text())
    case = {
        c.id: {"id": c.id, "image": str(c.channels[0].path), "label": str(c.label)}
        for c in dataset.cases
    }
    job = {
        "train": [case[i] for i in ids["train"]],
        "validation": [case[i] for i in ids["validation"]],
        "classes": 2, "patch": [32, 32, 48], "range": [0, 10], "seconds": seconds, "seed": seed,
    }  # fmt: skip
    return peer("sts_pet.yaml", output, job, f"data.path={manifest}")


def stored_split(output: Path, dataset: Dataset, fold: int) -> Path:
    """Write a fold as a split file."""
    ids = split(dataset, Split(folds=5, fold=fold), 0)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "split.json"
    path.write_text(json.dumps({"train": ids.train, "validation": ids.validation}))
    return path


def thresholds(dataset: Dataset) -> None:
    """What no learning reaches: SUV over 2.5, and over a fifth of the maximum."""
    found: dict[str, list[float]] = {"SUV > 2.5": [], "SUV > 20 % of the maximum": []}
    for case in dataset.cases:
        suv, truth = read(case.channels[0].path).data, read_label(case.label).data > 0
        for name, limit in zip(found, (2.5, 0.2 * suv.max()), strict=True):
            mask = suv > limit
            found[name].append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    for name, values in found.items():
        print(f"| {name} | 0 | {np.mean(values):.3f} | |", flush=True)


if __name__ == "__main__":
    main()

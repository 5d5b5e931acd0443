"""The archive: real volumes under new names, with their truth apart."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Archive:
    """Volumes of one kind.

    Args:
        name: In tables.
        run: The model that predicts them.
        inputs: What `medseg predict -i` is given.
        images: The volumes, by id.
        truth: Their labels, by id.
        peer: What the peers need to know of the model's preprocessing.
    """

    name: str
    run: Path
    inputs: Path
    images: dict[str, Path]
    truth: dict[str, Path]
    peer: dict[str, Any]


def hippocampus(data: Path, run: Path, folder: Path, count: int) -> Archive:
    """Validation cases of the hippocampus, repeated."""
    ids = json.loads((data / "split.json").read_text())["validation"]
    pairs = [(data / f"images/{n}.nii.gz", data / f"labels/{n}.nii.gz") for n in ids]
    images, truth = _copied(pairs, folder, "hippocampus", count)
    peer = {"spacing": None, "range": None}
    return Archive("hippocampus", run, folder, images, truth, peer)


def sarcoma(data: Path, run: Path, folder: Path, count: int) -> Archive:
    """PET of sarcomas, repeated; resampled to 4 mm."""
    with (data / "manifest.csv").open(newline="") as lines:
        pairs = [(data / row["pet"], data / row["pet_label"]) for row in csv.DictReader(lines)]
    images, truth = _copied(pairs, folder, "pet", count)
    inputs = folder / "inputs.csv"
    rows = [f"{name},{path}" for name, path in images.items()]
    inputs.write_text("\n".join(["case,pet", *rows]) + "\n")
    peer = {"spacing": [4.0, 4.0, 4.0], "range": [0.0, 10.0]}
    return Archive("PET", run, inputs, images, truth, peer)


def _copied(
    pairs: Sequence[Pair], folder: Path, name: str, count: int
) -> tuple[dict[str, Path], dict[str, Path]]:
    images, truth = {}, {}
    (folder / "images").mkdir(parents=True)
    for n, (image, label) in enumerate(islice(cycle(pairs), count)):
        case = f"{name}_{n:03d}"
        images[case], truth[case] = folder / f"images/{case}.nii.gz", label
        shutil.copyfile(image, images[case])
    return images, truth

"""Claim: from two brains and a minute of one CPU core, a segmentation of gliomas.

    python benchmarks/brats2015.py DATA [--seeds 0 1 2] [--seconds 60]

DATA is the folder of the four example cases that DeepMedic ships (BraTS 2015, 2013 part; FLAIR and
T1 with contrast): pat0005 and pat0006 train, pat0003 and pat0004 are scored. CPU seconds are those
of the training process, start-up and preprocessing included. The peer is MONAI's recipe of
`monai_unet.py` on the same cases. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import CONFIGS, machine, medseg, peer

CONFIG = "brats2015_deepmedic.yaml"
REGIONS = ("whole", "core", "enhancing")
CHANNELS = ("Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    data, seconds = options.data.resolve(), options.seconds
    where = f"data.path={data}"
    found: dict[str, list[dict[str, Any]]] = {"medseg": [], "MONAI UNet": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:  # interleaved: a slower hour slows both
            output = Path(folder) / f"medseg-{seed}"
            budget = f"train.budget={{cpu_seconds: {seconds}}}"
            found["medseg"].append(
                told(medseg(CONFIG, output, where, f"seed={seed}", budget), output)
            )
            if not options.no_peer:
                output = Path(folder) / f"monai-{seed}"
                result = peer(CONFIG, output, job(data, seconds, seed), where)
                found["MONAI UNet"].append(told(result, output, "scores"))
    print(f"{machine()}\n\n| recipe | CPU s | seed | {' | '.join(REGIONS)} | steps |")
    print("|---|---|---|---|---|---|---|")
    for name, results in found.items():
        for seed, result in zip(options.seeds, results, strict=False):
            show(name, seconds, str(seed), result)
        if len(results) > 1:
            mean = {key: statistics.fmean(r[key] for r in results) for key in (*REGIONS, "steps")}
            show(name, seconds, "mean", mean)


def told(result: dict[str, Any], output: Path, scores: str = "validation") -> dict[str, Any]:
    """A run's result with the mean Dice of each region."""
    classes = json.loads((output / scores / "summary.json").read_text())["classes"]
    result = result | {name: classes[name]["dice"]["mean"] for name in REGIONS}
    print(output.name, result, file=sys.stderr, flush=True)
    return result


def show(name: str, seconds: int, seed: str, result: dict[str, Any]) -> None:
    """Print a row."""
    dice = " | ".join(f"{result[region]:.3f}" for region in REGIONS)
    print(f"| {name} | {seconds} | {seed} | {dice} | {result['steps']:.0f} |", flush=True)


def job(data: Path, seconds: int, seed: int) -> dict[str, Any]:
    """The peer's work."""
    split = json.loads((CONFIGS / "brats2015_split.json").read_text())
    case = {
        name: {
            "id": name,
            "image": [f"{data}/{name}/{channel}.nii.gz" for channel in CHANNELS],
            "label": f"{data}/{name}/OTMultiClass.nii.gz",
        }
        for name in (*split["train"], *split["validation"])
    }
    return {
        "train": [case[name] for name in split["train"]],
        "validation": [case[name] for name in split["validation"]],
        "classes": 5, "channels": 2, "crop": True, "patch": [64, 64, 64], "range": None,
        "seconds": seconds, "seed": seed,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Claim: medseg reaches a better Dice than a plain MONAI recipe in the same CPU seconds.

    python benchmarks/hippocampus.py DATA [--seeds 0 1 2] [--seconds 100 200 300]

DATA is the folder of the Medical Segmentation Decathlon's Task04 with images/, labels/ and
split.json: 182 cases train, 26 validate. CPU seconds are those of the training process, start-up
and preprocessing included. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import machine, mean, medseg, peer


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=int, nargs="*", default=[100, 200, 300])
    parser.add_argument("--peer-seconds", type=int, nargs="*", default=[100])
    options = parser.parse_args()
    data = options.data.resolve()
    where = [f"data.path={data}", f"data.split.file={data / 'split.json'}"]
    results: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:  # interleaved: a slower hour slows both
            for seconds in options.peer_seconds:
                output = Path(folder) / f"monai-{seconds}-{seed}"
                found = peer("hippocampus.yaml", output, job(data, seconds, seed), *where)
                results["MONAI UNet", seconds].append(found)
                print("MONAI UNet", seconds, seed, found, file=sys.stderr, flush=True)
            for seconds in options.seconds:
                output = Path(folder) / f"medseg-{seconds}-{seed}"
                budget = f"train.budget={{cpu_seconds: {seconds}}}"
                found = medseg("hippocampus.yaml", output, *where, f"seed={seed}", budget)
                results["medseg", seconds].append(found)
                print("medseg", seconds, seed, found, file=sys.stderr, flush=True)
    print(f"{machine()}\n\n| recipe | CPU s | seeds | Dice | HD95 mm | worst | steps | outside |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, seconds), found_all in results.items():
        show(name, seconds, found_all)


def job(data: Path, seconds: int, seed: int) -> dict[str, Any]:
    """The peer's work."""
    split = json.loads((data / "split.json").read_text())
    case = {
        name: {
            "id": name,
            "image": f"{data}/images/{name}.nii.gz",
            "label": f"{data}/labels/{name}.nii.gz",
        }
        for name in (*split["train"], *split["validation"])
    }
    return {
        "train": [case[name] for name in split["train"]],
        "validation": [case[name] for name in split["validation"]],
        "classes": 3, "patch": [32, 48, 32], "range": None, "seconds": seconds, "seed": seed,
    }  # fmt: skip


def show(name: str, seconds: int, results: list[dict[str, Any]]) -> None:
    """Print a row: means over the seeds, with their range."""
    outside = mean(results, "outside") if "outside" in results[0] else "-"
    print(
        f"| {name} | {seconds} | {len(results)} | {mean(results, 'dice')} "
        f"| {mean(results, 'hd95')} | {mean(results, 'worst')} "
        f"| {mean(results, 'steps')} | {outside} |",
        flush=True,
    )


if __name__ == "__main__":
    main()

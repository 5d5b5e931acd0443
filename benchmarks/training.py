"""Claim: medseg trains on 1.5 times the samples of nnU-Net and 1.2 times MONAI's in the same time.

    python benchmarks/training.py --data DATA [--only hippocampus brats2015] [--seconds 40]
        [--repeats 3] [--methods TEXT] [--peer-python PYTHON]

DATA has hippocampus/ (Medical Segmentation Decathlon, Task04) and brats2015/ (the four cases that
DeepMedic ships). Same network (the shipped config's, built and initialised by medseg), same patch,
same batch, same preprocessed volumes, same augmentation list (rotation with scaling, flips, noise,
brightness, contrast, each as the tool offers it); one thread:

- medseg: `medseg train`, with its records and all that its loop does;
- nnU-Net 2.8.1: its trainer's own step, data loader, transforms (in the training process, so that
  their CPU seconds count), loss and optimiser;
- MONAI: CacheDataset, dictionary transforms, ThreadDataLoader, DiceCELoss, Adam;
- the floor: medseg's step on the same tensors again and again: nothing is loaded or augmented.

nnU-Net and MONAI train in fp32 on a CPU as they come; their lines with bf16 autocast show what is
left beside medseg's when the network runs in the same precision. Samples per CPU second of the
process once it is under way (all its threads count; start-up does not), each in a fresh process,
methods taking turns, medians of the repeats. All run in one environment with nnU-Net, made from
PyPI below --work unless --peer-python names one. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import HERE, machine, peer_python
from inference_parts.process import environment
from training_parts.methods import FLOOR, MEDSEG, METHODS, MONAI, NNUNET, SETS, Method

WORKER = HERE / "training_parts" / "worker.py"
BARS = ((NNUNET, 1.5), (MONAI, 1.2), (FLOOR, 0.95))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seconds", type=float, default=40, help="CPU seconds of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[""], metavar="TEXT",
                        help="those whose name has this in it")  # fmt: skip
    parser.add_argument("--peer-python", type=Path, help="a Python that has nnunetv2 and medseg")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "training_benchmark")
    options = parser.parse_args()
    methods = [m for m in METHODS if any(text in m.name for text in options.methods)]
    options.work.mkdir(parents=True, exist_ok=True)
    python = options.peer_python or peer_python(options.work / "peers")
    print(f"{machine()}\n")
    for name in options.only:
        job = {
            "data": name, "folder": str(options.data.resolve()), "seconds": options.seconds,
            "prepared": str((options.work / name).resolve()),
        }  # fmt: skip
        show(name, measure(python, job, methods, options.repeats))


def measure(
    python: Path, job: dict[str, Any], methods: Sequence[Method], repeats: int
) -> dict[str, list[float]]:
    """Samples per CPU second of each method, in every repeat."""
    spawn(python, {**job, "tool": "prepare", "precision": "fp32"})
    rates: dict[str, list[float]] = {method.name: [] for method in methods}
    for n in range(repeats):  # interleaved: a slower hour slows all
        for method in methods:
            told = spawn(python, {**job, "tool": method.tool, "precision": method.precision})
            rates[method.name].append(told["rate"])
            print(job["data"], n, method.name, told, file=sys.stderr, flush=True)
    return rates


def spawn(python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run the worker; return the JSON of its last line.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    done = subprocess.run(
        [str(python), str(WORKER), json.dumps(job)],
        env=environment(1) | {"PYTHONPATH": _paths()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _paths() -> str:
    """Of this working tree: the environment may have another medseg."""
    return ":".join(map(str, (HERE, HERE.parent, HERE.parent / "plugins")))


def show(name: str, rates: dict[str, list[float]]) -> None:
    """Print the table of a data set, and the ratios that are claimed."""
    mine = {key: statistics.median(found) for key, found in rates.items()}
    print(f"| {name} | samples per CPU s (range) | medseg / it | medseg, fp32 / it |")
    print("|---|---|---|---|")
    for key, found in rates.items():
        ratios = [
            f"{mine[ours] / mine[key]:.2f}" if ours in mine else "-"
            for ours in (MEDSEG.name, "medseg, fp32")
        ]
        spread = f"{mine[key]:.2f} ({min(found):.2f}-{max(found):.2f})"
        print(f"| {key} | {spread} | {' | '.join(ratios)} |")
    for peer, bar in BARS:
        if MEDSEG.name in mine and peer.name in mine:
            ratio = mine[MEDSEG.name] / mine[peer.name]
            print(f"\nmedseg / {peer.name}: {ratio:.2f} (at least {bar})", end="")
    print("\n", flush=True)


if __name__ == "__main__":
    main()

"""Claim: medseg reaches nnU-Net's full-training Dice on hippocampus in five minutes of one thread.

    python benchmarks/accuracy.py --data DATA [--seeds 0 1 2] [--peer-python PYTHON]
    python benchmarks/accuracy.py --data DATA --only sts_pet --seconds 160 --peers none
    python benchmarks/accuracy.py --data DATA --ablations --only hippocampus --seconds 150

DATA has hippocampus/ (Medical Segmentation Decathlon, Task04: 182 cases train, 26 are scored) and
sts_sarcoma/ (PET of 35 patients, doi 10.7937/K9/TCIA.2015.7GO2GSKS: five folds, each trained on 28
and scored on the other 7). Published for nnU-Net's full training on Task04, hours of a GPU: .8855
(.895 and .876), on 130 other cases of the set.

medseg trains its shipped configs, nnU-Net 2.8.1 its own pipeline (accuracy_parts/nnunet.py says
what is as it comes and what is not), MONAI a plain recipe (monai_unet.py). Each run is a process
with one thread. What counts are the CPU seconds of the process that trains, from its start: of
medseg and MONAI with their preprocessing, of nnU-Net without its planning and preprocessing, in
its favour. Prediction does not count. The last weights predict, so that nothing is chosen on the
scored cases, and `medseg evaluate` scores all masks.

The peers live in an environment of their own, made from PyPI below --work unless --peer-python
names one. Every result is a line of WORK/results.jsonl as soon as it is there: a benchmark that was
killed goes on where it was; --tables only prints. Runs take turns, so that a slower hour slows all.
The key of a run of medseg has a hash of its config; whoever changes code takes another --work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from accuracy_parts import runs as jobs
from accuracy_parts import tables
from accuracy_parts.runs import Run
from accuracy_parts.sets import SETS, DataSet, thresholds
from common import HERE, machine, peer_python
from encoder_parts.results import Results

NAMES = {
    "medseg": "medseg, `configs/{}`",
    "monai": "MONAI recipe",
    "nnunet": "nnU-Net 2.8.1, 3d_fullres",
}


def main() -> None:
    """Run what is missing, and print the tables."""
    options = _options()
    sets = [SETS[name](options.data) for name in options.only]
    plans = {data.name: _plan(data, options) for data in sets}
    kept = Results(options.work / "results.jsonl")
    if not options.tables:
        _work_off(_interleaved([runs for runs, _ in plans.values()]), kept, options)
    found = {result["key"]: result for result in kept.all}
    print(f"{machine()}; {_commit()}\n")
    for data in sets:
        runs, left_out = plans[data.name]
        print(tables.head(data.name))
        if data.name == "sts_pet" and not options.ablations:
            for name, dice in thresholds(data).items():
                print(f"| {name} | 0 | - | {dice:.3f} |" + " - |" * 5)
        for (tool, seconds, change), seeds in tables.rows(runs, found).items():
            name = change or NAMES[tool].format(data.config)
            print(tables.line(name, seconds, seeds))
        for name, why in left_out.items():
            print(f"\n{name}: {why}")
        print(flush=True)


def _options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=int, nargs="+",
                        help="CPU seconds of a training; hippocampus: 60 150 300 900, sts_pet: "
                        "160 600, ablations: 150")  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=("none", "monai", "nnunet"),
                        default=["monai", "nnunet"])  # fmt: skip
    parser.add_argument("--peers-only", action="store_true", help="without medseg")
    parser.add_argument("--peer-python", type=Path, help="a Python that has nnunetv2 and monai")
    parser.add_argument("--ablations", nargs="*", metavar="TEXT",
                        help="instead: medseg with one ingredient changed after the other "
                        "(accuracy_parts/ablations.py); those with TEXT in their name")  # fmt: skip
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "accuracy")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    options.ablations = [""] if options.ablations == [] else options.ablations
    if "none" in options.peers or options.ablations:
        options.peers = []
    return options


def _plan(data: DataSet, options: Namespace) -> tuple[list[Run], dict[str, str]]:
    """The runs of a data set, and the ablations that are none."""
    if options.ablations:
        (seconds,) = options.seconds or [150]
        return jobs.ablated(data, seconds, options.seeds, options.ablations)
    tools = [*([] if options.peers_only else ["medseg"]), *options.peers]
    runs = [
        Run(data, tool, seconds, seed, fold)
        for seed in options.seeds
        for seconds in options.seconds or data.seconds
        for fold in range(len(data.folds))
        for tool in tools
    ]
    return runs, {}


def _interleaved(plans: list[list[Run]]) -> list[Run]:
    """The runs of all sets, seed by seed."""
    return sorted((run for runs in plans for run in runs), key=lambda run: run.seed)


def _work_off(runs: list[Run], kept: Results, options: Namespace) -> None:
    """Do what has no result yet."""
    todo = [run for run in runs if run.key not in kept]
    options.work.mkdir(parents=True, exist_ok=True)
    python = options.peer_python
    if python is None and any(run.tool != "medseg" for run in todo):
        python = peer_python(options.work / "peers")
    print(f"{len(todo)} of {len(runs)} runs to do", file=sys.stderr, flush=True)
    for n, run in enumerate(todo):
        result = jobs.execute(run, options.work, python) | {"commit": _commit()}
        kept.add(result)
        told = tables.of_seed([result])
        print(
            f"{n + 1}/{len(todo)} {run.key}  Dice {told['dice']:.3f}  HD95 {told['hd95']:.2f}  "
            f"{told['steps']:.0f} steps", file=sys.stderr, flush=True,
        )  # fmt: skip


def _commit() -> str:
    """Of the working tree that is measured."""
    told = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"commit {told.stdout.strip() or 'unknown'}"


if __name__ == "__main__":
    main()

"""The dense CRF against pydensecrf2, MONAI's and brute force, in the same run on the same input.

    python benchmarks/crf.py --data $MEDSEG_DATA/brats2015
    python benchmarks/crf.py --data $MEDSEG_DATA/brats2015 --quick --output /tmp/crf
    python benchmarks/crf.py --data $MEDSEG_DATA/brats2015 --parts others --device cuda

writes a page, a picture and all figures into docs/crf/. Preparation counts on all sides: from
volumes in memory to marginals in a volume. Each measurement has its own process, and methods take
turns, so that a busy machine hits all of them. The peer lives in an environment of its own, made in
--cache (that takes a C++ compiler) unless --peer-python names one. --parts measures some parts anew
and keeps the others. --quick is for a look: one setting, small crops; its figures are no
measurement, so it needs another --output.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from crf_parts import data, jobs, page
from crf_parts.jobs import Bench, Job

HERE = Path(__file__).parent
Classes = tuple[int, ...]
Row = dict[str, Any]
SIDE, QUICK_SIDE = 35, 20  # voxels; all pairs of 35^3 are what brute force takes in minutes


def main() -> None:
    """Measure, then write; what is not measured now is taken from the results so far."""
    options = _options()
    case = data.read(options.data / options.case, options.probabilities, options.seed)
    classes = tuple(case.volumes.probabilities)
    results: dict[str, Any] = {"speed": [], "accuracy": [], "others": []}
    file = options.output / page.RESULTS
    if file.exists() and set(options.parts) != set(PARTS):
        results |= json.loads(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        pythons = {"monai_crf.py": options.monai_python}
        if {"speed", "accuracy"} & set(options.parts):
            pythons["peer.py"] = options.peer_python or jobs.peer_python(options.cache)
        bench = Bench(Path(scratch), pythons)
        about = _about(case, bench, options)
        if any(results.get(key, about[key]) != about[key] for key in ("case", "source", "shape")):
            sys.exit(f"{file} is of other input: take another --output, or measure all parts")
        results = results | about if "speed" in options.parts else about | results
        for part in options.parts:
            results[part] = PARTS[part](bench, classes, options, results[part])
    page.write(results, options.output)
    print("\n".join(page.tables(results)))


def _about(case: data.Case, bench: Bench, options: Namespace) -> dict[str, Any]:
    """Write the inputs; what is measured on what."""
    side = QUICK_SIDE if options.quick else SIDE
    voxels = case.save(bench.inputs, side, options.quick)
    peer = bench.pythons.get("peer.py")
    return {
        "case": options.case,
        "source": "from a network" if options.probabilities else "made from the truth",
        "shape": list(np.load(bench.inputs / "full" / "brain.npy").shape),
        "brain_voxels": voxels["full"],
        "border": {"centre": case.border, "side": side, "brain_voxels": voxels["border"]},
        "repeats": options.repeats,
        "machine": _machine("cpu"),
        "versions": {name: version(name) for name in ("medseg", "numba", "numpy", "torch")},
        "peer": jobs.versions(peer) if peer else [],
        "compile_s": bench.compile_seconds(2),
    }


def _options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of BraTS cases")
    parser.add_argument("--case", default="brats_2013_pat0005_1", help="folder within --data")
    parser.add_argument("--probabilities", type=Path, help="(I, J, K, C); else made from the truth")
    parser.add_argument("--seed", type=int, default=0, help="of what is made from the truth")
    parser.add_argument("--repeats", type=int, default=3, help="medians are told")
    parser.add_argument("--device", default="cpu", help="of torch and MONAI: cpu, cuda")
    parser.add_argument("--peer-python", type=Path, help="a Python that has pydensecrf2")
    parser.add_argument("--monai-python", type=Path, default=Path(sys.executable),
                        help="a Python that has MONAI with its extension")  # fmt: skip
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "crf_benchmark",
                        help="for the peer's environment and what brute force found")  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="one setting, small crops, once")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "crf")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
        if options.output == parser.get_default("output"):
            parser.error("--quick needs --output: its figures are no measurement")
    return options


def _speed(bench: Bench, classes: Classes, options: Namespace, _: list[Row]) -> list[Row]:
    """Times and memory of all repeats, methods taking turns."""
    found = {job: [] for job in jobs.speed(classes, options.quick)}
    for n in range(options.repeats):
        for job, runs in found.items():
            runs.append(bench.run(job))
            _tell(f"{n + 1}/{options.repeats}", job, f"cpu {runs[-1]['cpu_s']:.2f} s")
    return [job.told(runs=runs) for job, runs in found.items()]


def _accuracy(bench: Bench, classes: Classes, options: Namespace, _: list[Row]) -> list[Row]:
    """Differences from brute force at the border of the tumour."""
    found = []
    brain = np.load(bench.inputs / "border" / "brain.npy")
    for job in jobs.accuracy(classes, options.quick):
        truth = np.load(bench.exact(job, options.cache))[:, brain]
        marginals = bench.inputs / "marginals.npy"
        bench.run(job, marginals)
        found.append(job.told(**difference(np.load(marginals)[:, brain], truth)))
        _tell("border", job, f"mean difference {found[-1]['mean']:.1e}")
    return found


def difference(marginals: data.Array, truth: data.Array) -> dict[str, float]:
    """Of (C, N) marginals from the true ones; how many of N labels are others."""
    moved = np.abs(marginals.astype(np.float64) - truth)
    return {
        "mean": float(moved.mean()),
        "max": float(moved.max()),
        "labels": int((marginals.argmax(0) != truth.argmax(0)).sum()),
    }


def _others(bench: Bench, _: Classes, options: Namespace, before: list[Row]) -> list[Row]:
    """Torch and MONAI beside numba, once; what cannot be measured says why.

    Rows of other machines stay, so that one with a GPU can add its own.
    """
    here = _machine(options.device)
    found = [row for row in before if row["machine"] != here]
    devices = dict.fromkeys(("cpu", options.device))
    ways = [way(device) for way in (jobs.torch_method, jobs.monai) for device in devices]
    for method in (jobs.PAIR, *ways):
        job = Job(method, "full", 2, "sd 15")
        try:
            run = bench.run(job)
            found.append(job.told(machine=here, run=run))
            _tell("once", job, f"wall {run['wall_s']:.2f} s")
        except jobs.JobError as error:
            found.append(job.told(machine=here, skipped=str(error).splitlines()[-1]))
            _tell("skipped", job, found[-1]["skipped"])
    return found


PARTS = {"speed": _speed, "accuracy": _accuracy, "others": _others}


def _machine(device: str) -> str:
    told = machine().partition(", one thread")[0]
    has_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return f"{told}, {torch.cuda.get_device_name(device)}" if has_gpu else told


def _tell(about: str, job: Job, what: str) -> None:
    print(f"{about}  {json.dumps(job.told())}  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

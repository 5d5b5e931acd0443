"""One volume: medseg's predictor beside MONAI's and nnU-Net's, with the same network and weights.

    python -m venv peers && peers/bin/pip install -c constraints.txt -e . SimpleITK nnunetv2==2.8.1
    peers/bin/python benchmarks/inference.py --data DATA --train RUN
    peers/bin/python benchmarks/inference.py --run RUN [--threads 1 2] [--repeats 3] [--only TEXT]

DATA is the folder of the four example cases that DeepMedic ships (BraTS 2015). The first call
trains the network once, in ten minutes of one core: the residual encoder U-Net of widths 16 to 256
on windows of 96^3, on pat0005 and pat0006. The second predicts pat0003 (240x240x155 voxels, FLAIR
and T1 with contrast) and prints a markdown table.

Each method runs in a fresh process, methods taking turns, from the prepared volume in memory to
labels on the input's grid; reading and preprocessing do not count, for they are the same. "Same
windows" are those of MONAI's inferer: 96^3, overlap .5, Gaussian weights, no mirroring. nnU-Net
spaces as many windows evenly. The peers run as they come (fp32; nnU-Net sums in half precision);
their lines with the brain's box show what their users can get with a few lines of their own, that
with bf16 also what this network's layers, which keep torch's channels-last layout, do for others.
Peak memory is above that with the volume and the network loaded. Ratios are of CPU seconds with one
thread, of seconds on the clock with more. "Equal labels" are the share of the brain's voxels with
the label that medseg gives in fp32 with the same windows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import CONFIGS, machine, run
from inference_parts.methods import METHODS, MONAI, NNUNET, Method
from inference_parts.process import spawn

from medseg.inference.predictor import Predictor
from medseg.volumes import cases
from medseg.volumes.load import LoadedCase

WORKER = Path(__file__).parent / "inference_parts" / "worker.py"
CASE = "brats_2013_pat0003_1"
SETTINGS = (
    "data.mask='{id}/brainmask.nii.gz'", "preprocess.mask=file", "preprocess.crop=none",
    "model.encoder.widths=[16,32,64,128,256]", "model.encoder.strides=null",
    "train.patch=[96,96,96]", "train.batch=1", "inference.flip=[]", "inference.roi=false",
    "inference.prior_correction=0",
)  # fmt: skip

Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Train, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run folder that --train made")
    parser.add_argument("--train", type=Path, metavar="RUN", help="make a run folder")
    parser.add_argument("--data", type=Path, help="the folder of the cases, to train")
    parser.add_argument("--seconds", type=int, default=600, help="CPU seconds to train")
    parser.add_argument("--case", default=CASE)
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="methods whose name has this in it")
    parser.add_argument("--no-difference", action="store_true", help="without MONAI's logits")
    options = parser.parse_args()
    if options.train:
        train(options.data.resolve(), options.train, options.seconds)
        return
    methods = [m for m in METHODS if any(text in m.name for text in options.only)]
    predictor = Predictor.load(options.run, device="cpu")
    found = cases.find(predictor.config.data).only([options.case])
    case = predictor.load_case(found.cases[0])
    print(f"{machine()}; {options.case}, {len(case.image)} x {case.reference.shape}\n")
    job = {"run": str(options.run.resolve()), "case": options.case}
    for threads in options.threads:
        results, labels = measure(job, methods, threads, options.repeats)
        table(threads, methods, results, labels, case, predictor.labels.regions)
    if not options.no_difference:
        told = spawn(WORKER, {**job, "method": "difference"})
        print(
            f"medseg fp32 beside MONAI, same windows: logits differ by {told['logits']:.1e} at "
            f"most (the largest is {told['largest_logit']:.0f}), class probabilities by "
            f"{told['shares']:.1e}, labels in {told['labels']} voxels"
        )


def train(data: Path, output: Path, seconds: int) -> None:
    """Make the run folder."""
    budget = f"train.budget={{cpu_seconds: {seconds}}}"
    run(
        "-m", "medseg", "train", "-c", CONFIGS / "brats2015_deepmedic.yaml", "-o", output,
        f"data.path={data}", "train.threads=1", budget, *SETTINGS,
    )  # fmt: skip


def measure(
    job: dict[str, Any], methods: Sequence[Method], threads: int, repeats: int
) -> tuple[Results, dict[str, Any]]:
    """Costs of each method, and its labels."""
    results: Results = {method.name: [] for method in methods}
    labels = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for n, method in enumerate(methods):  # interleaved: a slower hour slows all
                path = Path(folder) / f"{n}.npy"
                told = spawn(WORKER, {**job, "method": method.name, "labels": str(path)}, threads)
                results[method.name].append(told)
                print(threads, method.name, told, file=sys.stderr, flush=True)
        for n, method in enumerate(methods):
            labels[method.name] = np.load(Path(folder) / f"{n}.npy")
    return results, labels


def table(
    threads: int,
    methods: Sequence[Method],
    results: Results,
    labels: dict[str, Any],
    case: LoadedCase,
    regions: Sequence[Sequence[int]],
) -> None:
    """Print a table of one number of threads."""
    clock = "cpu_s" if threads == 1 else "wall_s"

    def median(name: str, key: str) -> float:
        return statistics.median(told[key] for told in results[name])

    def times(peer: Method, name: str) -> str:
        if peer.name not in results:
            return "-"
        return f"{median(peer.name, clock) / median(name, clock):.1f}"

    s = "" if threads == 1 else "s"
    print(
        f"| {threads} thread{s} | windows | CPU s | wall s | MONAI / it | nnU-Net / it | "
        "peak, MB | equal labels, % | Dice whole | core | enhancing |"
    )
    print("|---" * 11 + "|")
    for method in methods:
        name = method.name
        costs = [f"{median(name, 'cpu_s'):.1f}", f"{median(name, 'wall_s'):.1f}"]
        ratios = [times(peer, name) for peer in (MONAI, NNUNET)]
        equal = agreement(labels[name], labels.get(method.fp32), case)
        scores = [f"{dice(labels[name], case, region):.3f}" for region in regions]
        windows, peak = f"{median(name, 'windows'):.0f}", f"{median(name, 'peak_mb'):.0f}"
        print("| " + " | ".join([name, windows, *costs, *ratios, peak, equal, *scores]) + " |")
    print(flush=True)


def agreement(labels: Any, reference: Any, case: LoadedCase) -> str:
    """The share of the brain's voxels with the same label, in percent."""
    if reference is None:
        return "-"
    assert case.mask is not None
    return f"{100 * float((labels == reference)[case.mask].mean()):.3f}"


def dice(labels: Any, case: LoadedCase, region: Sequence[int]) -> float:
    """Overlap of a region of classes with the truth."""
    found, truth = np.isin(labels, region), np.isin(case.label, region)
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


if __name__ == "__main__":
    main()

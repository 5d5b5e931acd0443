"""An archive of volumes: `medseg predict` beside nnU-Net's predictor and MONAI's loop.

    peers/bin/python benchmarks/batch.py --data DATA --hippocampus RUN --pet RUN
        [--cases 30] [--cores 1 2] [--repeats 1] [--only TEXT]

The environment is that of `inference.py`. DATA has hippocampus/ (Medical Segmentation Decathlon,
Task04) and sts_sarcoma/ (PET, TCIA); the runs are `medseg train -c configs/hippocampus.yaml` and
`configs/sts_pet.yaml`, 100 CPU seconds each. The archive is 30 volumes of each, copied under new
names: about 35x50x36 voxels of 1 mm, and about 40x40x65 voxels of 3.9 to 5.5 mm, resampled to
4 mm and back.

All three predict with the same network and weights, windows of the same size, overlap .5, Gaussian
weights and no mirroring, on CPU cores that they are pinned to. What differs is what each does by
itself: medseg computes in bf16 unless told otherwise, and writes a record with hashes beside each
mask; nnU-Net reads and writes in processes of its own, resamples images with splines of third
order, crops to what is not zero and sums in half precision; MONAI's loop resamples by trilinear
interpolation, loads in the number of worker processes that the line says (0: none) and runs four
windows a pass. A volume smaller than a window is padded with its edge by medseg and MONAI, with 0
by nnU-Net, which is an uptake of 5 in the PET, where its Dice is therefore lower.

Cases per minute are of the call that predicts: the tools' own processes and medseg's loading of the
model count, imports and the peers' loading of it do not; "all, s" is from start to end of the
program. Memory is the largest sum over the processes (what they share counts once), looked at ten
times a second. The network's share is of the call's time. Dice is over all cases and classes, to
show that all do the same work. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from batch_parts import archive, tree
from batch_parts.archive import Archive
from common import machine

HERE = Path(__file__).parent / "batch_parts"


@dataclass(frozen=True)
class Tool:
    """One that predicts an archive.

    Args:
        name: In the table.
        script: Its driver.
        overrides: medseg's settings.
        workers: Processes of the peers for reading (nnU-Net: and as many for writing).
    """

    name: str
    script: str
    overrides: tuple[str, ...] = ()
    workers: int = 0


SAME = ("inference.flip=[]", "inference.overlap=0.5", "inference.mode=window")
TOOLS = (
    Tool("medseg", "ours.py", SAME),
    Tool("medseg, 4 windows a pass", "ours.py", (*SAME, "inference.batch=4")),
    Tool("medseg, PET in one pass (its config)", "ours.py", SAME[:2]),
    Tool("medseg, fp32", "ours.py", (*SAME, "inference.precision=fp32")),
    Tool(
        "medseg, fp32, 4 windows a pass",
        "ours.py",
        (*SAME, "inference.precision=fp32", "inference.batch=4"),
    ),
    Tool("nnU-Net, 1 + 1 workers", "nnunet.py", workers=1),
    Tool("nnU-Net, 3 + 3 workers (its default)", "nnunet.py", workers=3),
    Tool("MONAI's loop, 0 workers", "monai_loop.py", workers=0),
    Tool("MONAI's loop, 2 workers", "monai_loop.py", workers=2),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hippocampus", type=Path, metavar="RUN")
    parser.add_argument("--pet", type=Path, metavar="RUN")
    parser.add_argument("--cases", type=int, default=30, help="volumes of each kind")
    parser.add_argument("--cores", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="tools whose name has this in it")
    options = parser.parse_args()
    data, tools = (
        options.data.resolve(),
        [t for t in TOOLS if any(x in t.name for x in options.only)],
    )
    print(f"{machine()}; {options.cases} volumes of each kind\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archives = [
            make(data / source, run.resolve(), folder / source, options.cases)
            for make, source, run in (
                (archive.hippocampus, "hippocampus", options.hippocampus),
                (archive.sarcoma, "sts_sarcoma", options.pet),
            )
            if run is not None
        ]
        names = [part.name for part in archives]
        heads = ["cores", "tool", "cases/min", *names, "all, s", "CPU s", "peak, MB"]
        heads += ["network, % of the time", *(f"Dice {name}" for name in names)]
        print("| " + " | ".join(heads) + " |")
        print("|---" * len(heads) + "|")
        for cores in options.cores:
            found: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in tools}
            for n in range(options.repeats):  # interleaved: a slower hour slows all
                for tool in tools:
                    work = folder / f"{cores}-{n}-{tools.index(tool)}"
                    found[tool.name].append(measure(tool, archives, cores, work))
            for name, results in found.items():
                row(cores, name, results, options.cases)


def measure(tool: Tool, archives: list[Archive], cores: int, work: Path) -> dict[str, Any]:
    """What a tool takes for all archives."""
    result: dict[str, Any] = {}
    for part in archives:
        output = work / part.name
        output.mkdir(parents=True)
        job = {
            "run": str(part.run), "inputs": str(part.inputs), "output": str(output),
            "images": {case: str(path) for case, path in part.images.items()},
            "overrides": tool.overrides, "workers": tool.workers, "threads": cores, **part.peer,
        }  # fmt: skip
        told = tree.run(HERE / tool.script, job)
        result[part.name] = {**told, "dice": dice(output, part)}
        print(cores, tool.name, part.name, result[part.name], file=sys.stderr, flush=True)
    return result


def row(cores: int, name: str, results: list[dict[str, Any]], cases: int) -> None:
    """Print a line: medians over the repeats."""

    def total(key: str) -> float:
        return statistics.median(sum(told[key] for told in r.values()) for r in results)

    def each(part: str, key: str) -> float:
        return statistics.median(r[part][key] for r in results)

    parts = list(results[0])
    rates = [60 * cases * len(parts) / total("call_s")]
    rates += [60 * cases / each(part, "call_s") for part in parts]
    peak = statistics.median(max(told["peak_mb"] for told in r.values()) for r in results)
    share = 100 * total("network_s") / total("call_s")
    figures = [
        *(f"{rate:.0f}" for rate in rates), f"{total('wall_s'):.0f}", f"{total('cpu_s'):.0f}",
        f"{peak:.0f}", f"{share:.0f}", *(f"{each(part, 'dice'):.3f}" for part in parts),
    ]  # fmt: skip
    print(f"| {cores} | {name} | " + " | ".join(figures) + " |", flush=True)


def dice(output: Path, part: Archive) -> float:
    """Mean over cases and label values.

    Raises:
        RuntimeError: A mask is missing, or on another grid.
    """
    scores = []
    for case, path in part.truth.items():
        truth = nib.load(path)
        mask = nib.load(output / f"{case}.nii.gz")
        if mask.shape != truth.shape or not np.allclose(mask.affine, truth.affine, atol=1e-3):
            raise RuntimeError(f"{output / case}: another grid than {path}")
        labels, wanted = np.asanyarray(mask.dataobj), np.asanyarray(truth.dataobj)
        for value in np.unique(wanted)[1:]:
            found, true = labels == value, wanted == value
            scores.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()

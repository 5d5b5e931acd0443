"""What a prediction takes beside the volume and its labels, by the number of classes.

    python benchmarks/memory.py [--large] [--size 192] [--classes 2 25 100]

The environment is that of `inference.py`. The network gives each voxel logits of its own and takes
next to no memory, so that what is measured is the sliding window: 96^3, overlap .5, Gaussian
weights, fp32. "linear": logits in a tensor of their own, as a network gives them; "view": a view of
the input, which both peers refuse, for they write into it. Peak memory is above that with the
volume loaded, less the labels; each line is a fresh process with one thread. The peers stitch
logits and take their argmax, with softmax before it where the line says so; `inference.memory` is
medseg's setting of the MiB for sums of windows. "Other labels" are the voxels whose label is not
that of all logits of one slice after the other. `--large` adds 100 classes on 512x512x300 voxels,
medseg alone, with overlap .25 (the others would need 31 GB).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import machine
from inference_parts.process import spawn

from medseg.config.schema import Inference

WORKER = Path(__file__).parent / "inference_parts" / "memory_worker.py"
PATCH = [96, 96, 96]
DEFAULT = Inference().memory
PEERS = ("MONAI", "MONAI, softmax", "nnU-Net")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--classes", type=int, nargs="*", default=[2, 25, 100])
    parser.add_argument("--memory", type=int, nargs="*", default=[64], help="inference.memory, MiB")
    parser.add_argument("--peers-at", type=int, nargs="*", default=[25])
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    cube = {"shape": [options.size] * 3, "patch": PATCH, "overlap": 0.5}
    jobs: list[dict[str, Any]] = []
    for classes in options.classes:
        same = {**cube, "classes": classes, "memory": DEFAULT}
        jobs += [{**same, "who": "medseg", "kind": kind} for kind in ("linear", "view")]
        jobs += [
            {**same, "who": "medseg", "kind": "linear", "memory": memory}
            for memory in options.memory
        ]
        if classes in options.peers_at:
            jobs += [{**same, "who": name, "kind": "linear"} for name in PEERS]
    if options.large:
        large = {"shape": [512, 512, 300], "patch": PATCH, "overlap": 0.25, "kind": "linear"}
        jobs.append({**large, "who": "medseg", "classes": 100, "memory": DEFAULT})
    print(machine())
    print("\n| what | voxels | classes | logits | peak, MB | CPU s | other labels |")
    print("|---|---|---|---|---|---|---|")
    for job in jobs:
        told = spawn(WORKER, job)
        print(job, told, file=sys.stderr, flush=True)
        is_default = job["memory"] == DEFAULT
        name = job["who"] if is_default else f"{job['who']}, inference.memory={job['memory']}"
        size = "x".join(map(str, job["shape"]))
        print(
            f"| {name} | {size} | {job['classes']} | {job['kind']} | "
            f"{told['peak_mb'] - told['output_mb']:.0f} | {told['cpu_s']:.0f} | {told['wrong']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""The encoder families under the same conditions, and what depth and ImageNet weights do.

    python benchmarks/encoders.py compare  --hippocampus DIR --sts DIR
    python benchmarks/encoders.py depth    --hippocampus DIR
    python benchmarks/encoders.py transfer --hippocampus DIR --vgg16 FILE
    python benchmarks/encoders.py all      --hippocampus DIR --sts DIR --vgg16 FILE
    python benchmarks/encoders.py draw

Each part writes a page and a figure into docs/encoders/, from all results so far; `draw` does only
that. A part that was interrupted goes on where it was; `--quick` takes one seed and short runs,
keeps them apart and writes to --docs only.

compare: VGG-D, GoogLeNet, ResNet-18 and -34 and their plain twins, their widths scaled to equal
parameters and to equal multiply-adds, each with the same decoder, data, patches, CPU seconds and
seeds. depth: He et al. 2015 (arXiv:1512.03385), Figure 6:
training error of plain and residual networks of 20 to 56 layers. transfer: VGG-16 from random
weights, fine-tuned from ImageNet's, and as a fixed feature extractor, on 8, 32 and 180 cases.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from encoder_parts import figures, jobs
from encoder_parts.results import Results

HERE = Path(__file__).parent
PARTS = {"compare": jobs.compare, "depth": jobs.depth, "transfer": jobs.transfer}


def main() -> None:
    """Run what is missing, then draw all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "all", "draw"])
    parser.add_argument("--hippocampus", type=Path, help="folder: images/, labels/, split.json")
    parser.add_argument("--sts", type=Path, help="folder with manifest.csv")
    parser.add_argument("--vgg16", type=Path, help="ImageNet VGG-16: Caffe's preprocessing, BGR")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, short runs")
    parser.add_argument("--results", type=Path, default=HERE / "encoder_parts" / "results.jsonl")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "encoders")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
        if options.docs == parser.get_default("docs"):
            parser.error("--quick needs --docs: its figures are no measurement")
        options.results = options.docs / "results.jsonl"
    results = Results(options.results)
    for part in {"all": [*PARTS], "draw": []}.get(options.part, [options.part]):
        with tempfile.TemporaryDirectory() as scratch:
            todo = [job for job in PARTS[part](options, Path(scratch)) if job.key not in results]
            print(f"{len(todo)} runs to go", file=sys.stderr)
            with ThreadPoolExecutor(options.at_once) as pool:
                list(pool.map(jobs.run, jobs.warming(todo)))
                for done in pool.map(jobs.run, todo):
                    results.add(done)
                    print(results.told(done), file=sys.stderr, flush=True)
    figures.write(results, options.docs)


if __name__ == "__main__":
    main()

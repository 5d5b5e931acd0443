"""One volume on a GPU: medseg's sliding window beside MONAI's, same network, weights and windows.

    python benchmarks/gpu_inference.py --run RUN [--device cuda] [--repeats 5]

RUN is a run folder of `benchmarks/inference.py --train`. Times are on the clock, the device
synchronised, medians of methods that take turns, from the prepared volume in host memory to labels
in host memory; memory is the device's peak above what the network takes. MONAI runs as it comes,
with the volume and its logits on the device, and again under bf16 autocast.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference_parts import peers

from medseg.inference.predictor import Predictor
from medseg.volumes import cases

CASE = "brats_2013_pat0003_1"
EVERY = ("inference.roi=false", "inference.skip_constant=false")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", default=CASE)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    is_cuda = device.type == "cuda"
    print(torch.cuda.get_device_name(device) if is_cuda else "cpu", torch.__version__)
    methods: dict[str, Callable[[], Any]] = {}
    for precision in ("fp32", "bf16"):
        methods[f"MONAI, {precision}"] = monai(options, device, precision)
        for batch in options.batch:
            settings = (*EVERY, f"inference.precision={precision}", f"inference.batch={batch}")
            methods[f"medseg, {precision}, {batch} windows a pass"] = ours(options, settings)
    box = ("inference.roi=true", "inference.precision=bf16")
    methods["medseg, bf16, brain's box"] = ours(options, box)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    memory, labels = dict.fromkeys(methods, 0), {}
    for n in range(options.repeats + 1):
        for name, call in methods.items():
            if is_cuda:
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            before, start = (
                torch.cuda.memory_allocated(device) if is_cuda else 0,
                time.perf_counter(),
            )
            labels[name] = call()
            seconds[name] += [time.perf_counter() - start] if n else []  # the first warms up
            if is_cuda:
                memory[name] = torch.cuda.max_memory_allocated(device) - before
    reference = labels["medseg, fp32, 1 windows a pass"]
    print("| method | s | MONAI fp32 / it | MONAI bf16 / it | peak, MB | equal labels, % |")
    print("|---|---|---|---|---|---|")
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, mine in medians.items():
        print(
            f"| {name} | {mine:.2f} | {medians['MONAI, fp32'] / mine:.1f} "
            f"| {medians['MONAI, bf16'] / mine:.1f} | {memory[name] / 1e6:.0f} "
            f"| {100 * np.mean(labels[name] == reference):.3f} |"
        )


def ours(options: Any, settings: tuple[str, ...]) -> Callable[[], Any]:
    """The labels by medseg."""
    predictor = Predictor.load(options.run, device=options.device, overrides=settings, crf="off")
    found = cases.find(predictor.config.data).only([options.case])
    ready = predictor.prepare(predictor.load_case(found.cases[0]))
    return lambda: predictor.run(ready).labels


def monai(options: Any, device: torch.device, precision: str) -> Callable[[], Any]:
    """The labels by MONAI, turned to the input's axes."""
    predictor = Predictor.load(options.run, device="cpu", overrides=EVERY, crf="off")
    found = cases.find(predictor.config.data).only([options.case])
    ((prepared,),) = predictor.prepare(predictor.load_case(found.cases[0])).prepared
    network = peers.Finest.of(predictor.checkpoint).to(device)
    image, patch = torch.from_numpy(prepared.image), predictor.config.train.patch

    def call() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = peers.monai(network, image.to(device), patch)
        labels = logits.argmax(0).to(torch.uint8).cpu().numpy()
        return np.ascontiguousarray(prepared.route.reorient.undo(labels))

    return call


if __name__ == "__main__":
    main()

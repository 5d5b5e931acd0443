"""Training steps on a GPU: patches a second, peak memory, and how near they come to its matmuls.

    python benchmarks/gpu_training.py [--device cuda] [--patch 128 128 128] [--batch 2 4 8]
    python benchmarks/gpu_training.py --device cpu --tiny

The residual encoder U-Net in three sizes, with medseg's own step (bf16 autocast, Dice and cross
entropy with deep supervision, Muon, clipped gradients, averaged weights) on fixed tensors of the
device; "with augmentation": the batch comes from host memory and is augmented on the device as in
training. Times are on the clock, the device synchronised, medians of --repeats rounds of --steps
steps, after as many to warm up (with torch.compile that is where it compiles). Memory is the
device's peak of the whole step, weights and optimiser included.

The ceiling is the fastest of a few large bf16 matrix products in the same process. A step counts
six operations for every multiplication with addition of the convolutions' forward pass
(medseg.networks.describe): two forward, four backward; norms, activations and upsampling count
nothing, so the fraction is a lower bound. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import CONFIGS

from medseg import plugins
from medseg.config import Config, load
from medseg.networks.assembly import build_network
from medseg.networks.describe import multiply_adds, parameter_count
from medseg.networks.layers import channels_last
from medseg.registry import LOSSES
from medseg.training.finetune import FineTuning
from medseg.training.losses import DeepSupervision
from medseg.training.state import State
from medseg.training.step import Step

CHANNELS, CLASSES = 1, 3
SIZES = {
    "small": [32, 64, 128, 256, 320],
    "medium": [32, 64, 128, 256, 320, 320],
    "large": [64, 128, 256, 512, 640, 640],
}
TINY = {"tiny": [8, 16, 16]}
MATMUL = 16384  # rows and columns: 1.6 GB in three matrices of bf16
HEADS = (
    "network", "parameters, M", "batch", "compile", "channels-last", "patches/s",
    "with augmentation", "ms a step", "peak, GB", "TFLOP/s", "of the ceiling, %",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to train.

    Args:
        size: Name of the network.
        widths: Of its levels.
        batch: Patches of a step.
        compiled: By torch.compile.
        channels_last: Whether weights and images are in that layout.
    """

    size: str
    widths: list[int]
    batch: int
    compiled: bool
    channels_last: bool


def main() -> None:
    """Measure and print; exits with 2 where the device is missing."""
    options = _options()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --tiny tries the script", file=sys.stderr)
        sys.exit(2)
    device = torch.device(options.device)
    plugins.load()
    ceiling = matmul_rate(device, 256 if options.tiny else MATMUL)
    print(
        f"{_name(device)}, torch {torch.__version__}; patch {options.patch}; bf16 matmul "
        f"{ceiling / 1e12:.3g} TFLOP/s\n\n| {' | '.join(HEADS)} |\n" + "|---" * len(HEADS) + "|"
    )
    for way in ways(options):
        print(row(way, options, device, ceiling), flush=True)


def _options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small and short: to try the script")
    options = parser.parse_args()
    if options.tiny:
        options.patch, options.batch, options.steps, options.repeats = [16, 16, 16], [2], 1, 1
        options.no_compile = True
    return options


def ways(options: Namespace) -> Iterator[Way]:
    """What is measured, in the table's order."""
    sizes = TINY if options.tiny else {name: SIZES[name] for name in options.sizes}
    for name, widths in sizes.items():
        for batch in options.batch:
            for compiled in (False,) if options.no_compile else (False, True):
                for is_last in (False, True):
                    yield Way(name, widths, batch, compiled, is_last)


def row(way: Way, options: Namespace, device: torch.device, ceiling: float) -> str:
    """Measure a way, and tell it as a line of the table; where memory runs out, that."""
    about = [way.size, "", str(way.batch), *("x" if on else "" for on in _switches(way))]
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        told = measured(way, options, device)
    except torch.OutOfMemoryError:
        return f"| {' | '.join(about)} | out of memory |" + " - |" * 5
    rate = told["operations"] / told["step_s"]
    about[1] = f"{told['parameters'] / 1e6:.1f}"
    is_cuda = device.type == "cuda"
    peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if is_cuda else "-"
    figures = [
        f"{way.batch / told['step_s']:.1f}", f"{way.batch / told['augmented_s']:.1f}",
        f"{1e3 * told['step_s']:.1f}", peak, f"{rate / 1e12:.3g}",
        f"{100 * rate / ceiling:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(about + figures)} |"


def _switches(way: Way) -> tuple[bool, bool]:
    return way.compiled, way.channels_last


def measured(way: Way, options: Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of a step, without and with augmentation; operations of a step; parameters."""
    config = settings(way, options.patch)
    step, network = build(way, config, device)
    batch = {
        "image": torch.randn(way.batch, CHANNELS, *options.patch),
        "label": torch.randint(CLASSES, (way.batch, *options.patch), dtype=torch.uint8),
        "spacing": torch.ones(way.batch, 3),
        "present": torch.ones(way.batch, CHANNELS, dtype=torch.bool),
    }
    if device.type == "cuda":
        batch = {name: value.pin_memory() for name, value in batch.items()}

    whole: Any = {**batch, "case": ["random"] * way.batch}

    def ready() -> Any:
        part = step.prepare(whole)
        if way.channels_last:
            return part._replace(image=part.image.to(memory_format=torch.channels_last_3d))
        return part

    fixed = ready()
    return {
        "step_s": seconds(lambda: step([fixed], 1e-3), options, device),
        "augmented_s": seconds(lambda: step([ready()], 1e-3), options, device),
        "operations": 6.0 * way.batch * multiply_adds(network, CHANNELS, tuple(options.patch)),
        "parameters": parameter_count(network),
    }


def settings(way: Way, patch: list[int]) -> Config:
    """The recipe: hippocampus' with another network, patch and batch."""
    strides = [[1, 1, 1], *[[2, 2, 2]] * (len(way.widths) - 1)]
    overrides = (
        f"model.encoder={{name: resnet, widths: {way.widths}, strides: {strides}}}",
        "model.deep_supervision=1", f"train.patch={patch}", f"train.batch={way.batch}",
        f"train.compile={str(way.compiled).lower()}", "train.precision=bf16",
    )  # fmt: skip
    return load(CONFIGS / "hippocampus.yaml", overrides)


def build(way: Way, config: Config, device: torch.device) -> tuple[Step, Any]:
    """A step of medseg's on a new network, and the network."""
    network = build_network(config.model, CHANNELS, CLASSES, config.seed)
    network = network.to(device)
    tuning = FineTuning(network, CHANNELS, config.train)
    state = State(network, config.train, tuning)
    state.precision = config.train.precision
    if way.channels_last:
        channels_last(state.network)
        channels_last(state.average)
    regions = tuple((n,) for n in range(1, CLASSES))
    loss = LOSSES.build(config.loss.spec(), classes=CLASSES, regions=regions)
    supervised = DeepSupervision(loss, network.output_weights).to(device)
    tuning.rest(0.0)
    return Step(state, supervised, config.numbered), network


def seconds(call: Callable[[], Any], options: Namespace, device: torch.device) -> float:
    """Of one call: the median over rounds, the first of which warms up."""
    rounds = []
    for _ in range(options.repeats + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(options.steps):
            call()
        _wait(device)
        rounds.append((time.perf_counter() - start) / options.steps)
    return statistics.median(rounds[1:])


def matmul_rate(device: torch.device, size: int) -> float:
    """Operations a second of the fastest of a few bf16 products of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = math.inf
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

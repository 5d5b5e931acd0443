"""A process of its own that takes a few training steps and predicts a volume: `python -m` this.

It reads a request as JSON from its input, and writes what it measured as the last line of its
output. Alone in its process, so that the largest memory it ever had is that of this work.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medseg import plugins
from medseg.config.load import loads
from medseg.config.schema import Config
from medseg.inference.predictor import pick_device
from medseg.inference.runner import OutOfMemoryError, is_out_of_memory
from medseg.inference.window import predict_volume
from medseg.memory import keep_freed
from medseg.networks.assembly import Network, build_network
from medseg.networks.describe import multiply_adds
from medseg.networks.sizes import beyond
from medseg.registry import LOSSES
from medseg.training.budget import learning_rate
from medseg.training.dataset import Batch
from medseg.training.finetune import FineTuning
from medseg.training.losses import DeepSupervision
from medseg.training.precision import measured
from medseg.training.short_axes import ShortAxesInFloat32
from medseg.training.state import State
from medseg.training.step import Step

_STEPS = 3  # timed, after one that warms up
_SLACK = 1 << 30  # bytes that allocators reserve beyond what a process has: what it has decides
_ENOUGH = 8.0  # seconds, after which no further step is timed
Pair = tuple[float, float]


def main() -> None:
    """Answer one request."""
    keep_freed()
    request, idle = json.load(sys.stdin), _now("VmRSS")
    try:
        answer = answered(request, idle)
    except (MemoryError, RuntimeError, OutOfMemoryError) as error:
        if not _is_of_memory(error):
            raise
        answer = {"out_of_memory": True, "idle": idle}
    sys.stdout.write(json.dumps(answer) + "\n")


def _is_of_memory(error: Exception) -> bool:
    """Whether an error is that there was no memory; oneDNN says it in words of its own."""
    is_said = isinstance(error, OutOfMemoryError) or is_out_of_memory(error)
    return is_said or "could not create a primitive" in str(error)


def answered(request: dict[str, Any], idle: int) -> dict[str, Any]:
    """Take the steps and predict the volume that a request names; give what they took.

    Args:
        request: See `trial.Request`.
        idle: Bytes of this process before it did anything.

    Raises:
        MemoryError: There is less memory than asked for.
    """
    config = loads(request["config"], request["base"])
    plugins.load(config.plugins)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = pick_device(request["device"])
    on_cuda = device.type == "cuda"
    if request["memory"] and not on_cuda:
        _refuse_more(request["memory"] - idle)
    network = _network(config, request)
    tuning = FineTuning(network, request["channels"], config.train)
    state = State(network.to(device), config.train, tuning)
    state.network.train()
    step_seconds = _steps(config, state, request)
    predict_seconds = _predicted(config, state, request)
    return {
        "device": device.type,
        "precision": state.precision,
        "idle": 0 if on_cuda else idle,
        "peak": _peak(device),
        "free": torch.cuda.mem_get_info(device)[0] if on_cuda else _free(),
        "start_up": time.process_time(),
        "step": step_seconds,
        "predict": predict_seconds,
        "next": _work(request.get("next"), request) / _work(request["config"], request),
    }


def _network(config: Config, request: dict[str, Any]) -> Network:
    network = build_network(config.model, request["channels"], request["classes"], config.seed)
    ShortAxesInFloat32.adopt(network)
    return network


def _steps(config: Config, state: State, request: dict[str, Any]) -> Pair:
    """CPU and wall seconds of a step: the median."""
    classes = request["classes"]
    regions = tuple(map(tuple, request["regions"]))
    loss = LOSSES.build(config.loss.spec(), classes=classes, regions=regions)
    device = next(state.network.parameters()).device
    step = Step(
        state, DeepSupervision(loss, state.network.output_weights).to(device), config.numbered
    )
    batch = _batch(config, state.network, request)
    wanted = config.train.precision
    image = step.prepare(batch)[0]
    state.run_in(measured(state.network, image) if wanted == "auto" else wanted)
    lr = learning_rate(config.train, 0.5)
    return _median(lambda: step([step.prepare(batch)], lr), device)


def _predicted(config: Config, state: State, request: dict[str, Any]) -> Pair:
    """CPU and wall seconds of a prediction of the request's volume."""
    device = next(state.network.parameters()).device
    settings = config.numbered.inference.model_copy(update={"precision": "fp32"})
    generator = torch.Generator().manual_seed(config.seed)
    image = torch.randn(request["channels"], *request["volume"], generator=generator).to(device)

    def predict() -> None:
        predict_volume(
            state.average, image, settings, config.train.patch, state.network.divisor,
            classes=request["classes"],
        )  # fmt: skip

    with torch.inference_mode():
        return _median(predict, device, most=1)


def _batch(config: Config, network: Network, request: dict[str, Any]) -> Batch:
    """A batch of noise, as large as that of training."""
    generator = torch.Generator().manual_seed(config.seed)
    count, channels = config.train.batch, request["channels"]
    size = beyond(config.train.patch, network.margin)
    return {
        "image": torch.randn(count, channels, *size, generator=generator),
        "label": torch.randint(request["classes"], (count, *size), generator=generator),
        "spacing": torch.tensor([request["spacing"]]).expand(count, 3).contiguous(),
        "present": torch.ones(count, channels, dtype=torch.bool),
        "case": ["noise"] * count,
    }


def _median(work: Callable[[], object], device: torch.device, most: int = _STEPS) -> Pair:
    """CPU and wall seconds of some work, without its first turn, which also warms up."""
    taken: list[Pair] = []
    begin = time.perf_counter()
    for _ in range(1 + most):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        if time.perf_counter() - begin > _ENOUGH:
            break
    timed = sorted(taken[1:] or taken)
    return timed[len(timed) // 2]


def _work(text: str | None, request: dict[str, Any]) -> float:
    """Multiplications of a step of a config's network, found by shapes alone; without one, inf."""
    if text is None:
        return float("inf")
    config = loads(text, request["base"])
    with torch.device("meta"):
        network = build_network(config.model, request["channels"], request["classes"], config.seed)
    size = beyond(config.train.patch, network.margin)
    return config.train.batch * multiply_adds(network, request["channels"], size)


def _peak(device: torch.device) -> int:
    """The most bytes so far: of the process, or of torch on a GPU."""
    is_cuda = device.type == "cuda"
    return torch.cuda.max_memory_reserved(device) if is_cuda else _now("VmHWM")


def _refuse_more(most: int) -> None:
    """Let no allocation take far more, so that the machine never swaps.

    Raises:
        MemoryError: There is nothing left to take.
    """
    if most <= 0:
        raise MemoryError
    if hasattr(resource, "RLIMIT_DATA") and (taken := _now("VmData")):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + most + _SLACK, hard))


def _now(key: str) -> int:
    """Bytes by /proc/self/status; where there is none, the most memory so far, or 0 of VmData.

    The peak that getrusage tells is not used on Linux: a new process inherits its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return 0 if key == "VmData" else most * (1 if sys.platform == "darwin" else 1024)
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), "0")
    return int(found) * 1024


def _free() -> int:
    """Bytes that the system could still give."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

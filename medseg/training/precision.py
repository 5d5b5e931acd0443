"""`train.precision: auto`: the type of autocast in which this machine trains a network faster."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from medseg.inference.precision import candidate
from medseg.inference.runner import autocast, free_memory, is_out_of_memory
from medseg.networks.layers import channels_last

_TRIES = 3


def measured(network: nn.Module, image: Tensor) -> str:
    """Choose "bf16" if steps take less time in it than in "fp32"; of fp16 nothing is expected.

    A copy of the network is tried, forward and backward. Where the device has no instructions for
    bf16 nothing needs to be tried. What memory does not suffice for is never the faster one: bf16,
    which needs less, where both fail, so that the first step tells of it.

    Args:
        network: In training mode, on its device.
        image: (N, C, I, J, K), a batch on the device.
    """
    if candidate(image.device) != "bf16":
        return "fp32"
    trial = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[image.device] if image.device.type == "cuda" else []):
        full = _seconds(trial, image, "fp32")
        channels_last(trial)
        half = _seconds(trial, image, "bf16")
    return "fp32" if full < half else "bf16"


def _seconds(network: nn.Module, image: Tensor, precision: str) -> float:
    """The time of a step; infinity where memory runs out."""
    try:
        return _fastest(network, image, precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    network.zero_grad()  # outside of the handler, whose error would keep what was computed
    free_memory(image.device)
    return math.inf


def _fastest(network: nn.Module, image: Tensor, precision: str) -> float:
    """The least seconds of some steps; the first, which also warms up, counts least."""
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        with autocast(image.device, precision):
            outputs = network(image)
        sum((output.float().square().mean() for output in outputs), torch.zeros(())).backward()
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)
        times.append(time.perf_counter() - start)
    return min(times)

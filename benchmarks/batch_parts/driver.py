"""What the drivers share: cores, the network, how long it computed, and what they tell."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Job = dict[str, Any]


def serve(prepare: Callable[[Job], Callable[[], Any]]) -> None:
    """Do the job that the first argument tells (JSON), and print what it took (JSON).

    Args:
        prepare: Takes the job; imports, loads the network, and gives the call that predicts.
    """
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    import torch

    from medseg.networks.assembly import EncoderDecoder

    torch.set_num_threads(job["threads"])
    call = prepare(job)
    busy = _timed(EncoderDecoder)
    start = time.perf_counter()
    call()
    told = {"call_s": time.perf_counter() - start, "network_s": busy[0]}
    print(json.dumps(told), flush=True)


def _timed(kind: Any) -> list[float]:
    """The seconds that networks of a class compute, from now on."""
    seconds, forward = [0.0], kind.forward

    def timed(self: Any, x: Any) -> Any:
        start = time.perf_counter()
        try:
            return forward(self, x)
        finally:
            seconds[0] += time.perf_counter() - start

    kind.forward = timed
    return seconds


def loaded(job: Job) -> Any:
    """The predictor of medseg, whose network the peers take over."""
    from medseg.inference.predictor import Predictor

    return Predictor.load(job["run"], device="cpu")

"""medseg: its whole loop, and the floor: its step on fixed tensors."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medseg.config import Config
from medseg.config.schema import Budget
from medseg.networks.layers import channels_last
from medseg.networks.sizes import beyond
from medseg.training import loop
from medseg.training.setup import Setup
from medseg.training.state import State
from medseg.training.step import Step
from medseg.training.trouble import Part

_START_UP = 12  # CPU seconds, about
_NEVER = 10**9


def train(config: Config, job: dict[str, Any]) -> dict[str, float]:
    """Train as `medseg train` does; what counts lies between the first and the last record.

    Raises:
        RuntimeError: There was time for one record only.
    """
    seconds = time.process_time() + _START_UP + job["seconds"]
    settings = config.train.model_copy(
        update={
            "budget": Budget(cpu_seconds=seconds), "cache": f"{job['prepared']}/cache",
            "validate_every": _NEVER, "validation_cases": 1,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = loop.train(
            config.model_copy(update={"train": settings}), folder, device="cpu", quiet=True
        )
        records = [json.loads(line) for line in Path(run.log).read_text().splitlines()]
    return rate(records, settings.batch)


def rate(records: list[dict[str, Any]], batch: int) -> dict[str, float]:
    """Samples per second of a log whose seconds are CPU seconds."""
    if len(records) < 2:
        raise RuntimeError("one record only: give more --seconds")
    first, last = records[0], records[-1]
    samples, spent = (last["step"] - first["step"]) * batch, last["seconds"] - first["seconds"]
    outside = sum(record["outside"] for record in records[1:]) / (len(records) - 1)
    return {"samples": samples, "cpu_s": spent, "rate": samples / spent, "outside": outside}


def floor(setup: Setup) -> Callable[[], Any]:
    """A step of medseg's on the same batch again: nothing is loaded, cut or augmented."""
    state = State(setup.network, setup.config.train, setup.tuning)
    state.precision = setup.config.train.precision
    if state.precision != "fp32":  # as the loop does
        channels_last(state.network)
        channels_last(state.average)
    step = Step(state, setup.loss, setup.config.numbered)
    setup.tuning.rest(0.0)
    batch, patch = setup.config.train.batch, setup.config.train.patch
    size = beyond(patch, setup.network.margin)
    image = torch.randn(batch, len(setup.dataset.channels), *size)
    label = torch.randint(setup.classes, (batch, *patch))
    part = Part(image, label, ["random"] * batch)
    return lambda: step([part], 1e-3)

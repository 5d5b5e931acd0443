"""Data workers change no weight, and none that dies hangs a training or leaves anything behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from medseg.config import load
from medseg.config.train import Train
from medseg.errors import MedsegError
from medseg.training import loop
from medseg.training.workers import watched

Recipe = Callable[..., Path]
LONG = {"train.budget": {"steps": 100_000}, "train.save_every": 2, "train.validate_every": 10**6}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_any_number_of_workers_of_any_kind_trains_the_same_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    path = recipe(**{"train.budget": {"steps": 5}, "train.cache": str(tmp_path / "cache")})
    ends = {}
    for workers, method in ((0, "fork"), (1, "fork"), (2, "fork"), (2, "forkserver"), (2, "spawn")):
        run = tmp_path / f"{method}{workers}"
        config = load(path, [f"train.workers={workers}", f"train.start_method={method}"])
        loop.train(config, run, device="cpu", quiet=True)
        ends[run.name] = digest(run / "last.safetensors")
    weights = [torch_weights(tmp_path / name / "last.safetensors") for name in ends]
    for other in weights[1:]:
        assert other == weights[0]
    assert processes(os.getsid(0), parent=os.getpid(), named="pt_data_worker") == []


def torch_weights(path: Path) -> dict[str, bytes]:
    """The config travels in the file too, and says how many workers there were."""
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}

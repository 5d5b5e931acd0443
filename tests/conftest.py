"""What tests of training and prediction share: small heads on disk, a recipe, a model in a file."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medseg.volumes import phantom

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"layout": "nnunet", "split": {"folds": 3}},
    "preprocess": {"spacing": [4, 4, 4], "normalise": [{"name": "zscore", "region": "nonzero"}]},
    "model": {
        "encoder": {"name": "resnet", "widths": [4, 8, 8], "blocks": [1, 1, 1]},
        "decoder": {"name": "unet"},
        "deep_supervision": 1,
    },
    "train": {
        "patch": [16, 16, 16],
        "batch": 2,
        "budget": {"steps": 12},
        "precision": "fp32",
        "threads": 1,
    },
    "augment": {"flip": [0]},
    "inference": {"mode": "auto", "precision": "fp32"},
}


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Take Ctrl-C as in a terminal: what a shell runs in the background ignores it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small heads in nnU-Net's layout, voxels of 4 mm and of 4 x 4 x 6 mm. Do not change."""
    folder = tmp_path_factory.mktemp("heads")
    phantom.generate(folder, 6, 1, protocols=((4, 4, 4), (4, 4, 6)))
    return folder


@pytest.fixture(scope="session")
def recipe(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a small run's YAML, with settings by dotted name in place of the recipe's."""

    def write(**settings: Any) -> Path:
        values = _copy(RECIPE)
        values["data"]["path"] = str(heads)
        for name, value in settings.items():
            *parents, last = name.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        path = tmp_path_factory.mktemp("recipe") / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="session")
def model(recipe: Callable[..., Path]) -> Callable[..., Path]:
    """Write an untrained model of the recipe, as training writes it."""

    def write(**settings: Any) -> Path:
        import torch

        from medseg.config import load
        from medseg.networks.checkpoint import Checkpoint, save
        from medseg.training.setup import set_up

        path = recipe(**settings)
        setup = set_up(load(path))
        with torch.no_grad():  # untrained heads are near a tie everywhere: make them decide
            for name, weight in setup.network.named_parameters():
                if name.startswith("heads"):
                    weight.mul_(30)
        path = path.with_name("model.safetensors")
        data = setup.dataset
        weights = setup.network.state_dict()
        save(path, Checkpoint(setup.config, data.channels, data.labels, setup.spacing, weights))
        return path

    return write


@pytest.fixture(scope="session")
def study(recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three folds, hardly trained, beside its `run.yaml`. Do not change: copy it."""
    from medseg import api
    from medseg.config import load

    path = recipe(**{"train.budget": {"steps": 4}, "train.save_every": 1})
    folder = tmp_path_factory.mktemp("study") / "study"
    api.train_study(load(path), folder, all_folds=True, device="cpu", quiet=True)
    path.rename(folder.with_name("run.yaml"))
    return folder


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process, for its exit code and all that it printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        from medseg import cli

        monkeypatch.setattr(sys, "argv", ["medseg", *map(str, words)])
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as end:
                cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value

"""Prediction on a CUDA device gives what the CPU gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.inference.predictor import Predictor

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
WINDOWS = {"inference.mode": "window", "inference.patch": [16, 16, 16]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inference.batch": 4, "inference.flip": [0]},
        {"inference.memory": 1, "preprocess.spacing": [3, 3, 3]},
        {"preprocess.mask": "otsu_largest", "inference.roi": True, "inference.scales": [1, 1.2]},
    ],
)
def test_a_device_gives_the_cpus_labels(
    model: Callable[..., Path], heads: Path, settings: dict[str, object]
) -> None:
    path = model(**{**WINDOWS, "inference.precision": "fp32", **settings})
    files = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    cpu, cuda = (
        Predictor.load(path, device=device).predict(files, probabilities=True)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(cuda.probabilities, cpu.probabilities, atol=5e-3)
    assert (cuda.labels == cpu.labels).mean() > 0.999


def test_reduced_precision_is_settled(model: Callable[..., Path], heads: Path) -> None:
    path = model(**{**WINDOWS, "inference.precision": "auto"})
    files = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    found = Predictor.load(path, device="cuda").predict(files)
    assert found.made["precision"] in ("fp32", "bf16", "fp16")

"""Networks that cannot be built or trained: told with their place, before a file is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., tuple[int, str]]
RESNET = {"name": "resnet", "widths": [4, 8, 8]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.encoder": {**RESNET, "blocks": [1]}},
            "model.encoder.blocks: blocks needs one positive number per stage: 3, got (1,)",
        ),
        (
            {"model.decoder": {"name": "unet", "widths": [4]}},
            "model.decoder.widths: widths needs one positive number per stage: 2, got (4,)",
        ),
        ({"model.deep_supervision": 2}, "model.deep_supervision: deep_supervision 2 needs 3"),
        (
            {"model.supervision_weights": [1.0, 0.5, 0.25]},
            "model.supervision_weights: supervision_weights needs one number for each of the "
            "network's 2 outputs, the full size first, got 3: [1.0, 0.5, 0.25]",
        ),
        (
            {"model.supervision_weights": [0.0, 1.0]},
            "the first of supervision_weights is that of the output that predictions are made from",
        ),
        (  # of a whole network, how many outputs there are is known once it has run
            {
                "model": {
                    "network": {
                        "name": "monai",
                        "net": "UNet",
                        "options": {"channels": [4, 8], "strides": [2]},
                    },
                    "supervision_weights": [1.0, 0.5],
                }
            },
            "model.supervision_weights: supervision_weights needs one number for each of the "
            "network's 1 outputs, the full size first, got 2: [1.0, 0.5]",
        ),
        ({"train.freeze": {"levels": 9}}, "train.freeze.levels: the encoder has 3 levels, got 9"),
        (
            {"model.encoder": {**RESNET, "pretrained": {"path": "nowhere.pt"}}},
            "nowhere.pt: no such file",
        ),
        (  # one voxel of one sample: found by a trial in training mode
            {
                "model.encoder": {**RESNET, "strides": [[4, 4, 4], [2, 2, 2], [2, 2, 2]]},
                "model.encoder.norm": "batch",
                "model.decoder": {"name": "unet", "norm": "batch"},
                "train.batch": 1,
            },
            "a size of (16, 16, 16) voxels leaves one voxel at the coarsest level",
        ),
    ],
)
def test_it_is_told_with_its_place_and_nothing_is_written(
    settings: dict[str, Any], message: str, recipe: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    path = recipe(**settings)
    for words in (["check", "-c", path], ["train", "-c", path, "-o", tmp_path / "run"]):
        code, told = cli(*words)
        assert code == 2
        assert message in " ".join(told.split())
    run = tmp_path / "run"
    assert not run.exists() or not list(run.glob("[!.]*"))

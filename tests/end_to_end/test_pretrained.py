"""Weights of a 2D network under a small training: loaded, reported, fixed, and no longer needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medseg import plugins
from medseg.registry import ENCODERS

pytestmark = pytest.mark.slow
Cli = Callable[..., tuple[int, str]]
ENCODER: dict[str, Any] = {"name": "vgg11", "width": 0.0625, "levels": 3}
DATA = os.environ.get("MEDSEG_DATA")


def flat_weights() -> dict[str, Tensor]:
    """A state with torchvision's names of VGG-11, for colour pictures, and a classifier."""
    plugins.load()
    torch.manual_seed(7)
    encoder = ENCODERS.build(ENCODER, in_channels=3)
    names = encoder.layouts()["torchvision"]
    state = {
        f"{names[own.rpartition('.')[0]]}.{own.rpartition('.')[2]}": value.detach().clone()
        for own, value in encoder.named_parameters()
    }
    state = {name: value.sum(4) if value.ndim == 5 else value for name, value in state.items()}
    return state | {"classifier.6.weight": torch.rand(10, 32)}


@pytest.fixture
def trained(recipe: Callable[..., Path], cli: Cli, tmp_path: Path) -> tuple[Path, Path, str]:
    """The recipe, the run of 4 steps, and what was printed."""
    torch.save({"state_dict": flat_weights(), "epoch": 3}, tmp_path / "weights.pth")
    pretrained = {"path": str(tmp_path / "weights.pth"), "inflate": "centre"}
    path = recipe(
        **{
            "model.encoder": {**ENCODER, "pretrained": pretrained},
            "train.freeze": {"levels": "all"},
            "train.budget": {"steps": 4},
            "train.save_every": 2,
        }
    )
    code, told = cli("train", "-c", path, "-o", tmp_path / "run")
    assert code == 0, told
    return path, tmp_path / "run", told


def test_what_was_taken_is_told_kept_and_fixed(trained: tuple[Path, Path, str]) -> None:
    _, run, told = trained
    assert "4 of 4 kernels taken: 3 inflated, 1 adapted" in told
    assert "a classifier is not part of the encoder" in " ".join(told.split())
    report = json.loads((run / "pretrained.json").read_text())
    assert report["kernels"]["inflated"] == 3
    assert report["layout"] == "torchvision"
    assert len(report["rows"]) == 9
    model, flat = load_file(run / "model.safetensors"), flat_weights()
    kernels = [name for name in flat if flat[name].ndim == 4]
    ours = [v for name, v in model.items() if name.startswith("encoder.") and v.ndim == 5]
    assert len(kernels) == len(ours) == 4
    first = flat[kernels[0]].mean(1, keepdim=True).repeat(1, 2, 1, 1) * 3 / 2  # two channels
    for planar, solid in zip([first, *(flat[name] for name in kernels[1:])], ours, strict=True):
        torch.testing.assert_close(solid[..., 1], planar)
        assert solid[..., 0].abs().max() == 0


def test_a_trained_model_needs_the_file_no_more(
    trained: tuple[Path, Path, str], cli: Cli, heads: Path, tmp_path: Path
) -> None:
    _, run, _ = trained
    (tmp_path / "weights.pth").unlink()
    code, told = cli("predict", "-m", run, "-i", heads / "imagesTr", "-o", tmp_path / "masks")
    assert code == 0, told


def test_the_next_training_starts_from_this_one_with_other_classes(
    trained: tuple[Path, Path, str], recipe: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    _, run, _ = trained
    weights = load_file(run / "model.safetensors")
    for name in [name for name in weights if name.startswith("heads.")]:
        weights[name] = weights[name].repeat_interleave(3, 0)  # 6 classes instead of 2
    save_file(weights, tmp_path / "six.safetensors")
    pretrained = {"path": str(tmp_path / "six.safetensors")}
    settings = {"model.encoder": ENCODER, "model.pretrained": pretrained}
    path = recipe(**settings, **{"train.budget": {"steps": 1}})
    code, told = cli("train", "-c", path, "-o", tmp_path / "next")
    assert code == 0, told
    rows = json.loads((tmp_path / "next" / "pretrained.json").read_text())["rows"]
    swapped = {row["name"] for row in rows if "another class count" in row["reason"]}
    assert swapped == {name for name in weights if name.startswith("heads.")}
    assert {row["status"] for row in rows if row["name"] not in swapped} == {"kept"}


def test_a_resumed_run_goes_on_from_its_own_weights(
    trained: tuple[Path, Path, str], cli: Cli
) -> None:
    path, run, _ = trained
    (run.parent / "weights.pth").unlink()
    before = (run / "model.safetensors").read_bytes()
    code, told = cli("train", "-c", path, "-o", run, "--resume")
    assert code == 0, told
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(DATA is None, reason="MEDSEG_DATA is not set")
@pytest.mark.parametrize("name", ["vgg16_feature_extractor", "vgg16_fine_tune"])
def test_the_recipes_for_small_sets_train(name: str, cli: Cli, tmp_path: Path) -> None:
    """On eight cases and two, from the real ImageNet weights."""
    data = Path(DATA or "")
    (weights,) = data.glob("weights/vgg16_imagenet/*.pt")
    split = json.loads((data / "hippocampus" / "split.json").read_text())
    few = {"train": split["train"][:8], "validation": split["validation"][:2]}
    (tmp_path / "split.json").write_text(json.dumps(few))
    code, told = cli(
        "train", "-c", Path(__file__).parents[2] / "configs" / f"{name}.yaml",
        "-o", tmp_path / "run", f"data.path={data / 'hippocampus'}",
        f"data.split.file={tmp_path / 'split.json'}", f"model.encoder.pretrained.path={weights}",
        "train.budget={steps: 30}",
    )  # fmt: skip
    assert code == 0, told
    assert "7 of 7 kernels taken" in told
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert record["loss"] < 1.6  # 2.0 at the start

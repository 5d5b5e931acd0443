"""Promise 4: no NaN passes, neither into a mask nor into the weights."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medseg import api
from medseg.config import load
from medseg.config.schema import Inference
from medseg.errors import MedsegError
from medseg.inference.member import Member
from medseg.inference.window import NonFiniteError, predict_volume
from medseg.registry import LOSSES
from medseg.training import loop
from medseg.training.losses import CrossEntropy
from medseg.training.state import State
from medseg.volumes.nifti import VolumeWarning

Recipe = Callable[..., Path]
SHORT = {"train.budget": {"steps": 4}, "train.validate_every": 2, "train.validation_cases": 1}


class Network(nn.Module):
    """A function as a network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.forward = function


def poison(value: float, *places: tuple[int, ...]) -> Network:
    """A network whose logits are not finite at some voxels of its input."""

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = torch.cat([x, -x], 1).clone()
        for place in places:
            logits[(slice(None), 1, *place)] = value
        return (logits,)

    return Network(forward)


@pytest.mark.parametrize("mode", ["window", "whole"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (7, 7, 7), (3, 0, 5)])
def test_a_single_logit_that_is_not_finite_is_an_error(
    mode: str, value: float, place: tuple[int, ...]
) -> None:
    settings = Inference.model_validate({"mode": mode, "precision": "fp32"})
    image = torch.randn(1, 12, 8, 8)
    with pytest.raises(NonFiniteError, match=r"\d+ non-finite logits of"):
        predict_volume(poison(value, place), image, settings, (8, 8, 8), (4, 4, 4), classes=2)
    predict_volume(poison(5.0, place), image, settings, (8, 8, 8), (4, 4, 4), classes=2)


def test_a_flip_that_is_not_finite_counts_too() -> None:
    def once(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return poison(float("nan"), (1, 1, 1))(x) if len(calls) == 2 else poison(0.0)(x)

    calls: list[int] = []
    settings = Inference(mode="whole", flip=(0,), precision="fp32")
    with pytest.raises(NonFiniteError):
        predict_volume(
            Network(once), torch.randn(1, 8, 8, 8), settings, (8, 8, 8), (4, 4, 4), classes=2
        )


def test_it_fails_one_case_and_never_becomes_background(
    model: Callable[..., Path], heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Member.over
    seen: list[int] = []

    def sometimes(self: Member, prepared: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            prepared.image[:] = np.nan
        return over(self, prepared)

    monkeypatch.setattr(Member, "over", sometimes)
    outcome = api.predict(model(), heads / "imagesTr", tmp_path / "out", device="cpu", quiet=True)
    assert list(outcome.failed) == ["head_002"]
    assert "non-finite logits" in outcome.failed["head_002"]
    assert len(outcome.done) == 5
    assert not (tmp_path / "out" / "head_002.nii.gz").exists()
    content = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [item["id"] for item in content["failed"]] == ["head_002"]


@pytest.mark.slow
def test_nan_voxels_are_counted_and_become_zero(
    model: Callable[..., Path], heads: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for value, name in ((0.0, "zero"), (np.nan, "nan"), (np.inf, "inf")):
        for channel in ("0000", "0001"):
            image = nib.load(heads / "imagesTr" / f"head_001_{channel}.nii.gz")
            voxels = image.get_fdata(dtype=np.float32)
            voxels[10:13, 10, 10] = value
            nib.save(nib.Nifti1Image(voxels, image.affine), folder / f"{name}_{channel}.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        outcome = api.predict(model(), folder, tmp_path / "out", device="cpu", quiet=True)
    assert not outcome.failed
    zero, nan, inf = (
        nib.load(tmp_path / "out" / f"{name}.nii.gz").get_fdata() for name in ("zero", "nan", "inf")
    )
    np.testing.assert_array_equal(nan, zero)
    np.testing.assert_array_equal(inf, zero)
    notes = json.loads((tmp_path / "out" / "nan.json").read_text())["notes"]
    assert any("3 of 32256 voxels are NaN or infinite, replaced by 0" in note for note in notes)


@pytest.fixture
def broken_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss "breaks" is NaN from its third call on."""
    monkeypatch.setattr(LOSSES, "_components", dict(LOSSES._components))

    @LOSSES.register("breaks")
    class Breaks(CrossEntropy):
        def __init__(self, classes: int) -> None:
            super().__init__(classes)
            self.calls = 0

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            loss = super().forward(logits, target)
            return loss * float("nan") if self.calls == 3 else loss


@pytest.mark.usefixtures("broken_loss")
def test_a_loss_that_is_not_finite_stops_training(recipe: Recipe, tmp_path: Path) -> None:
    config = load(recipe(**{**SHORT, "model.deep_supervision": 0}))
    config = config.model_copy(update={"loss": config.loss.model_copy(update={"name": "breaks"})})
    with pytest.raises(MedsegError, match=r"the loss is nan at step 2, .*; lower train\.lr"):
        loop.train(config, tmp_path / "run", device="cpu", quiet=True)
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert kept["step"] == 2
    assert all(value.isfinite().all() for value in kept["network"].values())
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_weights_that_are_not_finite_are_never_saved(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may overflow though the loss and its gradient did not."""
    update = State.update_average

    def overflow(self: State) -> None:
        update(self)
        for parameter in self.network.parameters():
            parameter.data.fill_(float("inf"))

    monkeypatch.setattr(State, "update_average", overflow)
    config = load(recipe(**SHORT, **{"train.save_every": 1}))
    with pytest.raises(MedsegError, match=r"weights .* not finite after step 1; lower train\.lr"):
        loop.train(config, tmp_path / "run", device="cpu", quiet=True)
    for name in ("last.pt", "model.safetensors", "last.safetensors"):
        assert not (tmp_path / "run" / name).exists()


@pytest.mark.slow
def test_nan_voxels_do_not_reach_training(recipe: Recipe, heads: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    for file in (data / "imagesTr").iterdir():
        image = nib.load(file)
        voxels = image.get_fdata(dtype=np.float32)
        voxels[5, 5, 5] = np.nan
        nib.save(nib.Nifti1Image(voxels, image.affine), file)
    config = load(recipe(**SHORT, **{"data.path": str(data)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        run = loop.train(config, tmp_path / "run", device="cpu", quiet=True)
    assert np.isfinite(run.records()[-1]["loss"])

"""Our losses beside MONAI's and torch's, and MONAI's by name beside themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai import losses as monai
from torch import Tensor
from torch.nn import functional

from medseg import plugins
from medseg.errors import ConfigError
from medseg.registry import LOSSES
from medseg.volumes.dataset import IGNORE_INDEX

plugins.load()

SHAPE = (3, 6, 7, 5)


def pair(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(SHAPE[0], classes, *SHAPE[1:], generator=generator)
    return logits, torch.randint(classes, SHAPE, generator=generator)


def build(name: str, classes: int, **options: Any) -> Any:
    return LOSSES.build({"name": name, **options}, classes=classes)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_dice_is_monais(classes: int, batch: bool, smooth: float) -> None:
    logits, target = pair(classes)
    peer = monai.DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=batch,
        smooth_nr=smooth,
        smooth_dr=smooth,
    )
    mine = build("dice", classes, smooth=smooth, batch=batch)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


def test_dice_of_an_absent_class_is_monais() -> None:
    logits, target = pair(3)
    target[target == 2] = 0
    peer = monai.DiceLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        smooth_nr=1.0,
        smooth_dr=1.0,
    )
    torch.testing.assert_close(build("dice", 3)(logits, target), peer(logits, target[:, None]))


def test_dice_ce_is_monais() -> None:
    logits, target = pair(3)
    peer = monai.DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        smooth_nr=1.0,
        smooth_dr=1.0,
        lambda_dice=0.7,
        lambda_ce=1.3,
    )
    mine = build("dice_ce", 3, dice_weight=0.7, ce_weight=1.3)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


def test_cross_entropy_is_torchs() -> None:
    logits, target = pair(4)
    mine = build("cross_entropy", 4)
    torch.testing.assert_close(mine(logits, target), functional.cross_entropy(logits, target))
    target[:, :3] = IGNORE_INDEX
    expected = functional.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(mine(logits, target), expected)


def test_class_weights_weigh_each_voxel() -> None:
    logits, target = pair(3)
    weights = torch.tensor([0.5, 1.0, 4.0])
    mine = build("cross_entropy", 3, class_weights=[0.5, 1.0, 4.0])
    each = functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(mine(logits, target), (weights[target] * each).mean())


@pytest.mark.parametrize("name", ["dice", "cross_entropy", "dice_ce"])
def test_ignored_voxels_are_as_if_cut_away(name: str) -> None:
    logits, target = pair(3)
    target[:, 4:] = IGNORE_INDEX
    loss = build(name, 3)
    cut = loss(logits[:, :, :4], target[:, :4])
    torch.testing.assert_close(loss(logits, target), cut)
    logits = logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 4:] == 0).all()
    assert (logits.grad[:, :, :4] != 0).any()


@pytest.mark.parametrize("name", ["dice", "cross_entropy", "dice_ce"])
def test_a_patch_of_ignored_voxels_alone_costs_nothing(name: str) -> None:
    logits, target = pair(3)
    value = build(name, 3)(logits.requires_grad_(), torch.full_like(target, IGNORE_INDEX))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")  # of single precision
@pytest.mark.parametrize("name", ["dice", "cross_entropy", "dice_ce"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # The losses compute in float32 whatever they get, so that the steps have to be wide.
    logits = torch.randn(2, 3, 2, 2, 2, generator=generator, requires_grad=True)
    target = torch.randint(3, (2, 2, 2, 2), generator=generator)
    target[0, 0, 0, 0] = IGNORE_INDEX
    loss = build(name, 3)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, target), (logits,), eps=1e-2, atol=2e-3, rtol=2e-2, fast_mode=False
    )


@pytest.mark.parametrize("name", ["dice", "dice_ce"])
def test_half_precision_logits_are_summed_in_single(name: str) -> None:
    logits, target = pair(2)
    exact = build(name, 2)(logits.bfloat16().float(), target)
    torch.testing.assert_close(build(name, 2)(logits.bfloat16(), target), exact)


@pytest.mark.parametrize(
    "loss, options",
    [
        ("TverskyLoss", {"alpha": 0.3, "beta": 0.7, "include_background": False}),
        ("GeneralizedDiceLoss", {}),
        ("DiceFocalLoss", {"gamma": 1.5}),
    ],
)
def test_monais_losses_by_name_are_theirs(loss: str, options: dict[str, Any]) -> None:
    logits, target = pair(3)
    peer = getattr(monai, loss)(to_onehot_y=True, softmax=True, **options)
    mine = build("monai", 3, loss=loss, options=options)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


def test_monais_focal_loss_has_another_word_for_softmax() -> None:
    logits, target = pair(3)
    peer = monai.FocalLoss(to_onehot_y=True, use_softmax=True, weight=torch.tensor([1.0, 2.0, 3.0]))
    mine = build("monai", 3, loss="FocalLoss", options={"weight": [1.0, 2.0, 3.0]})
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


def test_ignored_voxels_have_no_part_in_monais_dice() -> None:
    logits, target = pair(3)
    target[:, 4:] = IGNORE_INDEX
    options = {"include_background": False, "batch": True}
    mine = build("monai", 3, loss="DiceLoss", options=options)
    peer = monai.DiceLoss(to_onehot_y=True, softmax=True, **options)
    expected = peer(logits[:, :, :4], target[:, None, :4])
    torch.testing.assert_close(mine(logits, target), expected)
    assert (target == IGNORE_INDEX).any()  # what was given is as it was


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"loss": "TverskiLoss"}, "did you mean 'TverskyLoss'"),
        ({"loss": "SSIMLoss"}, "unknown MONAI loss 'SSIMLoss'"),
        ({"loss": "TverskyLoss", "options": {"alfa": 1.0}}, "did you mean 'alpha'"),
        ({"loss": "DiceLoss", "options": {"softmax": False}}, "medseg sets 'softmax'"),
        ({"loss": "DiceLoss", "options": {"sigmoid": True}}, "MONAI loss 'DiceLoss'"),
    ],
)
def test_mistakes_in_monais_losses_are_told(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("monai", 2, **spec)

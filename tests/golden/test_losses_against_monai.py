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
TINY = 1e-12  # a smooth that does not show
OWN = [name for name in LOSSES.names() if name != "monai"]


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


@pytest.mark.parametrize("batch", [True, False])
def test_dice_of_squares_and_of_the_background_are_monais(batch: bool) -> None:
    logits, target = pair(3)
    options = {"to_onehot_y": True, "softmax": True, "batch": batch, "squared_pred": True}
    peer = monai.DiceLoss(**options, smooth_nr=1.0, smooth_dr=1.0)
    mine = build("dice", 3, squared=True, include_background=True, batch=batch)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("weight", ["square", "simple", "uniform"])
@pytest.mark.parametrize("absent", [(), (1,)])
def test_generalised_dice_is_monais(batch: bool, weight: str, absent: tuple[int, ...]) -> None:
    logits, target = pair(4)
    for label in absent:
        target[target == label] = 0
    target[1:, 3:] = 0  # the rarest class is not the same in each sample
    peer = monai.GeneralizedDiceLoss(
        to_onehot_y=True, softmax=True, w_type=weight, batch=batch, smooth_nr=0, smooth_dr=0
    )
    mine = build("generalised_dice", 4, weight=weight, batch=batch, smooth=TINY)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_tversky_is_monais(batch: bool, background: bool) -> None:
    logits, target = pair(3)
    peer = monai.TverskyLoss(
        to_onehot_y=True,
        softmax=True,
        alpha=0.2,
        beta=0.9,
        include_background=background,
        batch=batch,
        smooth_nr=2.0,
        smooth_dr=2.0,
    )
    options = {"alpha": 0.2, "beta": 0.9, "smooth": 2.0, "batch": batch}
    mine = build("tversky", 3, include_background=background, **options)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


def test_tversky_of_ones_is_monais_jaccard() -> None:
    logits, target = pair(3)
    options = {"to_onehot_y": True, "softmax": True, "include_background": False, "batch": True}
    peer = monai.DiceLoss(**options, jaccard=True, smooth_nr=2.0, smooth_dr=2.0)
    mine = build("tversky", 3, alpha=1.0, beta=1.0, smooth=1.0)
    torch.testing.assert_close(mine(logits, target), peer(logits, target[:, None]))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_focal_is_monais_but_for_its_mean_over_classes(
    gamma: float, weights: list[float] | None
) -> None:
    logits, target = pair(3)
    peer = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma, weight=weights)
    mine = build("focal", 3, gamma=gamma, **({"class_weights": weights} if weights else {}))
    torch.testing.assert_close(mine(logits, target), 3 * peer(logits, target[:, None]))


def test_dice_focal_is_monais() -> None:
    logits, target = pair(3)
    options = {"include_background": False, "batch": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    dice = monai.DiceLoss(to_onehot_y=True, softmax=True, **options)
    focal = monai.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.5)
    peer = 0.7 * dice(logits, target[:, None]) + 1.3 * 3 * focal(logits, target[:, None])
    mine = build("dice_focal", 3, dice_weight=0.7, focal_weight=1.3, gamma=1.5)
    torch.testing.assert_close(mine(logits, target), peer)


BRATS = (
    (0.0, 1.0, 1.0, 1.0, 1.0),
    (1.0, 0.0, 0.6, 0.2, 0.5),
    (1.0, 0.6, 0.0, 0.6, 0.7),
    (1.0, 0.2, 0.6, 0.0, 0.5),
    (1.0, 0.5, 0.7, 0.5, 0.0),
)


@pytest.mark.parametrize("unit", [1.0, 4.0])
def test_wasserstein_dice_is_monais(unit: float) -> None:
    logits, target = pair(5)
    matrix = torch.tensor(BRATS)
    peer = monai.GeneralizedWassersteinDiceLoss(matrix.numpy(), smooth_nr=0.5, smooth_dr=0.5)
    distances = (unit * matrix).tolist()
    mine = build("wasserstein_dice", 5, distances=distances, smooth=0.5, batch=False)
    torch.testing.assert_close(mine(logits, target), peer(logits, target))


def blobs() -> tuple[Tensor, Tensor]:
    """Predictions and truth with a few boundaries each; class 2 is absent in the last sample."""
    logits, _ = pair(3)
    logits = functional.avg_pool3d(8 * logits, 3, 1, 1)
    target = functional.avg_pool3d(8 * pair(3, seed=1)[0], 3, 1, 1).argmax(1)
    target[2][target[2] == 2] = 0
    return logits, target


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_hausdorff_in_voxels_is_monais(exponent: float) -> None:
    logits, target = blobs()
    peer = monai.HausdorffDTLoss(alpha=exponent, to_onehot_y=True, softmax=True)
    mine = build("hausdorff", 3, exponent=exponent, normalise=False, base="none", weight=0.5)
    torch.testing.assert_close(mine(logits, target), 0.5 * peer(logits, target[:, None]))


def test_boundary_is_monais_with_its_distances_divided_by_the_largest() -> None:
    logits, target = blobs()
    truth = functional.one_hot(target, 3).movedim(-1, 1)[:, 1:]
    distances = monai.BoundaryLoss().compute_distance_map(truth)
    largest = distances.abs().amax((2, 3, 4), keepdim=True)
    assert (largest > 1).sum() == 5  # all but the absent one
    expected = (logits.softmax(1)[:, 1:] * distances / largest.clamp_min(1)).mean()
    mine = build("boundary", 3, base="none", weight=2.0)
    torch.testing.assert_close(mine(logits, target), 2 * expected)


def test_focal_over_regions_is_monais_binary_one() -> None:
    logits, target = pair(3)
    regions = ((1, 2), (2,))
    mine = LOSSES.build({"name": "focal", "over": "regions"}, classes=3, regions=regions)
    inside = torch.stack(
        [logits[:, 1:].logsumexp(1) - logits[:, 0], logits[:, 2] - logits[:, :2].logsumexp(1)], 1
    )
    truth = torch.stack([target > 0, target == 2], 1).float()
    torch.testing.assert_close(mine(logits, target), monai.FocalLoss(gamma=2.0)(inside, truth))


def test_dice_over_regions_is_monais_of_several_labels() -> None:
    logits, target = pair(4)
    regions = ((1, 2, 3), (1, 3), (3,))
    shares = logits.softmax(1)
    summed = torch.stack([shares[:, 1:].sum(1), shares[:, 1] + shares[:, 3], shares[:, 3]], 1)
    truth = torch.stack([target > 0, (target == 1) | (target == 3), target == 3], 1).float()
    peer = monai.DiceLoss(batch=True, smooth_nr=1.0, smooth_dr=1.0)
    mine = LOSSES.build({"name": "dice", "over": "regions"}, classes=4, regions=regions)
    torch.testing.assert_close(mine(logits, target), peer(summed, truth))


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


@pytest.mark.parametrize("name", OWN)
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


@pytest.mark.parametrize("name", OWN)
def test_a_patch_of_ignored_voxels_alone_costs_nothing(name: str) -> None:
    logits, target = pair(3)
    value = build(name, 3)(logits.requires_grad_(), torch.full_like(target, IGNORE_INDEX))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")  # of single precision
@pytest.mark.parametrize("name", OWN)
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


@pytest.mark.parametrize("name", OWN)
def test_half_precision_logits_are_summed_in_single(name: str) -> None:
    logits, target = pair(2)
    exact = build(name, 2)(logits.bfloat16().float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        value = build(name, 2)(logits.bfloat16(), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)


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

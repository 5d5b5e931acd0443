"""Losses beside the formulas of papers and of NiftyNet, written out in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from medseg import plugins
from medseg.registry import LOSSES

plugins.load()

Array = npt.NDArray[np.float64]


def build(name: str, classes: int, **options: Any) -> Any:
    return LOSSES.build({"name": name, **options}, classes=classes)


def sample(classes: int) -> tuple[Tensor, Tensor, Array, Array]:
    """Logits, target, and the same as (voxels, classes) probabilities and one-hot truth."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(1, classes, 4, 5, 6, generator=generator)
    target = torch.randint(classes, (1, 4, 5, 6), generator=generator)
    target[:, 2:] = 0  # lesions are rare
    shares = logits.double().softmax(1)[0].flatten(1).T.numpy()
    return logits, target, shares, np.eye(classes)[target.flatten().numpy()]


def test_log_dice() -> None:
    logits, target, p, t = sample(3)
    dice = (2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)
    value = build("dice", 3, log=True)(logits, target)
    assert float(value) == pytest.approx(-np.log(dice[1:]).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["Dice", "Dice_NS"])
def test_dice_of_niftynet(name: str) -> None:
    """Its epsilon of 1e-5 stands below only; ours above too, which nobody sees here."""
    logits, target, p, t = sample(3)
    size = p if name == "Dice_NS" else p**2
    expected = 1 - (2 * (p * t).sum(0) / (size.sum(0) + t.sum(0) + 1e-5)).mean()
    options = {"smooth": 1e-5, "batch": False, "include_background": True}
    value = build("dice", 3, squared=name == "Dice", **options)(logits, target)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_focal_tversky_of_abraham_and_khan() -> None:
    """Their alpha, 0.7, weighs misses and their beta, 0.3, false positives; gamma is 4/3."""
    logits, target, p, t = sample(3)
    overlap, missed, false = (p * t).sum(0), ((1 - p) * t).sum(0), (p * (1 - t)).sum(0)
    index = (overlap + 1) / (overlap + 0.7 * missed + 0.3 * false + 1)
    expected = ((1 - index[1:]) ** (1 / (4 / 3))).mean()
    value = build("focal_tversky", 3)(logits, target)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_sensitivity_specificity_is_the_mean_of_niftynets_sum() -> None:
    logits, target, p, t = sample(3)
    squared = (t - p) ** 2
    inside = (squared * t).sum(0) / (t.sum(0) + 1e-5)
    outside = (squared * (1 - t)).sum(0) / ((1 - t).sum(0) + 1e-5)
    expected = (0.05 * inside + 0.95 * outside).sum()
    value = build("sensitivity_specificity", 3, include_background=True)(logits, target)
    assert 3 * float(value) == pytest.approx(expected, rel=1e-5)


def test_volume_enforcement_of_niftynet() -> None:
    logits, target, p, t = sample(3)
    ratio = (t.sum(0) + 0.001) / (p.sum(0) + 0.001)
    expected = np.sqrt((ratio - 1 / ratio)[1:] ** 2).mean()
    mine = build("volume_enforcement", 3, smooth=0.001, base="none", weight=1.0)
    assert float(mine(logits, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_topk_is_the_mean_of_the_worst(share: float) -> None:
    logits, target, p, t = sample(3)
    entropies = np.sort(-np.log((p * t).sum(1)))[::-1]
    expected = entropies[: int(share * len(entropies))].mean()
    assert float(build("topk", 3, share=share)(logits, target)) == pytest.approx(expected, rel=1e-5)
    both = build("dice_topk", 3, share=share, dice_weight=0.5, topk_weight=2.0)(logits, target)
    dice = float(build("dice", 3)(logits, target))
    assert float(both) == pytest.approx(0.5 * dice + 2 * expected, rel=1e-5)


def test_wasserstein_dice_of_two_classes_is_the_dice() -> None:
    logits, target, _, _ = sample(2)
    torch.testing.assert_close(
        build("wasserstein_dice", 2)(logits, target), build("dice", 2)(logits, target)
    )


@pytest.mark.parametrize(
    ("predicted", "loss"),
    [
        (1, 0.0),
        (3, 1 - 1.6 / 1.8),  # necrosis taken for non-enhancing core: error 0.2, overlap 0.8
        (2, 1 - 0.8 / 1.4),  # for oedema: 0.6
        (0, 1.0),  # missed: no overlap at all
    ],
)
def test_wasserstein_dice_knows_likeness(predicted: int, loss: float) -> None:
    """One voxel of necrosis, with the distances of Fidon et al. 2017 for BraTS."""
    distances = [
        [0.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 0.0, 0.6, 0.2, 0.5],
        [1.0, 0.6, 0.0, 0.6, 0.7],
        [1.0, 0.2, 0.6, 0.0, 0.5],
        [1.0, 0.5, 0.7, 0.5, 0.0],
    ]
    logits = torch.zeros(1, 5, 1, 1, 1)
    logits[:, predicted] = 200
    target = torch.ones(1, 1, 1, 1, dtype=torch.int64)
    mine = build("wasserstein_dice", 5, distances=distances, smooth=1e-9)
    assert float(mine(logits, target)) == pytest.approx(loss, abs=1e-6)


def test_a_label_near_the_background_overlaps_less() -> None:
    """Fidon et al. 2017: each label's overlap counts from, and by, its distance to background."""
    logits, target, p, t = sample(3)
    matrix = np.array([[0, 0.5, 1], [0.5, 0, 0.8], [1, 0.8, 0]])
    error = (p * (t @ matrix)).sum(1)
    depth = t @ matrix[0]
    overlap = (depth * (depth - error)).sum()
    expected = 1 - (2 * overlap + 1) / (2 * overlap + error.sum() + 1)
    value = build("wasserstein_dice", 3, distances=matrix.tolist())(logits, target)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def line(*labels: int) -> Tensor:
    return torch.tensor(labels).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("target", "edge", "distances"),
    [
        (line(0, 0, 1, 1, 1, 0, 0), 1.0, [2, 1, 0, -1, 0, 1, 2]),
        (line(0, 0, 1, 1, 1, 0, 0), 3.0, [6, 3, 0, -3, 0, 3, 6]),
        (line(0, 0, 1, 1, 1, 255, 0), 1.0, [2, 1, 0, -1, -1, 0, 2]),  # nothing is next to it
        (line(255, 255, 1, 1, 255, 255, 255), 1.0, [0] * 7),  # no background that one knows of
        (line(0, 0, 0, 0, 0, 0, 0), 1.0, [0] * 7),
        (line(1, 1, 1, 1, 1, 1, 1), 1.0, [0] * 7),
    ],
)
def test_boundary_of_a_line(target: Tensor, edge: float, distances: list[float]) -> None:
    """Kervadec et al. 2019: the slope of the loss is the signed distance of each voxel.

    An ignored voxel has no slope, and no distance is measured to it.
    """
    logits = torch.zeros(1, 2, 7, 1, 1, requires_grad=True)
    build("boundary", 2, base="none", voxel=[edge, edge, edge])(logits, target).backward()
    assert logits.grad is not None
    counted = int((target != 255).sum())
    largest = max(map(abs, distances)) or 1
    expected = torch.tensor(distances) / largest / counted / 4  # the softmax's slope at 1/2
    torch.testing.assert_close(logits.grad[0, 1, :, 0, 0], expected)


def test_far_errors_cost_more_than_near_ones() -> None:
    target = line(0, 0, 0, 0, 0, 0, 1, 1)
    for name in ("boundary", "hausdorff"):
        costs = []
        for wrong in (5, 2):  # beside the lesion, and far from it
            logits = torch.zeros(1, 2, 8, 1, 1)
            logits[0, 1] = torch.where(target[0] == 1, 8.0, -8.0)
            logits[0, 1, wrong] = 8
            costs += [float(build(name, 2, base="none")(logits, target))]
        assert costs[1] > costs[0]

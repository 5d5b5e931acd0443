"""Sums of losses: what an overlap leaves to single voxels, and the other way round."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.registry import LOSSES
from medseg.training.losses.entropy import CrossEntropy, Focal, TopK
from medseg.training.losses.overlap import GeneralisedDice, SoftDice
from medseg.training.losses.parts import Over, Regions, check_not_negative

Base = Literal["dice_ce", "dice", "generalised_dice", "none"]


class WeightedSum(nn.Module):
    """Several losses, each times its weight.

    Args:
        terms: (weight, loss) of each.
    """

    def __init__(self, *terms: tuple[float, nn.Module]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        values = [loss(logits, target) for loss in self.losses]
        total: Tensor = sum(
            (weight * value for weight, value in zip(self.weights, values, strict=True)),
            torch.zeros((), device=target.device),
        )
        return total


@LOSSES.register("dice_ce")
class DiceCrossEntropy(WeightedSum):
    """Soft Dice plus cross-entropy (Isensee et al. 2018, arXiv:1809.10486).

    Args:
        classes: Number of classes, background included.
        dice_weight: Factor of the Dice part.
        ce_weight: Factor of the cross-entropy.
        smooth: Of the Dice, in voxels.
        batch: Whether the Dice sums over the batch first.
        over: What both are taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        smooth: float = 1.0,
        batch: bool = True,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        check_not_negative(dice_weight=dice_weight, ce_weight=ce_weight)
        super().__init__(
            (dice_weight, SoftDice(classes, smooth, batch, over=over, regions=regions)),
            (ce_weight, CrossEntropy(classes, over=over, regions=regions)),
        )


@LOSSES.register("dice_topk")
class DiceTopK(WeightedSum):
    """Soft Dice plus the cross-entropy of the worst voxels (Isensee et al. 2021).

    doi:10.1038/s41592-020-01008-z; the two are `dice` and `topk`.

    Args:
        classes: Number of classes, background included.
        dice_weight: Factor of the Dice part.
        topk_weight: Factor of the cross-entropy.
        share: Share of the voxels that count in it, the worst first.
        smooth: Of the Dice, in voxels.
        batch: Whether the Dice sums over the batch first.
        over: What both are taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        dice_weight: float = 1.0,
        topk_weight: float = 1.0,
        share: float = 0.1,
        smooth: float = 1.0,
        batch: bool = True,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        check_not_negative(dice_weight=dice_weight, topk_weight=topk_weight)
        super().__init__(
            (dice_weight, SoftDice(classes, smooth, batch, over=over, regions=regions)),
            (topk_weight, TopK(classes, share, over=over, regions=regions)),
        )


@LOSSES.register("dice_focal")
class DiceFocal(WeightedSum):
    """Soft Dice plus focal loss (Zhu et al. 2019, arXiv:1808.05238).

    Args:
        classes: Number of classes, background included.
        dice_weight: Factor of the Dice part.
        focal_weight: Factor of the focal loss.
        gamma: Of the focal loss.
        smooth: Of the Dice, in voxels.
        batch: Whether the Dice sums over the batch first.
        over: What both are taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        gamma: float = 2.0,
        smooth: float = 1.0,
        batch: bool = True,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        check_not_negative(dice_weight=dice_weight, focal_weight=focal_weight)
        super().__init__(
            (dice_weight, SoftDice(classes, smooth, batch, over=over, regions=regions)),
            (focal_weight, Focal(classes, gamma, over=over, regions=regions)),
        )


def with_base(
    term: nn.Module, weight: float, base: Base, classes: int, over: Over, regions: Regions | None
) -> WeightedSum:
    """Add a term that is no loss by itself to a loss that is; base "none": the term alone."""
    check_not_negative(weight=weight)
    made = {
        "dice_ce": DiceCrossEntropy,
        "dice": SoftDice,
        "generalised_dice": GeneralisedDice,
    }
    bases = [(1.0, made[base](classes, over=over, regions=regions))] if base != "none" else []
    return WeightedSum(*bases, (weight, term))

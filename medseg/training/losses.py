"""Losses: `(logits (N, C, I, J, K), target (N, I, J, K) class indices) -> scalar`.

Voxels whose target is IGNORE_INDEX count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.registry import LOSSES
from medseg.volumes.dataset import IGNORE_INDEX


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean cross-entropy over the voxels.

    Args:
        classes: Number of classes, background included.
        class_weights: One weight a class, background first.
    """

    def __init__(self, classes: int, class_weights: tuple[float, ...] | None = None) -> None:
        super().__init__()
        if class_weights is not None and len(class_weights) != classes:
            raise ValueError(f"{len(class_weights)} class_weights for {classes} classes")
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.weights: Tensor | None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        loss = functional.cross_entropy(
            logits.float(), target, self.weights, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return loss / (target != IGNORE_INDEX).sum().clamp_min(1)


@LOSSES.register("dice")
class SoftDice(nn.Module):
    """One minus the soft Dice of the foreground classes (Milletari et al. 2016, arXiv:1606.04797).

    The denominator sums probabilities, not their squares (Drozdzal et al. 2016, arXiv:1608.04117).

    Args:
        classes: Number of classes, background included.
        smooth: Added above and below, in voxels: an absent class that is not predicted scores 1.
        batch: Sum over the whole batch before the ratio, so that a patch without the class does
            not dominate.
    """

    def __init__(self, classes: int, smooth: float = 1.0, batch: bool = True) -> None:
        super().__init__()
        self.classes, self.smooth = classes, smooth
        self.axes = (0, 2, 3, 4) if batch else (2, 3, 4)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        known = (target != IGNORE_INDEX)[:, None]
        truth = functional.one_hot(target * known[:, 0], self.classes).movedim(-1, 1)
        truth = truth[:, 1:].to(torch.float32)  # an ignored voxel is background here
        predicted = logits.float().softmax(1)[:, 1:] * known
        overlap = (predicted * truth).sum(self.axes)
        total = predicted.sum(self.axes) + truth.sum(self.axes)
        return 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean()


@LOSSES.register("dice_ce")
class DiceCrossEntropy(nn.Module):
    """Soft Dice plus cross-entropy (Isensee et al. 2018, arXiv:1809.10486).

    Args:
        classes: Number of classes, background included.
        dice_weight: Factor of the Dice part.
        ce_weight: Factor of the cross-entropy.
        smooth: Of the Dice, in voxels.
        batch: Whether the Dice sums over the batch first.
    """

    def __init__(
        self,
        classes: int,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        smooth: float = 1.0,
        batch: bool = True,
    ) -> None:
        super().__init__()
        self.dice = SoftDice(classes, smooth, batch)
        self.cross_entropy = CrossEntropy(classes)
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        dice, entropy = self.dice(logits, target), self.cross_entropy(logits, target)
        total: Tensor = self.dice_weight * dice + self.ce_weight * entropy
        return total


class DeepSupervision(nn.Module):
    """A loss of several outputs (Lee et al. 2015, arXiv:1409.5185).

    The target is picked at the voxels of coarser outputs (nearest).

    Args:
        loss: Of one output.
        weights: One for each output; None: each half that of the one before.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = weights

    def forward(self, outputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Return the weighted mean over the outputs."""
        weights = self.weights or [0.5**n for n in range(len(outputs))]
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(weights, outputs, strict=True):
            total = total + weight * self.loss(logits, _at(target, logits))
        return total / sum(weights)


def _at(target: Tensor, logits: Tensor) -> Tensor:
    if target.shape[1:] == logits.shape[2:]:
        return target
    coarse = functional.interpolate(target[:, None].float(), size=logits.shape[2:], mode="nearest")
    return coarse[:, 0].to(target.dtype)

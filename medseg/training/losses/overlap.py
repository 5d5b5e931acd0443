"""Losses of overlap: ratios of sums over the voxels, one for each part."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.registry import LOSSES
from medseg.training.losses.parts import (
    Over,
    Parts,
    Regions,
    check_not_negative,
    check_positive,
    known,
    summed_axes,
)

_LEAST = 1e-6  # of a loss: below, a power under 1 would have an infinite slope


@LOSSES.register("dice")
class SoftDice(nn.Module):
    """One minus the soft Dice of the foreground classes (Milletari et al. 2016, arXiv:1606.04797).

    The denominator sums probabilities, not their squares (Drozdzal et al. 2016, arXiv:1608.04117),
    unless `squared` asks for Milletari's.

    Args:
        classes: Number of classes, background included.
        smooth: Added above and below, in voxels: an absent class that is not predicted scores 1.
        batch: Sum over the whole batch before the ratio, so that a patch without the class does
            not dominate.
        squared: Sum the squares of the probabilities below.
        log: Take -log of each Dice instead, so that poor classes count more (Wong et al. 2018,
            arXiv:1809.00076, with exponent 1).
        include_background: Whether the background is a class like the others.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        smooth: float = 1.0,
        batch: bool = True,
        squared: bool = False,
        log: bool = False,
        include_background: bool = False,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        self.parts = Parts.of(classes, over, regions, include_background=include_background)
        self.smooth, self.squared, self.log = smooth, squared, log
        self.axes = summed_axes(batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        predicted, truth = self.parts.soft(logits, target)
        overlap = (predicted * truth).sum(self.axes)
        size = predicted.square() if self.squared else predicted
        total = size.sum(self.axes) + truth.sum(self.axes)
        dice = (2 * overlap + self.smooth) / (total + self.smooth)
        return -dice.log().mean() if self.log else 1 - dice.mean()


@LOSSES.register("generalised_dice")
class GeneralisedDice(nn.Module):
    """One minus the generalised Dice: one ratio for all classes, the rare ones weighing more.

    Sudre et al. 2017, arXiv:1707.03237. A class that is absent weighs as much as the rarest one
    that is there, as in NiftyNet (Gibson et al. 2018, doi:10.1016/j.cmpb.2018.01.025).

    Args:
        classes: Number of classes, background included.
        weight: A class weighs 1 / volume^2, 1 / volume, or 1.
        smooth: Added above and below, in voxels of the class that weighs most.
        batch: Sum over the whole batch before the ratio.
        include_background: Whether the background is a class like the others.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        weight: Literal["square", "simple", "uniform"] = "square",
        smooth: float = 1.0,
        batch: bool = True,
        include_background: bool = True,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_positive(smooth=smooth)
        self.parts = Parts.of(classes, over, regions, include_background=include_background)
        self.power = {"square": 2, "simple": 1, "uniform": 0}[weight]
        self.smooth = smooth
        self.axes = summed_axes(batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        predicted, truth = self.parts.soft(logits, target)
        volumes = truth.sum(self.axes)
        weights = self._weights(volumes)
        overlap = (weights * (predicted * truth).sum(self.axes)).sum(-1)
        total = (weights * (predicted.sum(self.axes) + volumes)).sum(-1)
        return 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean()

    def _weights(self, volumes: Tensor) -> Tensor:
        """From 0 to 1, so that `smooth` has a unit; the ratio does not change by that."""
        rarest = volumes.masked_fill(volumes == 0, torch.inf).amin(-1, keepdim=True)
        return (rarest / volumes.clamp_min(1)).clamp(max=1) ** self.power


@LOSSES.register("tversky")
class Tversky(nn.Module):
    """One minus the Tversky index (Salehi et al. 2017, arXiv:1706.05721).

    The overlap divided by itself plus what is wrong, misses and false alarms weighed apart. With
    both at 0.5 it is the Dice, with both at 1 the Jaccard index.

    Args:
        classes: Number of classes, background included.
        alpha: Weight of false positives.
        beta: Weight of false negatives: above `alpha`, a missed lesion costs more than a false one.
        exponent: Each class's loss is raised to it: 1 divided by the gamma of Abraham and Khan.
        smooth: Added above and below, in voxels: an absent class that is not predicted scores 1.
        batch: Sum over the whole batch before the ratio.
        include_background: Whether the background is a class like the others.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        alpha: float = 0.3,
        beta: float = 0.7,
        exponent: float = 1.0,
        smooth: float = 1.0,
        batch: bool = True,
        include_background: bool = False,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, beta=beta)
        check_positive(exponent=exponent, smooth=smooth)
        self.parts = Parts.of(classes, over, regions, include_background=include_background)
        self.alpha, self.beta, self.exponent, self.smooth = alpha, beta, exponent, smooth
        self.axes = summed_axes(batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        predicted, truth = self.parts.soft(logits, target)
        overlap = (predicted * truth).sum(self.axes)
        false = predicted.sum(self.axes) - overlap
        missed = truth.sum(self.axes) - overlap
        wrong = self.alpha * false + self.beta * missed
        loss = 1 - (overlap + self.smooth) / (overlap + wrong + self.smooth)
        return _power(loss, self.exponent).mean()


# Focal Tversky (Abraham and Khan 2019, arXiv:1810.07842): gamma 4/3, misses weigh 0.7.
LOSSES.preset("focal_tversky", "tversky", exponent=0.75)


def _power(loss: Tensor, exponent: float) -> Tensor:
    """A power from 0 to 1 whose slope at 0 is finite: a straight line up to `_LEAST`."""
    if exponent == 1:
        return loss
    line = loss * _LEAST ** (exponent - 1)
    return torch.where(loss > _LEAST, loss.clamp_min(_LEAST) ** exponent, line)


@LOSSES.register("sensitivity_specificity")
class SensitivitySpecificity(nn.Module):
    """Squared errors inside and outside a class, each as a mean (Brosch et al. 2015).

    doi:10.1007/978-3-319-24574-4_1, equation 4: however small the lesions, they count as a whole
    `ratio`. NiftyNet adds the classes up, background included; this is their mean.

    Args:
        classes: Number of classes, background included.
        ratio: Share of the error inside, the sensitivity; the rest is of the error outside. The
            paper finds 0.01 to 0.1 to do.
        batch: Take the means over the whole batch.
        include_background: Whether the background is a class like the others.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.

    Raises:
        ValueError: The ratio is not between 0 and 1.
    """

    def __init__(
        self,
        classes: int,
        ratio: float = 0.05,
        batch: bool = True,
        include_background: bool = False,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must lie in 0 to 1, got {ratio}")
        self.parts = Parts.of(classes, over, regions, include_background=include_background)
        self.ratio = ratio
        self.axes = summed_axes(batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        predicted, truth = self.parts.soft(logits, target)
        outside = known(target) * (1 - truth)
        error = (predicted - truth).square()
        missed = (error * truth).sum(self.axes) / truth.sum(self.axes).clamp_min(1)
        false = (error * outside).sum(self.axes) / outside.sum(self.axes).clamp_min(1)
        return (self.ratio * missed + (1 - self.ratio) * false).mean()

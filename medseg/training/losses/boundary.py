"""Losses of distance: how far from the true boundary a prediction is wrong.

The distances are computed anew for each batch, and carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.registry import LOSSES
from medseg.training.losses.compound import Base, with_base
from medseg.training.losses.distances import VoxelSize, distances
from medseg.training.losses.parts import Over, Parts, Regions, check_positive, known


@LOSSES.register("boundary")
class Boundary(nn.Module):
    """A loss of overlap plus the boundary loss (Kervadec et al. 2019, arXiv:1812.07032).

    The boundary loss is the mean over the voxels of probability times signed distance to the true
    boundary: negative inside, 0 at the innermost side of it, positive outside. Distances are
    divided by the largest one of the patch, so it lies in -1 to 1; the paper has them in voxels.
    It says nothing where a class is absent from a patch, or fills it: hence the `base`.

    Args:
        classes: Number of classes, background included.
        weight: Factor of the boundary loss, the same all through the training.
        base: The loss that it is added to; "none": it stands alone, and may end in no prediction.
        voxel: Edges of a voxel (i, j, k), in any unit: for thick slices e.g. [1, 1, 5].
        over: What all is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        weight: float = 1.0,
        base: Base = "dice_ce",
        voxel: tuple[float, float, float] = (1.0, 1.0, 1.0),
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        term = _SignedDistance(Parts.of(classes, over, regions), _checked(voxel))
        self.loss = with_base(term, weight, base, classes, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        total: Tensor = self.loss(logits, target)
        return total


@LOSSES.register("hausdorff")
class Hausdorff(nn.Module):
    """A loss of overlap plus the Hausdorff loss of distance transforms (Karimi and Salcudean 2020).

    arXiv:1904.10030, equation 8: the mean over the voxels of the squared error times the sum of
    the distances to the true and to the predicted boundary, each to a power. What is predicted is
    what exceeds one half. A boundary that is not there, in the truth or in the prediction, has no
    distances: then the `base` alone counts.

    Args:
        classes: Number of classes, background included.
        weight: Factor of the Hausdorff loss, the same all through the training.
        base: The loss that it is added to; "none": it stands alone.
        exponent: Of the distances, the paper's alpha.
        normalise: Divide distances by the largest one of the patch, so that the loss lies in 0 to
            2; without, as in the paper, they are in units of `voxel`.
        voxel: Edges of a voxel (i, j, k), in any unit: for thick slices e.g. [1, 1, 5].
        over: What all is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        weight: float = 1.0,
        base: Base = "dice_ce",
        exponent: float = 2.0,
        normalise: bool = True,
        voxel: tuple[float, float, float] = (1.0, 1.0, 1.0),
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_positive(exponent=exponent)
        term = _DistantErrors(
            Parts.of(classes, over, regions), _checked(voxel), exponent, normalise
        )
        self.loss = with_base(term, weight, base, classes, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        total: Tensor = self.loss(logits, target)
        return total


class _SignedDistance(nn.Module):
    def __init__(self, parts: Parts, voxel: VoxelSize) -> None:
        super().__init__()
        self.parts, self.voxel = parts, voxel

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        predicted, truth = self.parts.soft(logits, target)
        inside, outside = distances(truth, known(target), self.voxel)
        # The innermost voxels of the boundary are at distance 0, as in the paper's code.
        signed = outside - (inside - min(self.voxel)).clamp_min(0)
        return _mean(predicted * _bounded(signed), target)


class _DistantErrors(nn.Module):
    def __init__(self, parts: Parts, voxel: VoxelSize, exponent: float, normalise: bool) -> None:
        super().__init__()
        self.parts, self.voxel = parts, voxel
        self.exponent, self.normalise = exponent, normalise

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        predicted, truth = self.parts.soft(logits, target)
        weights = torch.zeros_like(truth)
        for mask in (truth, (predicted.detach() > 0.5).float()):
            inside, outside = distances(mask, known(target), self.voxel)
            distance = inside + outside  # one of them is 0
            weights += (_bounded(distance) if self.normalise else distance) ** self.exponent
        return _mean((predicted - truth).square() * weights, target)


def _checked(voxel: VoxelSize) -> VoxelSize:
    for edge in voxel:
        check_positive(voxel=edge)
    return voxel


def _mean(each: Tensor, target: Tensor) -> Tensor:
    """Over the voxels that count, and the parts."""
    return each.sum() / (known(target).sum() * each.shape[1]).clamp_min(1)


def _bounded(lengths: Tensor) -> Tensor:
    """Divide by the largest distance of each sample and part."""
    return lengths / lengths.abs().amax((2, 3, 4), keepdim=True).clamp_min(1e-6)

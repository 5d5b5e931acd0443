"""Losses of single voxels: cross-entropy, focal loss, and the worst voxels alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.registry import LOSSES
from medseg.training.losses.parts import (
    Over,
    Parts,
    Regions,
    check_class_weights,
    check_not_negative,
    known,
)
from medseg.volumes.dataset import IGNORE_INDEX

_LEAST = 1e-6  # of 1 - p: below, a power under 1 would have an infinite slope


class VoxelEntropy(nn.Module):
    """The cross-entropy of each voxel, (N, parts, I, J, K) float32; 0 at ignored ones.

    Over labels there is one part, the softmax's cross-entropy; over regions each region's binary
    one.

    Args:
        classes: Number of classes, background included.
        class_weights: One weight a class, background first; only over labels.
        over: What it is taken over.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        class_weights: tuple[float, ...] | None = None,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        if class_weights is not None:
            check_class_weights(class_weights, classes)
            if over == "regions":
                raise ValueError("class_weights are of labels: leave them out over regions")
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.weights: Tensor | None
        self.register_buffer("weights", weights, persistent=False)
        self.parts = Parts.of(classes, over, regions) if over == "regions" else None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the map, weighed."""
        return self.weighed(self.plain(logits, target), target)

    def plain(self, logits: Tensor, target: Tensor) -> Tensor:
        """The map without the weights."""
        if self.parts is None:
            each = functional.cross_entropy(
                logits.float(), target, ignore_index=IGNORE_INDEX, reduction="none"
            )
            return each[:, None]
        binary = functional.binary_cross_entropy_with_logits(
            self.parts.logits(logits), self.parts.truth(target), reduction="none"
        )
        return binary.where(known(target), 0.0)

    def weighed(self, each: Tensor, target: Tensor) -> Tensor:
        """Weigh a map by the class of each voxel."""
        if self.weights is None:
            return each
        weights = self.weights[target.where(target != IGNORE_INDEX, 0)]
        return each * weights[:, None]


def _mean(each: Tensor, target: Tensor) -> Tensor:
    """Over the voxels that count, and the parts."""
    return each.sum() / (known(target).sum() * each.shape[1]).clamp_min(1)


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean cross-entropy over the voxels; over regions, the mean of each region's binary one.

    Args:
        classes: Number of classes, background included.
        class_weights: One weight a class, background first; only over labels.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        class_weights: tuple[float, ...] | None = None,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        self.entropy = VoxelEntropy(classes, class_weights, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        if self.entropy.parts is not None:
            return _mean(self.entropy(logits, target), target)
        loss = functional.cross_entropy(  # in one go: no map is kept
            logits.float(),
            target,
            self.entropy.weights,
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return loss / (target != IGNORE_INDEX).sum().clamp_min(1)


@LOSSES.register("focal")
class Focal(nn.Module):
    """Cross-entropy that voxels which are right already hardly count in (Lin et al. 2017).

    Each voxel's is multiplied by (1 - p)^gamma, p the probability of what is true there
    (arXiv:1708.02002, equation 4; the weights are its alpha). Over regions, each region's binary
    cross-entropy is. The mean is over the voxels; MONAI's is over the classes too, so smaller.

    Args:
        classes: Number of classes, background included.
        gamma: The exponent; 0 is the cross-entropy.
        class_weights: One weight a class, background first; only over labels.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.
    """

    def __init__(
        self,
        classes: int,
        gamma: float = 2.0,
        class_weights: tuple[float, ...] | None = None,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        check_not_negative(gamma=gamma)
        self.gamma = gamma
        self.entropy = VoxelEntropy(classes, class_weights, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        each = self.entropy.plain(logits, target)
        wrong = -torch.expm1(-each)  # 1 - p, since the entropy is -log p
        each = each * wrong.clamp_min(_LEAST) ** self.gamma
        return _mean(self.entropy.weighed(each, target), target)


@LOSSES.register("topk")
class TopK(nn.Module):
    """Mean cross-entropy of the worst voxels of the batch (Wu et al. 2016, arXiv:1605.06885).

    nnU-Net's TopK loss takes a tenth (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).

    Args:
        classes: Number of classes, background included.
        share: Share of the voxels that count, the worst first.
        class_weights: One weight a class, background first; only over labels.
        over: What it is taken over: the labels, or the regions of `data.classes`.
        regions: For each region its classes; None: each label is one.

    Raises:
        ValueError: The share is not above 0 and at most 1.
    """

    def __init__(
        self,
        classes: int,
        share: float = 0.1,
        class_weights: tuple[float, ...] | None = None,
        over: Over = "labels",
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.share = share
        self.entropy = VoxelEntropy(classes, class_weights, over, regions)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        each = self.entropy(logits, target).mean(1)  # 0, so last of all, where ignored
        most = max(1, int(self.share * target.numel()))
        worst = each.flatten().topk(most).values
        # How many count is known on the device only; asking would make the host wait for it.
        wanted = (self.share * known(target).sum().double()).floor().clamp_min(1).float()
        chosen: Tensor = worst.where(torch.arange(most, device=target.device) < wanted, 0.0)
        return chosen.sum() / wanted

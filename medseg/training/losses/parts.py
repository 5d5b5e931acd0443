"""What every loss starts from: probabilities and truth of the parts that it is taken over.

A part is one label, or a region: several labels together, which regions may share. The network
has one softmax over the labels, so that a region's probability is the sum of its labels'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseg.volumes.dataset import IGNORE_INDEX

Over = Literal["labels", "regions"]
Regions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Parts:
    """The parts that a loss is taken over.

    Args:
        classes: Number of classes, background included.
        members: For each part the classes that belong to it.
    """

    classes: int
    members: Regions

    @classmethod
    def of(
        cls, classes: int, over: Over, regions: Regions | None, *, include_background: bool = False
    ) -> Parts:
        """Choose the parts.

        The mask is one of labels, so each has to be learnt: those that no region tells from
        another one are parts of their own, after the regions.

        Args:
            classes: Number of classes, background included.
            over: Each label a part, or each region.
            regions: For each region its classes; None: each label is one.
            include_background: Whether the background is a part too, the first.

        Raises:
            ValueError: A region is empty, or holds a class twice or one that there is not.
        """
        members: Regions = tuple((label,) for label in range(1, classes))
        if over == "regions" and regions is not None:
            _check(classes, regions)
            members = (*regions, *_untold(classes, regions))
        return cls(classes, (((0,), *members) if include_background else members))

    def __len__(self) -> int:
        return len(self.members)

    def soft(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and truth, (N, parts, I, J, K) float32; both are 0 at ignored voxels."""
        return self._sum(logits.float().softmax(1)) * known(target), self.truth(target)

    def truth(self, target: Tensor) -> Tensor:
        """1 where a voxel belongs to the part, (N, parts, I, J, K) float32; ignored ones do not."""
        labels = torch.arange(self.classes, device=target.device).view(1, -1, 1, 1, 1)
        return self._sum((target[:, None] == labels).float())

    def logits(self, logits: Tensor) -> Tensor:
        """The logit of each part against all else, (N, parts, I, J, K) float32.

        From the logits inside and outside, not from probabilities: no small one is lost.
        """
        logits = logits.float()
        found = []
        for inside in self.members:
            outside = [label for label in range(self.classes) if label not in inside]
            found.append(logits[:, list(inside)].logsumexp(1) - logits[:, outside].logsumexp(1))
        return torch.stack(found, 1)

    def _sum(self, shares: Tensor) -> Tensor:
        first, last = self.members[0][0], self.members[-1][0]
        if self.members == tuple((label,) for label in range(first, last + 1)):
            return shares[:, first : last + 1]  # a view: nothing to add
        return torch.stack([shares[:, list(inside)].sum(1) for inside in self.members], 1)


def known(target: Tensor) -> Tensor:
    """Which voxels count, (N, 1, I, J, K)."""
    return (target != IGNORE_INDEX)[:, None]


def summed_axes(batch: bool) -> tuple[int, ...]:
    """The axes that a ratio's sums run over: the voxels, and the samples if `batch`."""
    return (0, 2, 3, 4) if batch else (2, 3, 4)


def check_positive(**values: float) -> None:
    """Refuse an option that is not above 0.

    Raises:
        ValueError: With its name and value.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def check_not_negative(**values: float) -> None:
    """Refuse an option below 0.

    Raises:
        ValueError: With its name and value.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_class_weights(weights: Sequence[float], classes: int) -> None:
    """Refuse weights of another number of classes.

    Raises:
        ValueError: With both numbers.
    """
    if len(weights) != classes:
        raise ValueError(f"{len(weights)} class_weights for {classes} classes")


def _check(classes: int, regions: Regions) -> None:
    for region in regions:
        if (
            not region
            or len(set(region)) < len(region)
            or not 0 < min(region) <= max(region) < classes
        ):
            raise ValueError(
                f"a region holds classes of 1 to {classes - 1}, each once, got {region}"
            )


def _untold(classes: int, regions: Regions) -> Regions:
    """The labels that the regions do not tell from another one, or from background."""
    members = [tuple(label in region for region in regions) for label in range(classes)]
    return tuple((label,) for label in range(1, classes) if members.count(members[label]) > 1)

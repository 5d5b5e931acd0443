"""One loss of all of a network's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


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

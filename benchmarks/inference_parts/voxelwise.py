"""A network that takes no memory of its own to speak of: each voxel's logits depend on it alone.

So what a prediction takes is what the sliding window takes. A plugin of medseg's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.registry import NETWORKS


@NETWORKS.register("benchmark_voxelwise")
class Voxelwise(nn.Module):
    """Class k is the likeliest where the input lies nearest to k.

    Args:
        in_channels: Channels of the input; the first is used.
        classes: Channels of the logits.
        kind: "linear": the logit of class k is 2 k x - k^2, a new tensor. "view": the input
            itself for every class, a view that takes no memory.
    """

    def __init__(
        self,
        in_channels: int,  # noqa: ARG002 (as any network is built)
        classes: int,
        *,
        kind: Literal["linear", "view"] = "linear",
    ) -> None:
        super().__init__()
        self.classes, self.kind = classes, kind
        self.register_buffer("centres", torch.arange(classes).float().view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to logits (N, classes, I, J, K)."""
        x = x[:, :1]
        if self.kind == "view":
            return x.expand(-1, self.classes, -1, -1, -1)
        centres: Tensor = self.centres
        return (x * (2 * centres)).sub_(centres**2)

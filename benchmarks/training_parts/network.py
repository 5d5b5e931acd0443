"""medseg's network as the peers know networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Outputs(nn.Module):
    """All outputs in a list, finest first, in fp32.

    Args:
        network: Of medseg.
        precision: "fp32" or "bf16": that of torch's autocast.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.is_bf16 = network, precision == "bf16"

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, C, I, J, K) to logits of all levels."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            outputs = self.network(x)
        return [output.float() for output in outputs]

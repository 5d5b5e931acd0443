"""Layers of torch's own that keep the layout and the precision of what they are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation that keeps a channels-last layout.

    Torch's own copies such an input to the default layout, and each convolution behind it back
    again. Torch's other norms keep it, but sum in float32 what they should not: on a CPU they are
    off by 1e-3 of a deviation on maps of 96^3 voxels, which is far below a bfloat16's last bit, and
    too much for float32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, I, J, K)."""
        if not x.is_contiguous(memory_format=torch.channels_last_3d) or x.is_contiguous():
            return super().forward(x)
        if x.dtype == torch.float32 and x.requires_grad:
            return super().forward(x)
        one = self._exactly if x.dtype == torch.float32 else self._as_batch
        samples = [one(sample) for sample in torch.split(x, 1)]
        return samples[0] if len(samples) == 1 else torch.cat(samples)

    def _as_batch(self, x: Tensor) -> Tensor:
        """One sample: its statistics are those of a batch of one."""
        return nn.functional.batch_norm(
            x, None, None, self.weight, self.bias, training=True, eps=self.eps
        )

    def _exactly(self, x: Tensor) -> Tensor:
        """One sample: statistics of its planes, put together in float64."""
        planes = x.permute(0, 2, 3, 4, 1).reshape(x.shape[2], -1, x.shape[1])  # a view
        mean = planes.mean(1).double().mean(0).to(x)
        squares = torch.stack([(plane - mean).square_().mean(0) for plane in planes])
        variance = squares.double().mean(0).to(x)
        return nn.functional.batch_norm(
            x, mean, variance, self.weight, self.bias, training=False, eps=self.eps
        )


class MeanPool(nn.AvgPool3d):
    """Mean of the voxels of each block, in any layout and precision.

    Torch's own knows neither channels-last nor, on a CPU, bfloat16.

    Args:
        stride: Voxels of a block (i, j, k); they divide the size.
    """

    def __init__(self, stride: tuple[int, int, int]) -> None:
        super().__init__(stride)
        self.steps = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to (N, C, I / i, J / j, K / k)."""
        for axis, step in enumerate(self.steps, 2):
            if step > 1:
                parts = x.view(*x.shape[:axis], -1, step, *x.shape[axis + 1 :]).unbind(axis + 1)
                x = sum(parts[1:], parts[0])
        return x / math.prod(self.steps)


def channels_last(network: nn.Module) -> None:
    """Turn the kernels of 3D convolutions; torch's own way refuses networks that have 2D ones."""
    for parameter in network.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

"""A way round a fault in the CPU library that computes convolutions in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShortAxesInFloat32(nn.Conv3d):
    """A 3D convolution that computes in float32 where a map on the CPU is shorter than its kernel.

    oneDNN 3.12, which torch 2.13 uses, takes memory that nobody wrote for the gradient of such a
    kernel in bfloat16 (seen along the first axis: 2 voxels under a kernel 3 long, 3 or 4 under one
    5 long): gradients change from run to run, are NaN now and then, or memory is corrupted. Such
    maps are a few voxels long, so float32 costs nothing there.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pairs = zip(x.shape[2:], weight.shape[2:], strict=True)
        if x.device.type != "cpu" or all(length >= kernel for length, kernel in pairs):
            return super()._conv_forward(x, weight, bias)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            return super()._conv_forward(x.float(), weight, bias)  # type: ignore[no-any-return]

    @classmethod
    def adopt(cls, network: nn.Module) -> None:
        """Make every plain 3D convolution of a network one of these; its weights stay."""
        for module in network.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = cls

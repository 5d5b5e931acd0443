"""Parts of DeepMedic (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004), as in code 0.8.4.

Nothing here pads an image: convolutions are valid, so a layer's output is smaller than its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.blocks import ONE, Triple

Sampling = Literal["pick", "mean"]

_SLOPE = 0.01  # of a PReLU at first
_SLAB = 1 << 20  # numbers


class Layer(nn.Module):
    """Batch norm, PReLU, dropout, valid convolution; in place of norm and PReLU, a bias.

    The order is that of He et al. 2016 (arXiv:1603.05027), the convolution's start that of He et
    al. 2015 (arXiv:1502.01852): deviation sqrt(2 / inputs).

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        kernel: Of the convolution, per axis; odd.
        raw: Whether the input is the image itself, which is neither normalised nor rectified.
        dropout: Probability of dropping a number of the convolution's input.
        is_last: Whether the output are logits: they get a bias, and full precision in prediction.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: Triple,
        *,
        raw: bool = False,
        dropout: float = 0.0,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        self.raw, self.is_last = raw, is_last
        if raw:
            self.bias = nn.Parameter(torch.zeros(width_in))
        else:
            self.norm = nn.BatchNorm3d(width_in)
            self.activation = nn.PReLU(width_in, _SLOPE)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv3d(width_in, width, kernel, bias=is_last)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / self.conv.weight[0].numel()))
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def before(self, x: Tensor) -> Tensor:
        """What the convolution sees, of the input's shape."""
        if self.raw:
            return self.dropout(x + self.bias.view(-1, 1, 1, 1))  # type: ignore[no-any-return]
        return self.dropout(rectified(self.norm(x), self.activation.weight))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I - i + 1, ...) for a kernel (i, j, k)."""
        x = self.before(x)
        if self.training or not self.is_last:
            return self.conv(x)  # type: ignore[no-any-return]
        # Logits rounded to bfloat16 are often equal: two fifths of the labels that it changes.
        with torch.autocast(x.device.type, enabled=False):
            slabs = _slabs(x) if self.conv.kernel_size == ONE else [x]
            return torch.cat([self.conv(slab.to(self.conv.weight.dtype)) for slab in slabs], 2)


def _slabs(x: Tensor) -> Sequence[Tensor]:
    """Parts of maps along their first axis: what is made of one after another stays small."""
    return x.chunk(-(-x.numel() // _SLAB), 2)


def rectified(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU of what nothing else reads: in prediction it may be changed in place.

    For bfloat16 on a CPU, Torch's own takes four times as long as these steps. Slab by slab, what
    they need beside the maps stays small.
    """
    slope = slope.to(x.dtype)
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16:
        return functional.prelu(x, slope)
    for slab in _slabs(x):
        below = slab.clamp_max(0).mul_(slope.view(-1, 1, 1, 1))
        slab.clamp_min_(0).add_(below)
    return x


class Residuals(nn.Module):
    """Layers one after another; some add what entered the layer before them.

    What is added is cropped at its centre; channels that it lacks are 0, those too many left out.

    Args:
        layers: The layers.
        residual: Which of them add something, counted from 1; 2 or more.
    """

    def __init__(self, layers: Sequence[nn.Module], residual: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.residual = frozenset(residual)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to the last layer's output."""
        inputs: list[Tensor] = []
        for number, layer in enumerate(self.layers, 1):
            inputs.append(x)
            x = layer(x)
            if number in self.residual:
                x = add_centre(x, inputs[number - 2])
        return x


def add_centre(x: Tensor, other: Tensor) -> Tensor:
    """X plus the centre of an equal or larger tensor, in as many channels as both have."""
    for axis in (2, 3, 4):
        start = (other.shape[axis] - x.shape[axis]) // 2
        other = other.narrow(axis, start, x.shape[axis])
    width, mine = other.shape[1], x.shape[1]
    if width >= mine:
        return x + other[:, :mine]
    return torch.cat([x[:, :width] + other, x[:, width:]], 1)


def sample(x: Tensor, factor: Triple, first: Triple, count: Triple, sampling: Sampling) -> Tensor:
    """A coarser image: of each block of `factor` voxels its first one, or the mean.

    Args:
        x: (N, C, I, J, K).
        factor: Voxels of a block, per axis.
        first: Where the first block begins.
        count: Blocks per axis.
        sampling: "pick" or "mean".
    """
    for axis, (start, step, number) in enumerate(zip(first, factor, count, strict=True), 2):
        length = (number - 1) * step + (1 if sampling == "pick" else step)
        x = x.narrow(axis, start, length)
    if sampling == "mean" and factor != ONE:
        x = functional.avg_pool3d(x, factor)
    else:
        i, j, k = factor
        x = x[:, :, ::i, ::j, ::k]
    # Convolutions on a CPU are faster with channels last, and keep that layout to the end.
    return x.contiguous(memory_format=torch.channels_last_3d)

"""Parts of DeepMedic (Kamnitsas et al. 2017, doi:10.1016/j.media.2016.10.004), as code 0.8.4 has them.

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
Edges = Literal["reflect", "context"]

_SLOPE = 0.01  # of a PReLU at first


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
        bias: Whether the convolution adds one.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: Triple,
        *,
        raw: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.raw = raw
        if raw:
            self.bias = nn.Parameter(torch.zeros(width_in))
        else:
            self.norm = nn.BatchNorm3d(width_in)
            self.activation = nn.PReLU(width_in, _SLOPE)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv3d(width_in, width, kernel, bias=bias)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / self.conv.weight[0].numel()))
        if bias:
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def before(self, x: Tensor) -> Tensor:
        """What the convolution sees, of the input's shape."""
        if self.raw:
            return self.dropout(x + self.bias.view(-1, 1, 1, 1))  # type: ignore[no-any-return]
        return self.dropout(self.activation(self.norm(x)))  # type: ignore[no-any-return]

    def part_before(self, x: Tensor, channels: slice) -> Tensor:
        """`before` of some of the channels only; in evaluation, of a layer that is not raw."""
        norm = self.norm
        mean, variance, weight, bias = (
            item[channels] for item in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        x = functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, norm.eps)
        return functional.prelu(x, self.activation.weight[channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I - i + 1, ...) for a kernel (i, j, k)."""
        return self.conv(self.before(x))  # type: ignore[no-any-return]


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
        return self.after(x, ())

    def after(self, x: Tensor, entered: Sequence[Tensor]) -> Tensor:
        """The output of the layers that follow the first `len(entered)`.

        Args:
            x: The output of the last layer that was applied; the image, if none was.
            entered: What entered each layer that was applied.
        """
        inputs = list(entered)
        for number, layer in enumerate(self.layers[len(inputs) :], len(inputs) + 1):
            inputs.append(x)
            x = layer(x)
            if number in self.residual:
                x = add_centre(x, inputs[number - 2])
        return x


def add_centre(x: Tensor, other: Tensor) -> Tensor:
    """X plus the centre of a tensor that is as large or larger, in as many channels as both have."""
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
    """
    for axis, (start, step, number) in enumerate(zip(first, factor, count, strict=True), 2):
        length = (number - 1) * step + (1 if sampling == "pick" else step)
        x = x.narrow(axis, start, length)
    if factor == ONE:
        return x
    if sampling == "mean":
        return functional.avg_pool3d(x, factor)
    i, j, k = factor
    return x[:, :, ::i, ::j, ::k]


def repeat(x: Tensor, factor: Triple, first: Triple, size: Triple) -> Tensor:
    """Each voxel repeated to a block of `factor` voxels; of these, `size` voxels from `first`."""
    for axis, (step, start, length) in enumerate(zip(factor, first, size, strict=True), 2):
        if step > 1:
            x = x.repeat_interleave(step, axis)
        x = x.narrow(axis, start, length)
    return x


def repeated_kernel(kernel: Tensor, factor: Triple) -> Tensor:
    """The kernel of a transposed convolution that repeats by `factor`, then convolves.

    Convolving a map of equal blocks multiplies and adds the same numbers again and again; with
    this kernel, stride `factor`, each is multiplied once.

    Args:
        kernel: (out, in, i, j, k).

    Returns:
        (in, out, I + i - 1, J + j - 1, K + k - 1) for a factor (I, J, K).
    """
    mirrored = kernel.flip((2, 3, 4)).transpose(0, 1)
    pads = [factor[axis] - 1 for axis in (2, 2, 1, 1, 0, 0)]
    return functional.avg_pool3d(functional.pad(mirrored, pads), factor, 1, divisor_override=1)


def pad_edges(x: Tensor, widths: Triple) -> Tensor:
    """Mirror both ends of each axis; an axis that is too short for it repeats its ends."""
    for axis, width in enumerate(widths):
        if width:
            pads = [0] * 6
            pads[4 - 2 * axis] = pads[5 - 2 * axis] = width
            mode = "reflect" if x.shape[2 + axis] > width else "replicate"
            x = functional.pad(x, pads, mode=mode)
    return x

"""The joint layers of DeepMedic, over the maps of pathways at several resolutions.

A coarse map's voxel stands for a block of fine ones, to which it is repeated. In evaluation this is
never done in full: see `Join`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.blocks import ONE, Triple
from medseg_plugins.deepmedic_blocks import Layer, add_centre

Edges = Literal["reflect", "context"]


class Joint(nn.Module):
    """Layers over all pathways' maps; some add what entered the layer before them.

    Args:
        join: The first layer.
        layers: The others.
        residual: Which of all add something, counted from 1; 2 or more.
    """

    def __init__(self, join: Join, layers: Sequence[Layer], residual: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([join, *layers])
        self.residual = frozenset(residual)

    def forward(self, maps: Sequence[Tensor], size: Triple) -> Tensor:
        """Map the pathways' maps to (N, width of the last layer, *size)."""
        join = cast(Join, self.layers[0])
        x = join(maps, size)
        inputs: list[Tensor] = []
        for number, layer in enumerate(self.layers[1:], 2):
            inputs.append(x)
            x = layer(x)
            if number in self.residual:
                x = join.add(x, maps, size) if number == 2 else add_centre(x, inputs[number - 3])
        return x


class Join(Layer):
    """Norm, PReLU, dropout and a convolution over maps of several resolutions.

    In training, coarse maps are repeated and all put together. In evaluation they stay as they are:
    a convolution over several maps is the sum of one over each, norm and PReLU do the same to all
    voxels of a block, and repeating and convolving is one transposed convolution, which multiplies
    each coarse voxel once where a block would be multiplied voxel by voxel. The results are equal
    but for rounding.

    Args:
        widths: Channels of each pathway's maps.
        width: Channels of the output.
        kernel: Of the convolution, 1 or 3 per axis.
        factors: Voxels of a block, of each pathway, per axis; the first 1.
        edges: What the kernel sees beyond the patch: "reflect", the fine maps mirrored, or
            "context", maps of one block more on either side.
        dropout: Probability of dropping a number of the convolution's input.
        bias: Whether the convolution adds one.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        kernel: Triple,
        *,
        factors: Sequence[Triple],
        edges: Edges,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__(sum(widths), width, kernel, dropout=dropout, bias=bias)
        self.widths, self.factors, self.edges = tuple(widths), tuple(factors), edges
        i, j, k = (length // 2 for length in kernel)
        self.rim: Triple = (i, j, k)
        self.seen: Triple = self.rim if edges == "context" else (0, 0, 0)

    def forward(self, maps: Sequence[Tensor], size: Triple) -> Tensor:  # type: ignore[override]
        """Map (N, widths[p], ...) of each pathway p to (N, width, *size).

        Args:
            maps: Of `seen` voxels or blocks before the patch, of all its blocks, and of those
                behind it in which `seen` voxels lie.
            size: Voxels of the patch.
        """
        if self.training or not self._blocks_fit(size):
            x = self.before(self._fine(maps, size))
            return self.conv(self._edged(x))  # type: ignore[no-any-return]
        out: Tensor | None = None
        for x, factor, channels in zip(maps, self.factors, self._channels(), strict=True):
            ready, kernel = self._part_before(x, channels), self.conv.weight[:, channels]
            if factor == ONE:
                part = functional.conv3d(self._edged(ready), kernel)
            else:
                part = self._coarse_part(ready, kernel, factor, size)
            out = part if out is None else out.add_(part)
        assert out is not None
        return out if self.conv.bias is None else out.add_(self.conv.bias.view(-1, 1, 1, 1))

    def add(self, x: Tensor, maps: Sequence[Tensor], size: Triple) -> Tensor:
        """X plus the maps at the fine resolution, in as many channels as both have."""
        if self.training:
            return add_centre(x, self._fine(maps, size))
        for part, factor, channels in zip(maps, self.factors, self._channels(), strict=True):
            mine = x[:, channels]
            _add_blocks(mine, part[:, : mine.shape[1]], factor, self.seen)
        return x

    def _channels(self) -> Iterator[slice]:
        start = 0
        for width in self.widths:
            yield slice(start, start + width)
            start += width

    def _fine(self, maps: Sequence[Tensor], size: Triple) -> Tensor:
        """All maps at the fine resolution: of the patch and of `seen` voxels around it."""
        whole = _triple(n + 2 * seen for n, seen in zip(size, self.seen, strict=True))
        parts = []
        for part, factor in zip(maps, self.factors, strict=True):
            first = _triple((step - 1) * seen for step, seen in zip(factor, self.seen, strict=True))
            parts.append(repeated(part, factor, first, whole))
        return torch.cat(parts, 1)

    def _edged(self, x: Tensor) -> Tensor:
        """Fine maps with what the kernel sees beyond the patch."""
        return mirrored(x, self.rim) if self.edges == "reflect" else x

    def _blocks_fit(self, size: Triple) -> bool:
        """Whether what is mirrored at the patch's edges always lies in the edge's own block."""
        return self.edges == "context" or not any(
            step > 1 and rim and n % step == 1
            for factor in self.factors
            for n, step, rim in zip(size, factor, self.rim, strict=True)
        )

    def _part_before(self, x: Tensor, channels: slice) -> Tensor:
        """`before` of some of the channels, in evaluation."""
        norm, slope = self.norm, self.activation.weight
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        x = functional.batch_norm(
            x, mean[channels], variance[channels], norm.weight[channels], norm.bias[channels],
            eps=norm.eps,
        )  # fmt: skip
        return functional.prelu(x, slope[channels])

    def _coarse_part(self, x: Tensor, kernel: Tensor, factor: Triple, size: Triple) -> Tensor:
        """Coarse maps repeated and convolved, in one step."""
        pads = [more for seen in self.seen[::-1] for more in (1 - seen, 1)]
        x = functional.pad(x, pads, mode="replicate")
        fine = functional.conv_transpose3d(x, repeating(kernel, factor), stride=factor)
        for axis, (step, rim, n) in enumerate(zip(factor, self.rim, size, strict=True), 2):
            fine = fine.narrow(axis, step + rim, n)
        return fine


def repeating(kernel: Tensor, factor: Triple) -> Tensor:
    """The kernel of a transposed convolution that repeats by `factor`, then convolves.

    Args:
        kernel: (out, in, i, j, k) of the convolution.
        factor: (I, J, K) of the repetition, which becomes the stride.

    Returns:
        (in, out, I + i - 1, J + j - 1, K + k - 1): each number is the sum of those of the kernel
        that see the same block.
    """
    kernel = kernel.transpose(0, 1)
    for axis, step in enumerate(factor, 2):
        length = kernel.shape[axis]
        shifts = [
            functional.pad(
                kernel.select(axis, length - 1 - tap).unsqueeze(axis).expand(
                    *kernel.shape[:axis], step, *kernel.shape[axis + 1 :]
                ),
                [0, 0] * (4 - axis) + [tap, length - 1 - tap],
            )
            for tap in range(length)
        ]  # fmt: skip
        kernel = torch.stack(shifts).sum(0)
    return kernel


def repeated(x: Tensor, factor: Triple, first: Triple, size: Triple) -> Tensor:
    """Each voxel repeated to a block of `factor` voxels; of these, `size` voxels from `first`."""
    for axis, (step, start, n) in enumerate(zip(factor, first, size, strict=True), 2):
        x = (x.repeat_interleave(step, axis) if step > 1 else x).narrow(axis, start, n)
    return x


def _add_blocks(x: Tensor, part: Tensor, factor: Triple, seen: Triple) -> None:
    """Add coarse maps to fine ones in place, each voxel to its block."""
    size = _triple(x.shape[2:])
    if any(n % step for n, step in zip(size, factor, strict=True)):
        x += repeated(part, factor, _triple(f * s for f, s in zip(factor, seen, strict=True)), size)
        return
    for axis in (4, 3, 2):  # each becomes two, of blocks and within a block
        step, before = factor[axis - 2], seen[axis - 2]
        part = part.narrow(axis, before, x.shape[axis] // step).unsqueeze(axis + 1)
        x = x.unflatten(axis, (-1, step))
    x += part


def mirrored(x: Tensor, widths: Triple) -> Tensor:
    """Both ends of each axis mirrored; an axis that is too short for that repeats its ends."""
    for axis, width in enumerate(widths):
        if width:
            pads = [0, 0] * (2 - axis) + [width, width] + [0, 0] * axis
            mode = "reflect" if x.shape[2 + axis] > width else "replicate"
            x = functional.pad(x, pads, mode=mode)
    return x


def _triple(numbers: Iterable[int]) -> Triple:
    i, j, k = numbers
    return i, j, k

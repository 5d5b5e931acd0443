"""The joint layers of DeepMedic, over the maps of pathways at several resolutions.

A coarse map's voxel stands for a block of fine ones, to which it is repeated. In evaluation this is
never done in full: see `Join`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.blocks import Triple
from medseg_plugins.deepmedic_blocks import Layer, add_centre, rectified

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
        x: Tensor = join(maps, size)
        if self.training or not join.is_filled(size):
            return self._others(x, maps, size)
        # Slab by slab: the others see a voxel at a time, and small maps stay in the cache.
        n, j, k = size
        step = math.lcm(*(factor[0] for factor in join.factors))
        slabs = []
        for start in range(0, n, step):
            parts = [
                part.narrow(2, start // factor[0], step // factor[0] + 2 * join.seen[0])
                for part, factor in zip(maps, join.factors, strict=True)
            ]
            slabs.append(self._others(x.narrow(2, start, step), parts, (step, j, k)))
        return torch.cat(slabs, 2)

    def _others(self, x: Tensor, maps: Sequence[Tensor], size: Triple) -> Tensor:
        """What the layers after the first make of its output."""
        join = cast(Join, self.layers[0])
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
    voxels of a block, and most voxels of a block see nothing but their block, which then is
    multiplied once. The results are equal but for rounding. (Where blocks do not fill the patch,
    evaluation goes the way of training.)

    Args:
        widths: Channels of each pathway's maps.
        width: Channels of the output.
        kernel: Of the convolution, 1 or 3 per axis.
        factors: Voxels of a block, of each pathway, per axis; the first 1.
        edges: What the kernel sees beyond the patch: "reflect", the fine maps mirrored, or
            "context", maps of one block more on either side.
        dropout: Probability of dropping a number of the convolution's input.
        is_last: Whether the output are logits: they get a bias.
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
        is_last: bool = False,
    ) -> None:
        super().__init__(sum(widths), width, kernel, dropout=dropout, is_last=is_last)
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
        if self.training or not self.is_filled(size):
            x = self.before(self._fine(maps, size))
            return self.conv(self._edged(x))  # type: ignore[no-any-return]
        out: Tensor | None = None
        for x, factor, channels in zip(maps, self.factors, self._channels(), strict=True):
            ready, kernel = self._part_before(x, channels), self.conv.weight[:, channels]
            if out is None:  # the finest maps come first
                out = functional.conv3d(self._edged(ready), kernel, self.conv.bias)
            else:
                self._add_coarse(out, ready, kernel, factor)
        return cast(Tensor, out)

    def add(self, x: Tensor, maps: Sequence[Tensor], size: Triple) -> Tensor:
        """X plus the maps at the fine resolution, in as many channels as both have."""
        if self.training or not self.is_filled(size):
            return add_centre(x, self._fine(maps, size))
        for whole, factor, channels in zip(maps, self.factors, self._channels(), strict=True):
            mine = x[:, channels]
            part = whole[:, : mine.shape[1]]
            for axis, (n, step, seen) in enumerate(zip(size, factor, self.seen, strict=True), 2):
                part = part.narrow(axis, seen, n // step)
            blocks = _in_blocks(mine, factor)
            blocks += part[:, :, :, None, :, None, :, None]
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

    def is_filled(self, size: Triple) -> bool:
        """Whether whole blocks make up the patch."""
        return not any(n % step for f in self.factors for n, step in zip(size, f, strict=True))

    def _part_before(self, x: Tensor, channels: slice) -> Tensor:
        """`before` of some of the channels, in evaluation."""
        norm, slope = self.norm, self.activation.weight
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        x = functional.batch_norm(
            x, mean[channels], variance[channels], norm.weight[channels], norm.bias[channels],
            eps=norm.eps,
        )  # fmt: skip
        return rectified(x, slope[channels])

    def _add_coarse(self, out: Tensor, x: Tensor, kernel: Tensor, factor: Triple) -> None:
        """Add what the kernel makes of coarse maps that are repeated to blocks.

        Voxels of a block that see the same blocks get the same number: along an axis these are the
        first, those between and the last. Each kind is one convolution of the coarse maps.
        """
        if self.edges == "reflect":
            x = mirrored(x, _triple(r * (f == 1) for r, f in zip(self.rim, factor, strict=True)))
            pads = [r * (f > 1) for r, f in zip(self.rim, factor, strict=True) for _ in (0, 1)]
            x = functional.pad(x, pads[::-1], mode="replicate")
        blocks = _in_blocks(out, factor)
        first, second, third = (_kinds(f, r) for f, r in zip(factor, self.rim, strict=True))
        for i in first:
            along_i = i.collapsed(kernel, 2)
            for j in second:
                along_j = j.collapsed(along_i, 3)
                for k in third:
                    part = k.collapsed(along_j, 4)
                    seen = x
                    for axis, kind in enumerate((i, j, k), 2):
                        n = blocks.shape[2 * axis - 2] + part.shape[axis] - 1
                        seen = seen.narrow(axis, kind.start, n)
                    value = functional.conv3d(seen, part)[:, :, :, None, :, None, :, None]
                    blocks[:, :, :, i.places, :, j.places, :, k.places] += value


@dataclass(frozen=True)
class _Kind:
    """Voxels of a block, along one axis, that see the same blocks.

    Args:
        places: Which of the block's voxels.
        start: The first block that they see; 0 is the one before, if the kernel is 3 long.
        taps: For each block that they see, the kernel's taps that fall into it.
    """

    places: slice
    start: int
    taps: tuple[slice, ...]

    def collapsed(self, kernel: Tensor, axis: int) -> Tensor:
        """The kernel with the taps of a block added up."""
        if all(tap.stop - tap.start == 1 for tap in self.taps):
            return kernel
        sums = [kernel.narrow(axis, tap.start, tap.stop - tap.start).sum(axis) for tap in self.taps]
        return torch.stack(sums, axis)


def _kinds(step: int, rim: int) -> list[_Kind]:
    """The kinds of voxels along an axis, for a kernel that is 1 (rim 0) or 3 long (rim 1)."""
    if rim == 0:
        return [_Kind(slice(0, step), 0, (slice(0, 1),))]
    if step == 1:
        return [_Kind(slice(0, 1), 0, (slice(0, 1), slice(1, 2), slice(2, 3)))]
    first = _Kind(slice(0, 1), 0, (slice(0, 1), slice(1, 3)))
    last = _Kind(slice(step - 1, step), 1, (slice(0, 2), slice(2, 3)))
    between = [_Kind(slice(1, step - 1), 1, (slice(0, 3),))] if step > 2 else []
    return [first, *between, last]


def _in_blocks(x: Tensor, factor: Triple) -> Tensor:
    """(N, C, I, J, K) seen as (N, C, I / i, i, J / j, j, K / k, k)."""
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (-1, factor[axis - 2]))  # type: ignore[no-untyped-call]
    return x


def repeated(x: Tensor, factor: Triple, first: Triple, size: Triple) -> Tensor:
    """Each voxel repeated to a block of `factor` voxels; of these, `size` voxels from `first`."""
    for axis, (step, start, n) in enumerate(zip(factor, first, size, strict=True), 2):
        x = (x.repeat_interleave(step, axis) if step > 1 else x).narrow(axis, start, n)
    return x


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

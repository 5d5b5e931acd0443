"""GoogLeNet encoder in 3D: inception modules (Szegedy et al. 2015, arXiv:1409.4842)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, THREE, TWO, Activation, ConvNormAct, Norm, Triple
from medseg.networks.stages import cumulative, flatten, halving, per_stage
from medseg.registry import ENCODERS


class Widths(NamedTuple):
    """Filters of one module: a row of the paper's Table 1."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int

    @property
    def out(self) -> int:
        """Channels of the module's output."""
        return self.one + self.three + self.five + self.pool

    def scaled(self, width: float) -> Widths:
        """The same row with every number multiplied by `width`, at least 1."""
        return Widths(*(max(1, round(width * number)) for number in self))


# Table 1 of the paper: the modules of its stages 3, 4 and 5.
MODULES: tuple[dict[str, Widths], ...] = (
    {
        "3a": Widths(64, 96, 128, 16, 32, 32),
        "3b": Widths(128, 128, 192, 32, 96, 64),
    },
    {
        "4a": Widths(192, 96, 208, 16, 48, 64),
        "4b": Widths(160, 112, 224, 24, 64, 64),
        "4c": Widths(128, 128, 256, 24, 64, 64),
        "4d": Widths(112, 144, 288, 32, 64, 64),
        "4e": Widths(256, 160, 320, 32, 128, 128),
    },
    {
        "5a": Widths(256, 160, 320, 32, 128, 128),
        "5b": Widths(384, 192, 384, 48, 128, 128),
    },
)
STEM = (64, 64, 192)  # Table 1: 7x7/2; 1x1 reduction and 3x3 of the second convolution
LEVELS = 2 + len(MODULES)


@ENCODERS.register("inception")
class InceptionEncoder(nn.Module):
    """GoogLeNet up to module 5b, without its classifiers; five levels, each before a pooling.

    Local response normalisation is replaced by `norm`.

    Args:
        in_channels: Channels of the input.
        width: Factor on all widths of the paper.
        levels: How many of the five levels are kept: conv1, conv2, 3b, 4e, 5b.
        strides: Step before each level, per axis: that of conv1, then the poolings. Null: 2s, as in
            the paper; `[1, 1, 1]` first keeps small volumes whole.
        kernels: Kernel of each level, per axis: 3, or 1 along an axis in which all filters and
            poolings of the level are flat (the 5 and 7 long ones too). Null: 3x3x3.
        norm: Normalisation behind each convolution; the paper has "none" there.
        activation: Non-linearity.
    """

    def __init__(
        self,
        in_channels: int,
        width: float = 1.0,
        levels: int = 5,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if not 2 <= levels <= LEVELS:
            raise ConfigError(f"inception has 2 to {LEVELS} levels, got {levels}", ("levels",))
        steps = per_stage("strides", strides, halving(levels, first=TWO))
        kernel_list = per_stage("kernels", kernels, [THREE] * levels)
        self.strides = cumulative(steps)

        def layer(width_in: int, width: int, kernel: Triple, stride: Triple = ONE) -> ConvNormAct:
            return ConvNormAct(width_in, width, kernel, stride, norm=norm, activation=activation)

        first, reduce, second = (max(1, round(width * number)) for number in STEM)
        self.conv1 = layer(in_channels, first, flatten(kernel_list[0], 7), steps[0])
        self.conv2 = nn.Sequential(
            _pool(kernel_list[1], steps[1]),
            layer(first, reduce, ONE),
            layer(reduce, second, flatten(kernel_list[1], 3)),
        )
        channels = [first, second]
        self.stages = nn.ModuleList()
        for modules, step, kernel in zip(
            MODULES[: levels - 2], steps[2:], kernel_list[2:], strict=True
        ):
            stage, width_in = nn.Sequential(_pool(kernel, step)), channels[-1]
            for name, row in modules.items():
                widths = row.scaled(width)
                stage.add_module(name, Inception(width_in, widths, kernel, norm, activation))
                width_in = widths.out
            self.stages.append(stage)
            channels.append(width_in)
        self.channels = tuple(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per level, finest first."""
        levels = [x := self.conv1(x), x := self.conv2(x)]
        return levels + [x := stage(x) for stage in self.stages]


class Inception(nn.Module):
    """Four branches side by side: 1, reduced 3, reduced 5 and pooled (paper, Figure 2b)."""

    def __init__(
        self, width_in: int, widths: Widths, kernel: Triple, norm: Norm, activation: Activation
    ) -> None:
        super().__init__()

        def layer(width_in: int, width: int, length: int) -> ConvNormAct:
            shape = flatten(kernel, length)
            return ConvNormAct(width_in, width, shape, norm=norm, activation=activation)

        self.branches = nn.ModuleList(
            [
                layer(width_in, widths.one, 1),
                nn.Sequential(
                    layer(width_in, widths.three_reduce, 1),
                    layer(widths.three_reduce, widths.three, 3),
                ),
                nn.Sequential(
                    layer(width_in, widths.five_reduce, 1),
                    layer(widths.five_reduce, widths.five, 5),
                ),
                nn.Sequential(_pool(kernel, ONE), layer(width_in, widths.pool, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to the branches' channels, one after the other."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _pool(kernel: Triple, stride: Triple) -> nn.MaxPool3d:
    """A 3x3x3 max pooling that keeps the grid or divides it; flat where nothing is to be pooled."""
    i, j, k = (3 if n > 1 or s > 1 else 1 for n, s in zip(kernel, stride, strict=True))
    return nn.MaxPool3d((i, j, k), stride, (i // 2, j // 2, k // 2))

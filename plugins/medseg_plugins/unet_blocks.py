"""The two paths of a U-Net, for networks that differ in widths and in how they go up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Activation, ConvNormAct, Norm, Triple
from medseg.networks.stages import halving, per_stage

Widths = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Style:
    """What all convolutions of one network share."""

    norm: Norm
    activation: Activation
    dropout: float = 0.0

    def convs(self, width_in: int, widths: Sequence[int], kernel: Triple) -> nn.Sequential:
        """Convolutions of these widths, one behind the other; dropout behind the last."""
        layers = [
            ConvNormAct(before, width, kernel, norm=self.norm, activation=self.activation)
            for before, width in zip((width_in, *widths[:-1]), widths, strict=True)
        ]
        return nn.Sequential(*layers, *([nn.Dropout3d(self.dropout)] if self.dropout else []))


def own_grid(strides: Sequence[Triple] | None, levels: int) -> tuple[Triple, ...]:
    """Steps into each level: what was given, or 1 and then 2s.

    Raises:
        ConfigError: Their number is wrong, or the first level would not have the input's grid.
    """
    steps = per_stage("strides", strides, halving(levels))
    if steps[0] != ONE:
        raise ConfigError(
            f"the first level has the input's grid: its step is (1, 1, 1), got {steps[0]}",
            ("strides",),
        )
    return steps


class UPath(nn.Module):
    """Down by max pooling and up again, with the maps of each level joined on the way up.

    Args:
        in_channels: Channels of the input.
        downs: Widths of each level's convolutions downwards, finest level first.
        ups: Those upwards, finest level first, one level less.
        steps: Step into each level.
        kernels: Kernel of each level's convolutions.
        style: Norm, non-linearity and dropout.
        upsample: (channels, step) to the module that goes up by this step, channels kept.
    """

    def __init__(
        self,
        in_channels: int,
        downs: Widths,
        ups: Widths,
        steps: Sequence[Triple],
        kernels: Sequence[Triple],
        style: Style,
        upsample: Callable[[int, Triple], nn.Module],
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Identity() if step == ONE else nn.MaxPool3d(step) for step in steps
        )
        befores = (in_channels, *[widths[-1] for widths in downs])
        self.downs = nn.ModuleList(
            style.convs(before, widths, kernel)
            for before, widths, kernel in zip(befores, downs, kernels, strict=False)
        )
        self.raises, self.ups = nn.ModuleList(), nn.ModuleList()
        below = downs[-1][-1]
        for level in reversed(range(len(ups))):
            self.raises.append(upsample(below, steps[level + 1]))
            joined = downs[level][-1] + below
            self.ups.append(style.convs(joined, ups[level], kernels[level]))
            below = ups[level][-1]
        self.width = below

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to (N, width, I, J, K)."""
        levels = []
        for pool, down in zip(self.pools, self.downs, strict=True):
            x = down(pool(x))
            levels.append(x)
        for rise, up, skip in zip(self.raises, self.ups, levels[-2::-1], strict=True):
            x = up(torch.cat([skip, rise(x)], 1))
        return x

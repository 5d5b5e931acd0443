"""DLTK's residual units, and the encoder made of them (Pawlowski et al. 2017, arXiv:1711.06853)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medseg.networks.blocks import (
    ONE,
    Activation,
    Norm,
    Triple,
    activation_layer,
    conv,
    norm_layer,
)


@dataclass(frozen=True)
class Style:
    """What all units of one network share."""

    norm: Norm
    activation: Activation
    dropout: float = 0.0

    def before(self, width: int) -> list[nn.Module]:
        """Norm and non-linearity of a sum that the shortcut reads, too: nothing in place."""
        return [norm_layer(self.norm, width), activation_layer(self.activation, inplace=False)]


class ResidualUnit(nn.Module):
    """Norm, non-linearity and convolution, twice, and the unit's input is added (He et al. 2016).

    Along an axis where it steps, the first kernel is twice as long as the step, so that no voxel is
    passed over, and the shortcut is max-pooled. New channels of the shortcut are zeros, half of
    them before the old ones; where the unit narrows, the shortcut is a convolution.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        kernel: Kernel of the convolutions.
        stride: Step of the first.
        style: Norm, non-linearity and dropout.
    """

    def __init__(
        self, width_in: int, width: int, kernel: Triple, stride: Triple, style: Style
    ) -> None:
        super().__init__()
        bias = style.norm == "none"
        drop = [nn.Dropout3d(style.dropout)] if style.dropout else []
        self.body = nn.Sequential(
            *style.before(width_in),
            *_strided(width_in, width, kernel, stride, bias),
            *style.before(width),
            *drop,
            conv(width, width, kernel, bias=bias),
        )
        self.pool: nn.Module = nn.Identity() if stride == ONE else nn.MaxPool3d(stride)
        self.narrow = conv(width_in, width, kernel, bias=bias) if width < width_in else None
        more = max(0, width - width_in)
        self.extra = (more // 2, more - more // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I / i, J / j, K / k)."""
        shortcut: Tensor = self.pool(x)
        if self.narrow is not None:
            shortcut = self.narrow(shortcut)
        if any(self.extra):
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, 0, *self.extra))
        y: Tensor = self.body(x) + shortcut
        return y


class ResidualLevels(nn.Module):
    """A convolution, then residual units at each coarser level; no norm stands behind the sums.

    Args:
        in_channels: Channels of the input.
        widths: Channels of each level, finest first.
        units: Residual units of each level but the first, which is the convolution.
        steps: Step into each level.
        kernels: Kernel of each level.
        style: Norm, non-linearity and dropout.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        units: int,
        steps: Sequence[Triple],
        kernels: Sequence[Triple],
        style: Style,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList([conv(in_channels, widths[0], kernels[0], steps[0])])
        for n in range(1, len(widths)):
            first = ResidualUnit(widths[n - 1], widths[n], kernels[n], steps[n], style)
            more = [
                ResidualUnit(widths[n], widths[n], kernels[n], ONE, style) for _ in range(units - 1)
            ]
            self.levels.append(nn.Sequential(first, *more))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one map per level, finest first."""
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


def upsampling(step: Triple) -> nn.Module:
    """Linear upsampling by a step; at the border, unlike DLTK's, it does not fade."""
    if math.prod(step) == 1:
        return nn.Identity()
    return nn.Upsample(scale_factor=step, mode="trilinear")


def uniform_variance(module: nn.Module) -> None:
    """DLTK's beginning of a convolution: uniform, of variance 1 / fan-in, no bias."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _strided(
    width_in: int, width: int, kernel: Triple, stride: Triple, bias: bool
) -> list[nn.Module]:
    """A convolution 2s long along an axis with step s > 1, padded so that s divides the size."""
    if stride == ONE:
        return [conv(width_in, width, kernel, bias=bias)]
    i, j, k = (2 * s if s > 1 else n for n, s in zip(kernel, stride, strict=True))
    totals = [n - s for n, s in zip((i, j, k), stride, strict=True)]
    pads = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [
        nn.ConstantPad3d((pads[0], pads[1], pads[2], pads[3], pads[4], pads[5]), 0.0),
        nn.Conv3d(width_in, width, (i, j, k), stride, bias=bias),
    ]

"""Blocks of HighRes3DNet and of the networks built on it (Li et al. 2017, arXiv:1707.01992)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Norm, Triple, activation_layer, norm_layer

Nonlinearity = Literal["relu", "leaky_relu", "prelu", "elu"]


@dataclass(frozen=True)
class Style:
    """What all layers of one network share."""

    norm: Norm
    activation: Nonlinearity

    def layers(self, width: int) -> list[nn.Module]:
        """Norm and non-linearity; nothing is done in place, since a shortcut may read it too."""
        # ELU (Clevert et al. 2015, arXiv:1511.07289)
        elu = self.activation == "elu"
        return [
            norm_layer(self.norm, width),
            nn.ELU() if elu else activation_layer(self.activation, inplace=False),  # type: ignore[arg-type]
        ]


def convolution(
    width_in: int,
    width: int,
    kernel: Triple,
    *,
    stride: Triple = ONE,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv3d:
    """A convolution that keeps the grid, or divides it by `stride`; in groups, if wanted.

    Raises:
        ConfigError: A kernel length is even.
    """
    if any(length % 2 == 0 for length in kernel):
        raise ConfigError(f"a kernel's lengths must be odd, got {kernel}", ("kernel",))
    i, j, k = (dilation * (length // 2) for length in kernel)
    return nn.Conv3d(
        width_in, width, kernel, stride, (i, j, k), dilation=dilation, groups=groups, bias=bias
    )


def conv_layer(
    style: Style, width_in: int, width: int, kernel: Triple, stride: Triple = ONE, groups: int = 1
) -> nn.Sequential:
    """Convolution, norm, non-linearity; the convolution has a bias where no norm follows."""
    bias = style.norm == "none"
    conv = convolution(width_in, width, kernel, stride=stride, groups=groups, bias=bias)
    return nn.Sequential(conv, *style.layers(width))


class HighResBlock(nn.Module):
    """Norm, non-linearity and convolution for each kernel, then the block's input is added.

    New channels of the shortcut are zeros, half of them before the old ones and half behind, as in
    NiftyNet; where the block narrows, the shortcut is a 1x1x1 convolution. There are no other
    weights on the shortcut, and nothing behind the sum.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        kernels: Kernel of each convolution.
        style: Norm and non-linearity.
        dilation: Dilation of all convolutions.
        groups: Groups of channels that do not see each other.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        kernels: Sequence[Triple],
        style: Style,
        *,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n, kernel in enumerate(kernels):
            before = width if n else width_in
            layers += style.layers(before)
            layers.append(
                convolution(
                    before,
                    width,
                    kernel,
                    dilation=dilation,
                    groups=groups,
                    bias=style.norm == "none",
                )
            )
        self.body = nn.Sequential(*layers)
        more = max(0, width - width_in)
        self.extra = (more // 2, more - more // 2)
        self.narrow = nn.Conv3d(width_in, width, 1, bias=False) if width < width_in else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I, J, K)."""
        shortcut: Tensor = x if self.narrow is None else self.narrow(x)
        if any(self.extra):
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, 0, *self.extra))
        y: Tensor = self.body(x) + shortcut
        return y


def highres_stage(
    width_in: int, width: int, count: int, kernel: Triple, style: Style, dilation: int
) -> nn.Sequential:
    """So many blocks of two equal convolutions each."""
    widths = (width_in, *[width] * (count - 1))
    return nn.Sequential(
        *[HighResBlock(w, width, (kernel, kernel), style, dilation=dilation) for w in widths]
    )

"""Inception modules in 3D: filters of several lengths side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from medseg.networks.blocks import (
    ONE,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    activation_layer,
    conv,
    max_pool,
    projection_shortcut,
)
from medseg.networks.stages import flatten

Variant = Literal["inception", "naive", "residual", "factorised"]
# Szegedy et al. 2016, arXiv:1602.07261, section 3.3: factors from .1 to .3 keep training stable.
RESIDUAL_SCALE = 0.2
# Layers of the variant "inception", and their names in torchvision and in Caffe's GoogLeNet.
BRANCH_NAMES = {
    "branches.0": ("branch1", "1x1"),
    "branches.1.0": ("branch2.0", "3x3_reduce"),
    "branches.1.1": ("branch2.1", "3x3"),
    "branches.2.0": ("branch3.0", "5x5_reduce"),
    "branches.2.1": ("branch3.1", "5x5"),
    "branches.3.1": ("branch4.1", "pool_proj"),
}


class Widths(NamedTuple):
    """Filters of one module: a row of Table 1 of Szegedy et al. 2014, arXiv:1409.4842."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int


@dataclass(frozen=True)
class Style:
    """What all modules of one encoder have in common.

    Args:
        variant: Kind of module, as the encoder's option says.
        five: Length of the filters that the paper has 5 long.
        norm: Normalisation behind each convolution.
        activation: Non-linearity behind that.
    """

    variant: Variant
    five: Literal[5, 3]
    norm: Norm
    activation: Activation

    def layer(
        self, width_in: int, width: int, kernel: Triple = ONE, stride: Triple = ONE
    ) -> ConvNormAct:
        """Convolution, norm and activation."""
        return ConvNormAct(
            width_in, width, kernel, stride, norm=self.norm, activation=self.activation
        )

    def filters(self, width_in: int, width: int, kernel: Triple) -> nn.Module:
        """One layer, or where factorised a chain with one layer for each axis that is not flat.

        The chain widens in its last layer, as in Figure 6 of Szegedy et al. 2015, arXiv:1512.00567.
        Each layer has its norm and activation: section 3.1 found linear ones always worse.
        """
        axes = [axis for axis in range(3) if kernel[axis] > 1]
        if self.variant != "factorised" or len(axes) < 2:
            return self.layer(width_in, width, kernel)
        chain = nn.Sequential()
        for axis in axes:
            i, j, k = (n if a == axis else 1 for a, n in enumerate(kernel))
            chain.append(self.layer(width_in, width if axis == axes[-1] else width_in, (i, j, k)))
        return chain


class Inception(nn.Module):
    """Four branches, their channels one after the other (arXiv:1409.4842, Figure 2).

    "naive" (Figure 2a) has filters 1, 3 and 5 long and the plain max pooling, all on the input;
    else (Figure 2b) 1x1x1 convolutions narrow the input before the filters and after the pooling.

    Args:
        width_in: Channels of the input.
        widths: Filters of the branches.
        kernel: 3, or 1 along each axis in which all filters and the pooling are flat.
        style: Variant, norm and activation.

    Attributes:
        channels: Channels of the output.
    """

    def __init__(self, width_in: int, widths: Widths, kernel: Triple, style: Style) -> None:
        super().__init__()
        three, five = flatten(kernel, 3), flatten(kernel, style.five)
        pool = max_pool(kernel, ONE)
        one = style.layer(width_in, widths.one)
        if style.variant == "naive":
            last = width_in
            branches: list[nn.Module] = [
                one,
                style.layer(width_in, widths.three, three),
                style.layer(width_in, widths.five, five),
                pool,
            ]
        else:
            last = widths.pool
            branches = [
                one,
                nn.Sequential(
                    style.layer(width_in, widths.three_reduce),
                    style.filters(widths.three_reduce, widths.three, three),
                ),
                nn.Sequential(
                    style.layer(width_in, widths.five_reduce),
                    style.filters(widths.five_reduce, widths.five, five),
                ),
                nn.Sequential(pool, style.layer(width_in, widths.pool)),
            ]
        self.branches = nn.ModuleList(branches)
        self.channels = widths.one + widths.three + widths.five + last

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, channels, I, J, K)."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class ResidualInception(Inception):
    """activation(x + scale * linear 1x1x1 convolution of the branches).

    Inception-ResNet (Szegedy et al. 2016, arXiv:1602.07261, sections 3.2 and 3.3): no norm or
    activation follows the convolution. Where the channels differ, x is projected.
    """

    def __init__(self, width_in: int, widths: Widths, kernel: Triple, style: Style) -> None:
        super().__init__(width_in, widths, kernel, style)
        self.join = conv(self.channels, self.channels, ONE, bias=True)
        self.shortcut = projection_shortcut(width_in, self.channels, ONE, style.norm)
        self.activation = activation_layer(style.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, channels, I, J, K)."""
        y: Tensor = self.shortcut(x) + RESIDUAL_SCALE * self.join(super().forward(x))
        y = self.activation(y)
        return y

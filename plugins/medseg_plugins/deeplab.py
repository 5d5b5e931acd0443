"""DeepLab decoder in 3D (Chen et al. 2017, arXiv:1706.05587; 2018, arXiv:1802.02611)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    activation_layer,
    conv,
    norm_layer,
    resized,
)
from medseg.networks.stages import check_positive
from medseg.registry import DECODERS


@DECODERS.register("deeplab")
class DeepLabDecoder(nn.Module):
    """Atrous spatial pyramid pooling on the coarsest level, refined once at a finer one.

    One level is returned: that of `low_level`. The convolutions are whole, not separable.

    Args:
        channels: The encoder's channels, finest level first.
        strides: The encoder's strides against the input, finest level first.
        width: Channels of each branch and of the returned level; 256 in the paper.
        rates: Dilations of the pyramid's branches, in voxels of the coarsest level. The paper's
            6, 12, 18 are for maps of 33 x 33 pixels (513 at stride 16). A patch of 96 voxels has 12
            at stride 8: there a kernel of rate 12 would see its centre alone, and 2, 4, 6 span as
            much of the map as the paper's.
        low_level: Index of the encoder's level that refines the result, from the finest, 0; the
            paper takes that of stride 4. Null: 1, or 0 with an encoder of two levels: small lesions
            are still seen there, and it is eight times cheaper than at the finest.
        low_width: Channels that level is reduced to, so that it does not outweigh the pyramid; 48
            in the paper.
        kernel: Kernel of the branches and of the refinement, per axis.
        dropout: Probability of dropping a feature map of the pyramid's result.
        norm: Normalisation behind each convolution but those of the image level.
        activation: Non-linearity.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        channels: tuple[int, ...],
        strides: tuple[Triple, ...],
        *,
        width: int = 64,
        rates: tuple[int, ...] = (2, 4, 6),
        low_level: int | None = None,
        low_width: int = 16,
        kernel: Triple = (3, 3, 3),
        dropout: float = 0.0,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        self.low_level = _low_level(low_level, len(channels))
        for option, numbers in (("width", [width]), ("low_width", [low_width]), ("rates", rates)):
            check_positive(option, *numbers)
        self.channels = (width,)
        self.strides = (strides[self.low_level],)
        layer = partial(ConvNormAct, norm=norm, activation=activation)
        self.pyramid = Pyramid(channels[-1], width, rates, kernel, norm, activation)
        self.dropout = nn.Dropout3d(dropout)
        self.reduce = layer(channels[self.low_level], low_width, ONE)
        self.refine = nn.Sequential(
            layer(width + low_width, width, kernel), layer(width, width, kernel)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map the encoder's levels, finest first, to one (N, width, ...), that of `low_level`."""
        low = self.reduce(levels[self.low_level])
        high = self.dropout(self.pyramid(levels[-1]))
        return [self.refine(torch.cat([resized(high, low), low], 1))]


class Pyramid(nn.Module):
    """A 1x1x1 branch, dilated ones and the mean of the whole map, summed up by a convolution.

    The paper's 1x1x1 convolution over all branches is split in two, that of the image level being
    added behind the norm: an instance norm takes out whatever is the same everywhere.

    Args:
        width_in: Channels of the input.
        width: Channels of each branch and of the output.
        rates: Dilations, one per branch.
        kernel: Kernel of the dilated branches, per axis.
        norm: Normalisation of all but the image level, a single voxel without spread.
        activation: Non-linearity.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        rates: tuple[int, ...],
        kernel: Triple,
        norm: Norm,
        activation: Activation,
    ) -> None:
        super().__init__()
        layer = partial(ConvNormAct, width_in, width, norm=norm, activation=activation)
        self.branches = nn.ModuleList(
            [layer(kernel=ONE), *(layer(kernel=kernel, dilation=rate) for rate in rates)]
        )
        self.project = nn.Sequential(
            conv(width * len(self.branches), width, ONE), norm_layer(norm, width)
        )
        self.image = nn.Sequential(
            conv(width_in, width, ONE, bias=True),
            activation_layer(activation),
            conv(width, width, ONE, bias=True),
        )
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I, J, K)."""
        parts = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        y: Tensor = self.activation(parts + self.image(x.mean((2, 3, 4), keepdim=True)))
        return y


def _low_level(given: int | None, levels: int) -> int:
    if levels < 2:
        raise ConfigError(
            f"decoder 'deeplab' needs an encoder of at least 2 levels, got {levels}; see 'fcn'"
        )
    level = min(1, levels - 2) if given is None else given
    if not 0 <= level <= levels - 2:
        raise ConfigError(
            f"low_level is finer than the coarsest level: 0 to {levels - 2}, got {given}",
            ("low_level",),
        )
    return level

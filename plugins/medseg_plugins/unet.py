"""U-Net decoder in 3D (Ronneberger et al. 2015, arXiv:1505.04597).

The 3D form is that of Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    THREE,
    Activation,
    ConvNormAct,
    Norm,
    SubvoxelConv,
    Triple,
    conv,
)
from medseg.networks.stages import per_stage, same_length
from medseg.registry import DECODERS


@DECODERS.register("unet")
class UNetDecoder(nn.Module):
    """From the coarsest level up: upsample, concatenate the encoder's level, convolve.

    Args:
        channels: The encoder's channels, finest level first.
        strides: The encoder's strides against the input, finest level first.
        widths: Channels of each returned level, finest first. Null: the encoder's.
        upsample: "transpose" (a transposed convolution as long as its step), "interpolate" (1x1x1
            convolution, then trilinear) or "pixel_shuffle" (sub-pixel convolution, begun as
            nearest-voxel upsampling: Shi et al. 2016, arXiv:1609.05158).
        convs: Convolutions per level.
        kernels: Kernel of each returned level, finest first, per axis. Null: 3x3x3.
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map of a level before it is convolved.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[Triple, ...],
        *,
        widths: tuple[int, ...] | None = None,
        upsample: Literal["transpose", "interpolate", "pixel_shuffle"] = "transpose",
        convs: int = 1,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ConfigError(
                f"decoder 'unet' needs an encoder of at least 2 levels, got {len(channels)}"
            )
        if convs < 1:
            raise ConfigError(
                f"decoder 'unet' needs at least 1 convolution, got {convs}", ("convs",)
            )
        self.channels = tuple(channels[:-1] if widths is None else widths)
        same_length("widths", self.channels, channels[:-1])
        kernel_list = per_stage("kernels", kernels, [THREE] * len(self.channels))
        self.ups = nn.ModuleList()
        self.levels = nn.ModuleList()
        width_in = channels[-1]
        for level in reversed(range(len(self.channels))):
            width, kernel = self.channels[level], kernel_list[level]
            step = _step(strides[level], strides[level + 1])
            self.ups.append(_upsample(width_in, width, step, upsample))
            drop = [nn.Dropout3d(dropout)] if dropout else []
            layers = [
                ConvNormAct(n, width, kernel, norm=norm, activation=activation)
                for n in (width + channels[level], *[width] * (convs - 1))
            ]
            self.levels.append(nn.Sequential(*drop, *layers))
            width_in = width

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map the encoder's levels, finest first, to one level less, finest first."""
        x = levels[-1]
        out: list[Tensor] = []
        for up, level, skip in zip(self.ups, self.levels, levels[-2::-1], strict=True):
            x = level(torch.cat([up(x), skip], 1))
            out.insert(0, x)
        return out


def _step(fine: Triple, coarse: Triple) -> Triple:
    i, j, k = (c // f for f, c in zip(fine, coarse, strict=True))
    return i, j, k


def _upsample(width_in: int, width: int, step: Triple, how: str) -> nn.Module:
    if how == "transpose":
        return nn.ConvTranspose3d(width_in, width, step, step, bias=False)
    if how == "pixel_shuffle":
        return SubvoxelConv(width_in, width, step)
    # Narrowing first is the cheaper order, and gives the same: both are linear.
    narrow = conv(width_in, width, ONE)
    return nn.Sequential(narrow, nn.Upsample(scale_factor=step, mode="trilinear"))

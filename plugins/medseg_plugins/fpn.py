"""Feature pyramid decoder in 3D (Lin et al. 2017, arXiv:1612.03144)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, Activation, ConvNormAct, Norm, Triple, conv, resized
from medseg.networks.stages import check_positive
from medseg.registry import DECODERS


@DECODERS.register("fpn")
class FPNDecoder(nn.Module):
    """Every level at one width; from the coarsest up, each is upsampled and added to the next.

    A 1x1x1 convolution brings each level to `width` channels, and a convolution smooths each sum.
    As many levels are returned as the encoder has, so any number of them can be supervised.

    Args:
        channels: The encoder's channels, finest level first.
        strides: The encoder's strides against the input, finest level first.
        width: Channels of every level. The paper's 256 are for images whose finest level has a
            quarter of their resolution.
        levels: How many levels, from the finest, are smoothed and returned: one more than
            `deep_supervision` is enough, and of further ones the smoothing would stay untrained.
            Null: all.
        upsample: "nearest", as in the paper, or "trilinear".
        kernel: Kernel of the smoothing convolutions, per axis.
        linear: Smooth without norm and activation, as in the paper.
        merge: Return one level instead, of the size of the encoder's finest: the smoothed levels,
            from the coarsest up, upsampled trilinearly and added. This is the panoptic FPN
            (Kirillov et al. 2019, arXiv:1901.02446) with one convolution per level where that has
            one per upsampling.
        norm: Normalisation behind each smoothing convolution.
        activation: Non-linearity.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        channels: tuple[int, ...],
        strides: tuple[Triple, ...],
        *,
        width: int = 32,
        levels: int | None = None,
        upsample: Literal["nearest", "trilinear"] = "nearest",
        kernel: Triple = (3, 3, 3),
        linear: bool = False,
        merge: bool = False,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        check_positive("width", width)
        smoothed = len(channels) if levels is None else levels
        if not 1 <= smoothed <= len(channels):
            raise ConfigError(
                f"this encoder has 1 to {len(channels)} levels, got {levels}", ("levels",)
            )
        self.upsample = upsample
        self.merge = merge
        self.strides = tuple(strides[: 1 if merge else smoothed])
        self.channels = (width,) * len(self.strides)
        self.laterals = nn.ModuleList(conv(number, width, ONE, bias=True) for number in channels)
        self.smooths = nn.ModuleList(
            conv(width, width, kernel, bias=True)
            if linear
            else ConvNormAct(width, width, kernel, norm=norm, activation=activation)
            for _ in range(smoothed)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map the encoder's levels, finest first, to its first `levels`, all of one width."""
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        sums = _top_down(maps, self.upsample)
        maps = [smooth(level) for smooth, level in zip(self.smooths, sums, strict=False)]
        return _top_down(maps, "trilinear")[:1] if self.merge else maps


def _top_down(maps: list[Tensor], mode: Literal["nearest", "trilinear"]) -> list[Tensor]:
    """Add to each map what all coarser ones add up to; finest first."""
    sums = [maps[-1]]
    for finer in maps[-2::-1]:
        sums.insert(0, finer + resized(sums[0], finer, mode))
    return sums

"""No New-Net (Isensee et al. 2018, arXiv:1809.10483): a plain U-Net, well trained."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.blocks import THREE, Activation, Norm, Triple, keep_variance
from medseg.networks.stages import per_stage, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.unet_blocks import Style, UPath, own_grid


@NETWORKS.register("nonewnet")
class NoNewNet(nn.Module):
    """Five levels of two convolutions with instance norm; nothing is learnt in going up.

    Before it goes up, a level narrows to the width of the next finer one, so that the trilinear
    interpolation costs little.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each level, finest first.
        width: Factor on all widths.
        strides: Pooling into each level, per axis; the first must be 1. Null: 2s.
        kernels: Kernel of each level's convolutions, per axis. Null: 3x3x3.
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map behind each level.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (30, 60, 120, 240, 480),
        width: float = 1.0,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        widths = scaled(widths, width)
        finer = (widths[0], *widths[:-1])
        pairs = list(zip(widths, finer, strict=True))
        self.path = UPath(
            in_channels,
            downs=[*[(number, number) for number in widths[:-1]], pairs[-1]],
            ups=pairs[:-1],
            steps=own_grid(strides, len(widths)),
            kernels=per_stage("kernels", kernels, [THREE] * len(widths)),
            style=Style(norm, activation, dropout),
            upsample=_interpolated,
        )
        self.scores = nn.Conv3d(self.path.width, classes, 1)
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.scores(self.path(x))
        return logits


def _interpolated(_: int, step: Triple) -> nn.Module:
    return nn.Upsample(scale_factor=step, mode="trilinear")

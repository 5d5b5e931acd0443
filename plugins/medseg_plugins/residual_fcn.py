"""DLTK's residual FCN (Pawlowski et al. 2017, arXiv:1711.06853)."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.blocks import ONE, THREE, Activation, Norm, Triple, conv, norm_layer
from medseg.networks.stages import check_positive, halving, per_stage, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.residual_blocks import ResidualLevels, Style, uniform_variance, upsampling


@NETWORKS.register("residual_fcn")
class ResidualFCN(nn.Module):
    """Residual units down; scores of every level, upsampled linearly and summed on the way up.

    The way up is that of Long et al. 2015 (arXiv:1411.4038). A skip's scores have a norm, and a
    last 1x1x1 convolution mixes the classes. DLTK's has no bias by default; here it has one, which
    serves for all.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each level, finest first.
        width: Factor on all widths.
        units: Residual units of each level but the finest, which has one convolution.
        strides: Step into each level, per axis; where the first is not 1, the scores are
            interpolated to the input's size. Null: 1, then 2s.
        kernels: Kernel of each level, per axis. Null: 3x3x3.
        norm: Normalisation before each convolution, and behind the skips' scores.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map inside each unit.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        width: float = 1.0,
        units: int = 1,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "batch",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        check_positive("units", units)
        widths = scaled(widths, width)
        steps = per_stage("strides", strides, halving(len(widths)))
        shapes = per_stage("kernels", kernels, [THREE] * len(widths))
        style = Style(norm, activation, dropout)
        self.down = ResidualLevels(in_channels, widths, units, steps, shapes, style)
        self.coarsest = conv(widths[-1], classes, ONE)
        self.raises, self.skips = nn.ModuleList(), nn.ModuleList()
        for n in reversed(range(len(widths) - 1)):
            self.raises.append(upsampling(steps[n + 1]))
            self.skips.append(
                nn.Sequential(conv(widths[n], classes, ONE), norm_layer(norm, classes))
            )
        self.scores = nn.Sequential(nn.Conv3d(classes, classes, 1), upsampling(steps[0]))
        self.apply(uniform_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        *finer, x = self.down(x)
        x = self.coarsest(x)
        for rise, skip, level in zip(self.raises, self.skips, reversed(finer), strict=True):
            x = rise(x) + skip(level)
        logits: Tensor = self.scores(x)
        return logits

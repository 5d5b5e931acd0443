"""DLTK's residual U-Net, and its asymmetric twin (Pawlowski et al. 2017, arXiv:1711.06853)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.networks.blocks import ONE, THREE, Activation, Norm, Triple
from medseg.networks.stages import check_positive, halving, per_stage, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.residual_blocks import (
    ResidualLevels,
    ResidualUnit,
    Style,
    uniform_variance,
    upsampling,
)


@NETWORKS.register("residual_unet")
class ResidualUNet(nn.Module):
    """Residual units down and up, linear upsampling, the maps of each level joined on the way up.

    DLTK's scores have no bias by default; here they have one. There is no norm on the way through
    the shortcuts from the first convolution to the scores: rates of 0.001 suit it with AdamW, and
    higher ones make it jump, unless `end_norm` is set. `asymmetric_residual_unet` has one
    unit a level on the way up, however many there are on the way down: with `units: 1`, the
    default, both are the same.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each level, finest first.
        width: Factor on all widths.
        units: Residual units of each level but the finest, which has one convolution.
        up_units: Those of each level on the way up. Null: as many.
        strides: Step into each level, per axis; where the first is not 1, the scores are
            interpolated to the input's size. Null: 1, then 2s.
        kernels: Kernel of each level, per axis. Null: 3x3x3.
        norm: Normalisation before each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map inside each unit.
        end_norm: Whether norm and non-linearity stand before the scores, as behind the last unit of
            He et al. 2016 (arXiv:1603.05027).
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        width: float = 1.0,
        units: int = 1,
        up_units: int | None = None,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "batch",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        end_norm: bool = False,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        up_units = units if up_units is None else up_units
        check_positive("units", units)
        check_positive("up_units", up_units)
        widths = scaled(widths, width)
        steps = per_stage("strides", strides, halving(len(widths)))
        shapes = per_stage("kernels", kernels, [THREE] * len(widths))
        style = Style(norm, activation, dropout)
        self.down = ResidualLevels(in_channels, widths, units, steps, shapes, style)
        self.raises, self.ups = nn.ModuleList(), nn.ModuleList()
        for n in reversed(range(len(widths) - 1)):
            befores = (widths[n] + widths[n + 1], *[widths[n]] * (up_units - 1))
            self.raises.append(upsampling(steps[n + 1]))
            self.ups.append(
                nn.Sequential(*[ResidualUnit(w, widths[n], shapes[n], ONE, style) for w in befores])
            )
        end = style.before(widths[0]) if end_norm else []
        self.scores = nn.Sequential(*end, nn.Conv3d(widths[0], classes, 1), upsampling(steps[0]))
        self.apply(uniform_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        *finer, x = self.down(x)
        for rise, up, skip in zip(self.raises, self.ups, reversed(finer), strict=True):
            x = up(torch.cat([skip, rise(x)], 1))
        logits: Tensor = self.scores(x)
        return logits


NETWORKS.preset("asymmetric_residual_unet", "residual_unet", up_units=1)

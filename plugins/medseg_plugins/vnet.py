"""V-Net (Milletari et al. 2016, arXiv:1606.04797): a residual network with 5x5x5 convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    Activation,
    Norm,
    Triple,
    activation_layer,
    conv,
    keep_variance,
    norm_layer,
)
from medseg.networks.stages import halving, per_stage, same_length, scaled
from medseg.registry import NETWORKS

_FIVE: Triple = (5, 5, 5)


@NETWORKS.register("vnet")
class VNet(nn.Module):
    """Stages of 5x5x5 convolutions with a shortcut around each, strided convolutions between them.

    The defaults are the paper's: 16 to 256 channels, 1, 2, 3, 3 and 3 convolutions downwards, 3, 3,
    2 and 1 upwards, PReLU, no norms, 65 M parameters. A stage upwards takes the maps from below,
    as many as those of its level, and the latter themselves. The first shortcut adds the input to
    every map; with several channels they take turns.

    NiftyNet brings more maps up from below (256, 128, 64 and 32 rather than 128, 64, 32 and 16) and
    narrows in the first convolution upwards; the paper's figure stands.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each level, finest first.
        width: Factor on all widths.
        convs: Convolutions of each level downwards.
        up_convs: Convolutions of each level upwards, finest first, one number less. Null: the
            paper's way, those downwards.
        strides: Step into each level, per axis; the first must be 1. Null: 2s.
        kernels: Kernel of each level's convolutions, per axis. Null: 5x5x5.
        norm: Normalisation behind each convolution; the paper has "none". Without one, the weights
            start as He et al. 2015 (arXiv:1502.01852) draw them.
        activation: Non-linearity.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        width: float = 1.0,
        convs: tuple[int, ...] = (1, 2, 3, 3, 3),
        up_convs: tuple[int, ...] | None = None,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "none",
        activation: Activation = "prelu",
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ConfigError(f"network 'vnet' needs at least 2 levels, got {len(widths)}")
        same_length("convs", convs, widths)
        up_convs = convs[:-1] if up_convs is None else up_convs
        same_length("up_convs", up_convs, widths[:-1])
        steps = per_stage("strides", strides, halving(len(widths)))
        shapes = per_stage("kernels", kernels, [_FIVE] * len(widths))
        if steps[0] != ONE:
            raise ConfigError(
                f"the first level has the input's grid: its step is (1, 1, 1), got {steps[0]}",
                ("strides",),
            )
        widths = scaled(widths, width)
        self.downs, self.down_stages = nn.ModuleList(), nn.ModuleList()
        for n, (number, count) in enumerate(zip(widths, convs, strict=True)):
            before = widths[n - 1] if n else in_channels
            down = nn.Conv3d(before, number, steps[n], steps[n], bias=norm == "none")
            self.downs.append(_layer(down, number, norm, activation) if n else nn.Identity())
            inside = number if n else in_channels
            self.down_stages.append(_Stage(inside, number, count, shapes[n], norm, activation))
        self.ups, self.up_stages = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for n in reversed(range(len(widths) - 1)):
            number, step, both = widths[n], steps[n + 1], 2 * widths[n]
            up = nn.ConvTranspose3d(below, number, step, step, bias=norm == "none")
            self.ups.append(_layer(up, number, norm, activation))
            self.up_stages.append(_Stage(both, both, up_convs[n], shapes[n], norm, activation))
            below = both
        self.scores = nn.Conv3d(below, classes, 1)
        self.apply(_keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        levels = []
        for down, stage in zip(self.downs, self.down_stages, strict=True):
            x = stage(down(x))
            levels.append(x)
        for up, stage, skip in zip(self.ups, self.up_stages, levels[-2::-1], strict=True):
            x = stage(torch.cat([up(x), skip], 1))
        logits: Tensor = self.scores(x)
        return logits


class _Stage(nn.Module):
    """Convolutions, then the stage's input is added, then the last non-linearity."""

    def __init__(
        self,
        width_in: int,
        width: int,
        count: int,
        kernel: Triple,
        norm: Norm,
        activation: Activation,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n in range(count):
            layers.append(conv(width if n else width_in, width, kernel, bias=norm == "none"))
            layers.append(norm_layer(norm, width))
            layers.append(activation_layer(activation))
        *body, self.activation = layers
        self.body = nn.Sequential(*body)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I, J, K)."""
        turns = -(-self.width // x.shape[1])
        y: Tensor = self.activation(self.body(x) + x.repeat(1, turns, 1, 1, 1)[:, : self.width])
        return y


def _layer(step: nn.Module, width: int, norm: Norm, activation: Activation) -> nn.Sequential:
    return nn.Sequential(step, norm_layer(norm, width), activation_layer(activation))


def _keep_variance(module: nn.Module) -> None:
    """As `keep_variance`, also for transposed convolutions as long as their step."""
    keep_variance(module)
    if isinstance(module, nn.ConvTranspose3d):  # each output voxel sees one input voxel
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.in_channels))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

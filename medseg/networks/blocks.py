"""Building blocks of 3D networks, for our plugins and for anyone's.

Axes are (i, j, k) everywhere: a `Triple` gives one number per axis, so that a network can treat
the thick axis of an anisotropic volume unlike the others. Modules are plain torch modules, so
autocast, channels-last and export work on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError

Triple = tuple[int, int, int]
Norm = Literal["instance", "batch", "group", "none"]
Activation = Literal["relu", "leaky_relu", "prelu"]

ONE: Triple = (1, 1, 1)
TWO: Triple = (2, 2, 2)
THREE: Triple = (3, 3, 3)
_GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A normalisation with learnt scale and shift.

    Args:
        norm: "instance" (Ulyanov et al. 2016, arXiv:1607.08022), "batch" (Ioffe and Szegedy 2015,
            arXiv:1502.03167), "group" (Wu and He 2018, arXiv:1803.08494; 8 groups, or as many as
            divide the channels) or "none".
        channels: Feature channels.
    """
    if norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.Identity()


def activation_layer(activation: Activation) -> nn.Module:
    """A non-linearity, in place where torch can: put it behind a norm or a convolution only."""
    if activation == "relu":
        return nn.ReLU(inplace=True)
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=True)
    return nn.PReLU()


def conv(
    width_in: int, width: int, kernel: Triple = THREE, stride: Triple = ONE, *, bias: bool = False
) -> nn.Conv3d:
    """A convolution that keeps the grid, or divides it by `stride` where that divides the size.

    Raises:
        ConfigError: A kernel length is even: its output could not stay centred.
    """
    if any(length % 2 == 0 for length in kernel):
        raise ConfigError(f"a kernel's lengths must be odd, got {kernel}")
    i, j, k = (length // 2 for length in kernel)
    return nn.Conv3d(width_in, width, kernel, stride, (i, j, k), bias=bias)


class ConvNormAct(nn.Sequential):
    """Convolution, norm, activation. The convolution has a bias only where no norm follows."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: Triple = THREE,
        stride: Triple = ONE,
        *,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        convolution = conv(width_in, width, kernel, stride, bias=norm == "none")
        norms = [] if norm == "none" else [norm_layer(norm, width)]
        super().__init__(convolution, *norms, activation_layer(activation))


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)) (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, I, J, K) to what body and shortcut agree on."""
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


def pool_shortcut(width_in: int, width: int, stride: Triple) -> nn.Module:
    """Average pool, then a 1x1x1 convolution (ResNet-D: He et al. 2018, arXiv:1812.01187).

    No voxel is skipped, unlike in a strided 1x1x1 convolution. The identity where nothing changes.
    """
    pool: list[nn.Module] = [] if stride == ONE else [nn.AvgPool3d(stride)]
    if width_in == width and not pool:
        return nn.Identity()
    return nn.Sequential(*pool, conv(width_in, width, ONE))


def projection_shortcut(width_in: int, width: int, stride: Triple, norm: Norm) -> nn.Module:
    """Strided 1x1x1 convolution with norm (option B of He et al. 2015), or the identity."""
    if width_in == width and stride == ONE:
        return nn.Identity()
    return nn.Sequential(conv(width_in, width, ONE, stride), norm_layer(norm, width))


def per_stage(
    option: str, given: Sequence[Triple] | None, default: Sequence[Triple]
) -> tuple[Triple, ...]:
    """An option with one triple per stage: what was given, checked, or else the default.

    Raises:
        ConfigError: The number of triples is not the number of stages, or a number is below 1.
    """
    if given is None:
        return tuple(default)
    if len(given) != len(default):
        raise ConfigError(
            f"{option} needs one triple per stage: {len(default)}, got {len(given)}", (option,)
        )
    if any(number < 1 for triple in given for number in triple):
        raise ConfigError(f"{option} must be positive, got {given}", (option,))
    return tuple(given)


def same_length(option: str, given: Sequence[int], widths: Sequence[int]) -> None:
    """Refuse an option that does not have one positive number per stage.

    Raises:
        ConfigError: Lengths differ, nothing is given or a number is below 1.
    """
    if len(given) != len(widths) or not given or min(given) < 1:
        raise ConfigError(
            f"{option} needs one positive number per stage: {len(widths)}, got {tuple(given)}",
            (option,),
        )


def halving(levels: int, first: Triple = ONE) -> tuple[Triple, ...]:
    """Strides of stages that halve every axis, but for the first stage."""
    return (first, *[TWO] * (levels - 1))


def cumulative(strides: Sequence[Triple]) -> tuple[Triple, ...]:
    """Each stage's stride against the input, from each stage's own stride."""
    totals, total = [], ONE
    for stride in strides:
        total = (total[0] * stride[0], total[1] * stride[1], total[2] * stride[2])
        totals.append(total)
    return tuple(totals)


def flatten(kernel: Triple, length: int) -> Triple:
    """A kernel of `length` that is 1 long where `kernel` is."""
    i, j, k = (length if n > 1 else 1 for n in kernel)
    return i, j, k

"""Building blocks of 3D networks, for our plugins and for anyone's.

Axes are (i, j, k) everywhere: a `Triple` gives one number per axis, so that a network can treat
the thick axis of an anisotropic volume unlike the others. Modules are plain torch modules, so
autocast, channels-last and export work on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseg.errors import ConfigError
from medseg.networks.layers import InstanceNorm, MeanPool

Triple = tuple[int, int, int]
Norm = Literal["instance", "batch", "group", "none"]
Activation = Literal["relu", "leaky_relu", "prelu"]

ZERO: Triple = (0, 0, 0)
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
        return InstanceNorm(channels)
    if norm == "batch":
        return nn.BatchNorm3d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.Identity()


def activation_layer(activation: Activation, *, inplace: bool = True) -> nn.Module:
    """A non-linearity; in place only behind a norm or a convolution that nothing else reads."""
    if activation == "relu":
        return nn.ReLU(inplace)
    if activation == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace)
    return nn.PReLU()


def conv(
    width_in: int,
    width: int,
    kernel: Triple = THREE,
    stride: Triple = ONE,
    *,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Conv3d:
    """A convolution that keeps the grid, or divides it by `stride` where that divides the size.

    Raises:
        ConfigError: A kernel length is even: its output could not stay centred.
    """
    if any(length % 2 == 0 for length in kernel):
        raise ConfigError(f"a kernel's lengths must be odd, got {kernel}")
    i, j, k = (dilation * (length // 2) for length in kernel)
    return nn.Conv3d(width_in, width, kernel, stride, (i, j, k), dilation, bias=bias)


class ConvNormAct(nn.Sequential):
    """Convolution, norm, activation, dropout.

    The convolution has a bias where no norm follows, or where `bias` asks for one: a pretrained
    batch norm counts on it. Dropout drops whole feature maps (Tompson et al. 2015,
    arXiv:1411.4280).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: Triple = THREE,
        stride: Triple = ONE,
        *,
        dilation: int = 1,
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        bias = bias or norm == "none"
        convolution = conv(width_in, width, kernel, stride, dilation=dilation, bias=bias)
        norms = [] if norm == "none" else [norm_layer(norm, width)]
        drops = [nn.Dropout3d(dropout)] if dropout else []
        super().__init__(convolution, *norms, activation_layer(activation), *drops)


def keep_variance(module: nn.Module) -> None:
    """Start a convolution such that ReLU leaves the signal as strong as it was.

    For networks without norms: `network.apply(keep_variance)` (He et al. 2015, arXiv:1502.01852).
    """
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SubvoxelConv(nn.Module):
    """A finer grid from channels: each voxel's channels give those of its parts.

    Sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158) in 3D, begun as nearest-voxel
    upsampling (ICNR, Aitken et al. 2017, arXiv:1707.02937).

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        stride: How many times finer the output is, per axis.
    """

    def __init__(self, width_in: int, width: int, stride: Triple) -> None:
        super().__init__()
        self.width, self.stride = width, stride
        self.conv = nn.Conv3d(width_in, width * math.prod(stride), 1)
        start = nn.Conv3d(width_in, width, 1)
        with torch.no_grad():
            for mine, first in zip(self.conv.parameters(), start.parameters(), strict=True):
                mine.copy_(first.repeat_interleave(math.prod(stride), 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I * i, J * j, K * k)."""
        n, _, *size = x.shape
        parts: Tensor = self.conv(x).view(n, self.width, *self.stride, *size)
        finer = [length * step for length, step in zip(size, self.stride, strict=True)]
        return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, self.width, *finer)


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels hold on average (Hu et al. 2018, arXiv:1709.01507).

    Args:
        width: Channels.
        reduction: How many times fewer channels the layer between has.
    """

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.reduce, self.expand = nn.Conv3d(width, inner, 1), nn.Conv3d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, I, J, K)."""
        weights: Tensor = self.expand(self.reduce(x.mean((2, 3, 4), keepdim=True)).relu())
        return x * weights.sigmoid()


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
    pool: list[nn.Module] = [] if stride == ONE else [MeanPool(stride)]
    if width_in == width and not pool:
        return nn.Identity()
    return nn.Sequential(*pool, conv(width_in, width, ONE))


def projection_shortcut(
    width_in: int, width: int, stride: Triple, norm: Norm, *, always: bool = False
) -> nn.Module:
    """Strided 1x1x1 convolution with norm (option B of He et al. 2015).

    The identity where nothing changes, unless `always` (option C).
    """
    if width_in == width and stride == ONE and not always:
        return nn.Identity()
    return nn.Sequential(conv(width_in, width, ONE, stride), norm_layer(norm, width))


def max_pool(kernel: Triple, stride: Triple) -> nn.MaxPool3d:
    """A max pooling 3 long that keeps the grid or divides it; flat where nothing is to be pooled.

    A strided axis is not padded at its start and may run over its end, as in Caffe and in
    torchvision's GoogLeNet.
    """
    i, j, k = (3 if n > 1 or s > 1 else 1 for n, s in zip(kernel, stride, strict=True))
    pads = tuple(int(s == 1 and n == 3) for n, s in zip((i, j, k), stride, strict=True))
    return nn.MaxPool3d((i, j, k), stride, pads, ceil_mode=True)


def resized(x: Tensor, like: Tensor, mode: Literal["nearest", "trilinear"] = "trilinear") -> Tensor:
    """X interpolated to the grid of `like`, which covers the same volume."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return nn.functional.interpolate(x, like.shape[2:], mode=mode)


def recomputed(module: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """module(x); with `recompute`, its activations are not kept but found again for the gradient.

    Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174). Results are the same: dropout draws
    the same numbers again, and running statistics move once.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(x)  # type: ignore[no-any-return]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_held(module)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]


@contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Let what is computed move copies of the buffers only.

    Batch norms have to see some: without any they would keep fewer tensors than the first time.
    """
    owners = list(module.modules())
    held = [(m, name, b) for m in owners for name, b in m.named_buffers(recurse=False)]
    for owner, name, buffer in held:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in held:
            setattr(owner, name, buffer)

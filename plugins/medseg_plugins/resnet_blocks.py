"""Blocks of ResNets: basic and bottleneck, residual and plain, activated after or before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    Activation,
    ConvNormAct,
    Norm,
    Residual,
    SqueezeExcite,
    Triple,
    activation_layer,
    conv,
    norm_layer,
    pool_shortcut,
    projection_shortcut,
)

Block = Literal["basic", "bottleneck"]
Shortcut = Literal["pool", "A", "B", "C"]
Order = Literal["v1", "v1b", "v2"]
SQUEEZE = 4  # a bottleneck's 3x3x3 convolution is this much narrower (He et al. 2015, Table 1)


@dataclass(frozen=True)
class Style:
    """What all blocks of one network share; `ResNetEncoder` explains each option."""

    block: Block
    residual: bool
    shortcut: Shortcut
    order: Order
    se: bool
    norm: Norm
    activation: Activation
    dropout: float


class Shape(NamedTuple):
    """What differs from block to block, and from layer to layer."""

    width_in: int
    width: int
    kernel: Triple
    stride: Triple = ONE
    dilation: int = 1


class PaddedShortcut(nn.Module):
    """Every n-th voxel, and zeros for the new channels (option A of He et al. 2015): no weights."""

    def __init__(self, width_in: int, width: int, stride: Triple) -> None:
        super().__init__()
        if width < width_in:
            raise ConfigError(
                f"shortcut 'A' can only add channels, but a stage goes from {width_in} to {width}; "
                "use 'B'",
                ("shortcut",),
            )
        self.extra, self.stride = width - width_in, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, I, J, K) to (N, width, I / i, J / j, K / k), rounded up."""
        i, j, k = self.stride
        return nn.functional.pad(x[:, :, ::i, ::j, ::k], (0, 0, 0, 0, 0, 0, 0, self.extra))


def block_of(style: Style, shape: Shape, *, activated: bool = False) -> nn.Module:
    """One block of a stage.

    Args:
        style: What all blocks share.
        shape: Widths, kernel, step and dilation of this one.
        activated: Whether the input has just been normalised and activated: "v2" then begins with
            a convolution.

    Raises:
        ConfigError: The shortcut cannot reach this width, or a kernel length is even.
    """
    if style.order == "v2":
        return _activated_before(style, shape, activated)
    return _activated_after(style, shape)


def pre_activation(style: Style, width: int) -> list[nn.Module]:
    """Norm and activation of a sum that others read too: nothing is done in place."""
    return [norm_layer(style.norm, width), activation_layer(style.activation, inplace=False)]


def torchvision_names(part: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers of a stem, or of a "v1" or "v1b" block: our names, then torchvision's.

    MedicalNet and timm use them, too; those of squeeze-and-excitation are timm's alone.
    """
    count = 0
    for name, module in part.named_modules():
        first, _, last = name.rpartition(".")
        if not isinstance(module, nn.Conv3d | nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
            continue
        if first == "shortcut":
            yield name, f"downsample.{last}"
        elif last in ("reduce", "expand"):
            yield name, "se.fc1" if last == "reduce" else "se.fc2"
        elif isinstance(module, nn.Conv3d):
            count += 1
            yield name, f"conv{count}"
        else:
            yield name, f"bn{count}"


def _activated_after(style: Style, shape: Shape) -> nn.Module:
    """activation(body(x) + shortcut(x)), or without the shortcut; norms behind convolutions."""
    shortcut = _shortcut(style, shape)
    *before, last = _layers(style, shape)
    layers: list[nn.Module] = []
    for n, layer in enumerate(before):
        layers += ConvNormAct(
            *layer[:4], dilation=layer.dilation, norm=style.norm, activation=style.activation
        )
        layers += _drop(style) if n == 0 else []
    layers += [_conv(style, last), norm_layer(style.norm, shape.width)]
    if style.residual and style.norm != "none":  # the block starts as its shortcut
        nn.init.zeros_(layers[-1].get_parameter("weight"))
    body = nn.Sequential(*layers, *_excite(style, shape.width))
    activation = activation_layer(style.activation)
    if shortcut is None:
        return nn.Sequential(OrderedDict(body=body, activation=activation))
    return Residual(body, shortcut, activation)


def _activated_before(style: Style, shape: Shape, activated: bool) -> nn.Module:
    """body(x) + shortcut(x), or without the shortcut; norms and activations before convolutions.

    He et al. 2016, Figure 4e. A projection takes the activated input, as the body does.
    """
    shortcut = _shortcut(style, shape)
    before = [] if activated else pre_activation(style, shape.width_in)
    body: list[nn.Module] = []
    for n, layer in enumerate(_layers(style, shape)):
        if n > 0:
            body += [norm_layer(style.norm, layer.width_in), activation_layer(style.activation)]
        body += _drop(style) if n == 1 else []
        body.append(_conv(style, layer))
    body += _excite(style, shape.width)
    if shortcut is None:
        return nn.Sequential(*before, *body)
    if isinstance(shortcut, nn.Identity | PaddedShortcut):
        return Residual(nn.Sequential(*before, *body), shortcut, nn.Identity())
    return nn.Sequential(*before, Residual(nn.Sequential(*body), shortcut, nn.Identity()))


def _layers(style: Style, shape: Shape) -> list[Shape]:
    """The convolutions of a block's body."""
    width_in, width, kernel, stride, dilation = shape
    if style.block == "basic":
        return [shape, Shape(width, width, kernel, ONE, dilation)]
    inner = width // SQUEEZE
    early, late = (stride, ONE) if style.order == "v1" else (ONE, stride)
    return [
        Shape(width_in, inner, ONE, early),
        Shape(inner, inner, kernel, late, dilation),
        Shape(inner, width, ONE),
    ]


def _shortcut(style: Style, shape: Shape) -> nn.Module | None:
    if not style.residual:
        return None
    width_in, width, _, stride, _ = shape
    if style.shortcut == "pool":
        return pool_shortcut(width_in, width, stride)
    if style.shortcut == "A":
        unchanged = width_in == width and stride == ONE
        return nn.Identity() if unchanged else PaddedShortcut(width_in, width, stride)
    norm = "none" if style.order == "v2" else style.norm
    return projection_shortcut(width_in, width, stride, norm, always=style.shortcut == "C")


def _conv(style: Style, layer: Shape) -> nn.Conv3d:
    return conv(*layer[:4], dilation=layer.dilation, bias=style.norm == "none")


def _drop(style: Style) -> list[nn.Module]:
    return [nn.Dropout3d(style.dropout)] if style.dropout else []


def _excite(style: Style, width: int) -> list[nn.Module]:
    return [SqueezeExcite(width)] if style.se else []

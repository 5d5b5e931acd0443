"""ResNet encoder in 3D (He et al. 2015, arXiv:1512.03385)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    ONE,
    THREE,
    Activation,
    ConvNormAct,
    Norm,
    Residual,
    Triple,
    activation_layer,
    conv,
    norm_layer,
    pool_shortcut,
    projection_shortcut,
)
from medseg.networks.stages import cumulative, halving, per_stage, same_length
from medseg.registry import ENCODERS

Block = Literal["basic", "bottleneck"]
Shortcut = Literal["pool", "projection"]
_SQUEEZE = 4  # a bottleneck's 3x3x3 convolution is this much narrower (paper, Table 1)


@ENCODERS.register("resnet")
class ResNetEncoder(nn.Module):
    """A stem convolution, then stages of residual blocks; one level per stage.

    The defaults are a small residual encoder for training from scratch. The paper's ResNet-18 is
    `widths: [64, 128, 256, 512], blocks: [2, 2, 2, 2], shortcut: projection, norm: batch,
    activation: relu, stem_kernel: [7, 7, 7], stem_norm: true` (the stem's pooling left out).

    Args:
        in_channels: Channels of the input.
        widths: Output channels of each stage.
        blocks: Residual blocks of each stage. Null: one.
        strides: Step of each stage, per axis; the stem takes the first, the first block of a
            stage the others. Null: 1, then 2s.
        kernels: Kernel of each stage's convolutions, per axis. Null: 3x3x3.
        block: "basic" (two 3x3x3 convolutions) or "bottleneck" (1x1x1, 3x3x3, 1x1x1).
        shortcut: "pool" (average pool, then 1x1x1; ResNet-D) or "projection" (strided 1x1x1 with
            norm; the paper's option B).
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map behind a block's first activation.
        stem_kernel: Kernel of the stem.
        stem_norm: Whether norm and activation follow the stem.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        blocks: tuple[int, ...] | None = None,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        block: Block = "basic",
        shortcut: Shortcut = "pool",
        norm: Norm = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        stem_kernel: Triple = (3, 3, 3),
        stem_norm: bool = False,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        blocks = (1,) * len(widths) if blocks is None else blocks
        same_length("blocks", blocks, widths)
        steps = per_stage("strides", strides, halving(len(widths)))
        kernel_list = per_stage("kernels", kernels, [THREE] * len(widths))
        if block == "bottleneck" and any(width % _SQUEEZE for width in widths):
            raise ConfigError(
                f"a bottleneck's widths are multiples of {_SQUEEZE}, got {widths}", ("widths",)
            )
        self.channels = tuple(widths)
        self.strides = cumulative(steps)

        width_in = widths[0] // (_SQUEEZE if block == "bottleneck" else 1)
        self.stem: nn.Module
        if stem_norm:
            self.stem = ConvNormAct(
                in_channels, width_in, stem_kernel, steps[0], norm=norm, activation=activation
            )
        else:
            self.stem = conv(in_channels, width_in, stem_kernel, steps[0])
        make = _Blocks(block, shortcut, norm, activation, dropout)
        self.stages = nn.ModuleList()
        for width, count, step, kernel in zip(
            widths, blocks, (ONE, *steps[1:]), kernel_list, strict=True
        ):
            first = make.block(width_in, width, kernel, step)
            rest = [make.block(width, width, kernel, ONE) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            width_in = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per stage, finest first."""
        x = self.stem(x)
        return [x := stage(x) for stage in self.stages]


class _Blocks:
    """Makes residual blocks of one style."""

    def __init__(
        self, block: Block, shortcut: Shortcut, norm: Norm, activation: Activation, dropout: float
    ) -> None:
        self.body = self._basic if block == "basic" else self._bottleneck
        self.shortcut = shortcut
        self.norm = norm
        self.activation = activation
        self.dropout = dropout

    def block(self, width_in: int, width: int, kernel: Triple, stride: Triple) -> Residual:
        """One block: the body's last norm starts at zero, so the block starts as its shortcut."""
        if self.shortcut == "pool":
            shortcut = pool_shortcut(width_in, width, stride)
        else:
            shortcut = projection_shortcut(width_in, width, stride, self.norm)
        last_norm = norm_layer(self.norm, width)
        if self.norm != "none":
            nn.init.zeros_(last_norm.get_parameter("weight"))
        body = nn.Sequential(*self.body(width_in, width, kernel, stride), last_norm)
        return Residual(body, shortcut, activation_layer(self.activation))

    def _basic(self, width_in: int, width: int, kernel: Triple, stride: Triple) -> list[nn.Module]:
        return [
            *self._conv(width_in, width, kernel, stride),
            *self._drop(),
            conv(width, width, kernel, bias=self.norm == "none"),
        ]

    def _bottleneck(
        self, width_in: int, width: int, kernel: Triple, stride: Triple
    ) -> list[nn.Module]:
        # The step is in the 3x3x3 convolution ("v1.5"), so that no voxel is skipped.
        inner = width // _SQUEEZE
        return [
            *self._conv(width_in, inner, ONE, ONE),
            *self._drop(),
            *self._conv(inner, inner, kernel, stride),
            conv(inner, width, ONE, bias=self.norm == "none"),
        ]

    def _conv(self, width_in: int, width: int, kernel: Triple, stride: Triple) -> ConvNormAct:
        return ConvNormAct(
            width_in, width, kernel, stride, norm=self.norm, activation=self.activation
        )

    def _drop(self) -> list[nn.Module]:
        return [nn.Dropout3d(self.dropout)] if self.dropout else []

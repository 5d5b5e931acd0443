"""VGG encoder in 3D (Simonyan and Zisserman 2014, arXiv:1409.1556), without the classifier."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, THREE, Activation, ConvNormAct, Norm, Triple
from medseg.networks.stages import cumulative, halving, per_stage
from medseg.registry import ENCODERS

WIDTHS = (64, 128, 256, 512, 512)
# Table 1 of the paper: kernel lengths of each stage's convolutions.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3),) * 5,
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3,) * 4, (3,) * 4, (3,) * 4),
}


@ENCODERS.register("vgg")
class VGGEncoder(nn.Module):
    """Stages of small convolutions, with max pooling between them; one level per stage.

    The pooling that ends the paper's fifth stage feeds its classifier and is left out.

    Args:
        in_channels: Channels of the input.
        config: The paper's configuration: A, B, C (with 1x1x1 convolutions), D (VGG-16) or E
            (VGG-19).
        width: Factor on the paper's widths 64, 128, 256, 512, 512.
        levels: How many of the five stages are kept.
        strides: Pooling before each stage, per axis. Null: 1, then 2s.
        kernels: Kernel of each stage's 3x3x3 convolutions, per axis. Null: 3x3x3.
        norm: Normalisation behind each convolution; the paper has "none".
        activation: Non-linearity.
    """

    def __init__(
        self,
        in_channels: int,
        config: Literal["A", "B", "C", "D", "E"] = "D",
        width: float = 1.0,
        levels: int = 5,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if not 1 <= levels <= len(WIDTHS):
            raise ConfigError(f"VGG has 1 to {len(WIDTHS)} levels, got {levels}", ("levels",))
        steps = per_stage("strides", strides, halving(levels))
        kernel_list = per_stage("kernels", kernels, [THREE] * levels)
        self.channels = tuple(max(1, round(width * w)) for w in WIDTHS[:levels])
        self.strides = cumulative(steps)
        self.stages = nn.ModuleList()
        for lengths, channels, step, kernel in zip(
            CONFIGURATIONS[config][:levels], self.channels, steps, kernel_list, strict=True
        ):
            stage = nn.Sequential() if step == ONE else nn.Sequential(nn.MaxPool3d(step))
            for length in lengths:
                shape = ONE if length == 1 else kernel
                stage.append(
                    ConvNormAct(in_channels, channels, shape, norm=norm, activation=activation)
                )
                in_channels = channels
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per stage, finest first."""
        return [x := stage(x) for stage in self.stages]

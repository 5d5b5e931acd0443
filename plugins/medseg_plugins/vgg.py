"""VGG encoder in 3D (Simonyan and Zisserman 2014, arXiv:1409.1556), without the classifier.

`medseg_plugins.classifier` has the classifier.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from medseg.networks.blocks import (
    ONE,
    THREE,
    Activation,
    ConvNormAct,
    Norm,
    Triple,
    keep_variance,
    recomputed,
)
from medseg.networks.stages import check_levels, cumulative, halving, per_stage, scaled
from medseg.registry import ENCODERS

Config = Literal["A", "A-LRN", "B", "C", "D", "E"]

WIDTHS = (64, 128, 256, 512, 512)
# Table 1 of the paper: kernel lengths of each stage's convolutions.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3),) * 5,
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3,) * 4, (3,) * 4, (3,) * 4),
}
# Krizhevsky et al. 2012 (doi:10.1145/3065386), section 3.3: n, k, alpha and beta.
LRN_SIZE, LRN_K, LRN_ALPHA, LRN_BETA = 5, 2.0, 1e-4, 0.75


@ENCODERS.register("vgg")
class VGGEncoder(nn.Module):
    """Stages of small convolutions, with max pooling between them; one level per stage.

    The pooling that ends the paper's fifth stage feeds its classifier and is left out.

    Args:
        in_channels: Channels of the input.
        config: The paper's configuration: A (VGG-11), A-LRN (with local response normalisation
            behind the first convolution), B (VGG-13), C (with 1x1x1 convolutions), D (VGG-16) or
            E (VGG-19).
        width: Factor on the paper's widths 64, 128, 256, 512, 512.
        levels: How many of the five stages are kept.
        strides: Pooling before each stage, per axis. Null: 1, then 2s.
        kernels: Kernel of each stage's 3x3x3 convolutions, per axis. Null: 3x3x3.
        norm: Normalisation behind each convolution; the paper has "none". Without one, the weights
            start as He et al. 2015 (arXiv:1502.01852) draw them, or so deep a network would give
            hardly any signal.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map behind each stage's last activation.
        checkpointing: Whether training finds each stage's activations again instead of keeping
            them: less memory for about a third more time, same results.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        *,
        config: Config = "D",
        width: float = 1.0,
        levels: int = 5,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "instance",
        activation: Activation = "relu",
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_levels(levels, 1, len(WIDTHS))
        steps = per_stage("strides", strides, halving(levels))
        kernel_list = per_stage("kernels", kernels, [THREE] * levels)
        self.channels = scaled(WIDTHS[:levels], width)
        self.strides = cumulative(steps)
        self.norm = norm
        self.checkpointing = checkpointing
        # A bias before batch norm changes nothing in training, but torchvision's weights have it.
        layer = partial(ConvNormAct, norm=norm, activation=activation, bias=norm == "batch")
        stages = []
        for lengths, channels, step, kernel in zip(
            CONFIGURATIONS[config][:levels], self.channels, steps, kernel_list, strict=True
        ):
            stage = nn.Sequential() if step == ONE else nn.Sequential(nn.MaxPool3d(step))
            for length in lengths:
                stage.append(layer(in_channels, channels, ONE if length == 1 else kernel))
                in_channels = channels
            if dropout:
                stage.append(nn.Dropout3d(dropout))
            stages.append(stage)
        if config == "A-LRN":
            stages[0].append(_response_norm())
        self.stages = nn.ModuleList(stages)
        if norm == "none":
            self.apply(keep_variance)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, in_channels, I, J, K) to one feature map per stage, finest first."""
        return [x := recomputed(stage, x, self.checkpointing) for stage in self.stages]

    def layouts(self) -> dict[str, dict[str, str]]:
        """Names of the convolutions and batch norms in torchvision; timm has the same.

        Torchvision counts all modules in a row, activations and poolings too. Norms that it does
        not have are left out: their convolutions go by the names in a network without norms.
        """
        batch = self.norm == "batch"
        names, number = {}, 0
        for place, stage in self.stages.named_children():
            for name, layer in stage.named_children():
                if isinstance(layer, ConvNormAct):
                    own = f"stages.{place}.{name}"
                    names[f"{own}.0"] = f"features.{number}"
                    if batch:
                        names[f"{own}.1"] = f"features.{number + 1}"
                    number += 3 if batch else 2
            number += 1  # the pooling
        return {"torchvision": names}


def _response_norm() -> nn.LocalResponseNorm:
    """Each number over (k + alpha * sum of the n nearest channels' squares) ** beta.

    Torch divides alpha by n, the paper does not.
    """
    return nn.LocalResponseNorm(LRN_SIZE, LRN_ALPHA * LRN_SIZE, LRN_BETA, LRN_K)


ENCODERS.preset("vgg11", "vgg", config="A", norm="none")
ENCODERS.preset("vgg11_lrn", "vgg", config="A-LRN", norm="none")
ENCODERS.preset("vgg13", "vgg", config="B", norm="none")
ENCODERS.preset("vgg16_c", "vgg", config="C", norm="none")
ENCODERS.preset("vgg16", "vgg", config="D", norm="none")
ENCODERS.preset("vgg19", "vgg", config="E", norm="none")
ENCODERS.preset("vgg11_bn", "vgg", config="A", norm="batch")
ENCODERS.preset("vgg13_bn", "vgg", config="B", norm="batch")
ENCODERS.preset("vgg16_bn", "vgg", config="D", norm="batch")
ENCODERS.preset("vgg19_bn", "vgg", config="E", norm="batch")

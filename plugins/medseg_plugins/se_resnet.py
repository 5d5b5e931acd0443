"""Residual network with squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507), per voxel."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ONE, THREE, Activation, Norm, Triple, conv, keep_variance
from medseg.networks.stages import cumulative, halving, per_stage, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.resnet_blocks import SQUEEZE, Shape, Style, block_of, pre_activation


@NETWORKS.register("se_resnet")
class SEResNet(nn.Module):
    """A convolution, stages of pre-activated bottlenecks with squeeze-and-excitation, scores.

    The stages are those of NiftyNet's `se_resnet`, a classifier of whole patches after He et al.
    2016 (arXiv:1603.05027). Where that takes the mean over the patch before its fully connected
    layer, here each voxel of the last stage is scored by the same layer, and the scores are brought
    to the input's size by trilinear interpolation. Its squeeze-and-excitation has no biases; here
    it has those of Hu et al.

    As an encoder for any decoder, the same stages are `resnet` with `widths: [64, 128]`, `block:
    bottleneck`, `order: v2`, `shortcut: B`, `se: true`, `norm: batch`, `activation: relu`.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        stem: Channels of the first convolution.
        widths: Channels of each stage, multiples of 4.
        width: Factor on all widths.
        blocks: Blocks of each stage. Null: one.
        strides: Step into each stage, per axis. Null: 1, then 2s.
        kernels: Kernel of each stage, per axis; the first convolution has the first. Null: 3x3x3.
        norm: Normalisation before each convolution but the first.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map inside each block.
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        stem: int = 16,
        widths: tuple[int, ...] = (64, 128),
        width: float = 1.0,
        blocks: tuple[int, ...] | None = None,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        if any(number % SQUEEZE for number in widths):
            raise ConfigError(
                f"a bottleneck's widths are multiples of {SQUEEZE}, got {widths}", ("widths",)
            )
        counts = (1,) * len(widths) if blocks is None else blocks
        same_length("blocks", counts, widths)
        stem, *inner = scaled((stem, *[number // SQUEEZE for number in widths]), width)
        steps = per_stage("strides", strides, halving(len(widths)))
        shapes = per_stage("kernels", kernels, [THREE] * len(widths))
        style = Style("bottleneck", True, "B", "v2", True, norm, activation, dropout)
        self.stem = conv(in_channels, stem, shapes[0])
        self.stages = nn.Sequential()
        before = stem
        for narrow, count, kernel, step in zip(inner, counts, shapes, steps, strict=True):
            for n in range(count):
                shape = Shape(before, SQUEEZE * narrow, kernel, ONE if n else step)
                self.stages.append(block_of(style, shape))
                before = SQUEEZE * narrow
        self.end = nn.Sequential(*pre_activation(style, before))
        self.scores = nn.Conv3d(before, classes, 1)
        total = cumulative(steps)[-1]
        self.up: nn.Module = (
            nn.Identity() if total == ONE else nn.Upsample(scale_factor=total, mode="trilinear")
        )
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.up(self.scores(self.end(self.stages(self.stem(x)))))
        return logits

"""3D U-Net (Cicek et al. 2016, arXiv:1606.06650), in the form that keeps the input's size."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.blocks import THREE, Activation, Norm, Triple, keep_variance
from medseg.networks.stages import per_stage, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.unet_blocks import Style, UPath, own_grid


@NETWORKS.register("unet3d")
class UNet3D(nn.Module):
    """Four levels of two convolutions, max pooling down, transposed convolutions up.

    The first convolution of a level downwards has half its width. With 3 channels, 3 classes and
    `norm: none` it has the 19,069,955 parameters of the paper, which leaves those of its batch
    norms out. Convolutions are padded here, so the output is not 88 voxels shorter than the input;
    NiftyNet pads and then cuts 44 voxels off each side. Its `unet` also has norms behind the
    transposed convolutions and the scores, and PReLU.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each level, finest first.
        width: Factor on all widths.
        strides: Pooling into each level, per axis; the first must be 1. Null: 2s.
        kernels: Kernel of each level's convolutions, per axis. Null: 3x3x3.
        norm: Normalisation behind each convolution.
        activation: Non-linearity.
        dropout: Probability of dropping a feature map behind each level.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        width: float = 1.0,
        strides: tuple[Triple, ...] | None = None,
        kernels: tuple[Triple, ...] | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        widths = scaled(widths, width)
        self.path = UPath(
            in_channels,
            downs=[(max(1, number // 2), number) for number in widths],
            ups=[(number, number) for number in widths[:-1]],
            steps=own_grid(strides, len(widths)),
            kernels=per_stage("kernels", kernels, [THREE] * len(widths)),
            style=Style(norm, activation, dropout),
            upsample=_transposed,
        )
        self.scores = nn.Conv3d(self.path.width, classes, 1)
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.scores(self.path(x))
        return logits


def _transposed(width: int, step: Triple) -> nn.Module:
    return nn.ConvTranspose3d(width, width, step, step, bias=False)

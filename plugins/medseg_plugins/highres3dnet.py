"""HighRes3DNet (Li et al. 2017, arXiv:1707.01992): no pooling, dilated residual blocks instead."""

from __future__ import annotations

from torch import Tensor, nn

from medseg.networks.blocks import ONE, Norm, Triple, keep_variance
from medseg.networks.stages import check_positive, same_length, scaled
from medseg.registry import NETWORKS
from medseg_plugins.highres_blocks import Nonlinearity, Style, conv_layer, highres_stage


@NETWORKS.register("highres3dnet")
class HighRes3DNet(nn.Module):
    """A convolution, three stages of residual blocks with dilation 1, 2 and 4, and 1x1x1 scores.

    The defaults are the paper's: 20 convolutions, 0.81 M parameters for 1 channel and 160 classes,
    each output voxel sees 87^3 voxels. All maps keep the input's grid: patches of any size fit, and
    memory is what limits them. Weights start as He et al. 2015 (arXiv:1502.01852) draw them.

    `highres3dnet_dropout` is the paper's second form, with 80 more maps and dropout before the
    scores. NiftyNet's `highres3dnet` always has these maps, without dropout. It puts a norm behind
    the scores, too; here they have the bias of the paper. `highres3dnet_small` and
    `highres3dnet_large` are NiftyNet's: the first works on half the resolution, the second has one
    more 3x3x3 convolution.

    Args:
        in_channels: Channels of the input.
        classes: Channels of the output.
        widths: Channels of each stage; the first convolution has those of the first.
        width: Factor on all widths.
        blocks: Residual blocks of each stage, of two convolutions each.
        dilations: Dilation of each stage.
        kernel: Kernel of all these convolutions, per axis: `[3, 3, 1]` for thick slices along k.
        stride: Step of the first convolution, per axis; a transposed one takes it back before the
            scores.
        head: Channels of further convolutions before the scores.
        head_kernel: Kernel of the first of these, per axis; the others are 1x1x1.
        dropout: Probability of dropping a feature map before the scores.
        norm: Normalisation before each convolution.
        activation: Non-linearity; the paper has "relu", NiftyNet's base form "prelu".
    """

    def __init__(  # noqa: PLR0913 (the options are the schema)
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64),
        width: float = 1.0,
        blocks: tuple[int, ...] = (3, 3, 3),
        dilations: tuple[int, ...] = (1, 2, 4),
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        head: tuple[int, ...] = (),
        head_kernel: Triple = (1, 1, 1),
        dropout: float = 0.0,
        norm: Norm = "batch",
        activation: Nonlinearity = "relu",
    ) -> None:
        super().__init__()
        same_length("widths", widths, widths)
        same_length("blocks", blocks, widths)
        same_length("dilations", dilations, widths)
        check_positive("stride", *stride)
        widths = scaled(widths, width)
        style = Style(norm, activation)
        self.stem = conv_layer(style, in_channels, widths[0], kernel, stride)
        befores = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(
            *[
                highres_stage(before, number, count, kernel, style, dilation)
                for before, number, count, dilation in zip(
                    befores, widths, blocks, dilations, strict=True
                )
            ]
        )
        self.head = nn.Sequential()
        last = widths[-1]
        for n, number in enumerate(scaled(head, width)):
            self.head.append(conv_layer(style, last, number, ONE if n else head_kernel))
            last = number
        if stride != ONE:
            self.head.extend(_upwards(last, stride, style))
        if dropout:
            self.head.append(nn.Dropout3d(dropout))
        self.scores = nn.Conv3d(last, classes, 1)
        self.apply(keep_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, I, J, K) to logits (N, classes, I, J, K)."""
        logits: Tensor = self.scores(self.head(self.stages(self.stem(x))))
        return logits


def _upwards(width: int, stride: Triple, style: Style) -> nn.Sequential:
    """A transposed convolution that undoes the step exactly, 3 long where the step is 2."""
    i, j, k = (step - 1 for step in stride)
    kernel = (2 * i + 1, 2 * j + 1, 2 * k + 1)
    bias = style.norm == "none"
    up = nn.ConvTranspose3d(width, width, kernel, stride, (i, j, k), (i, j, k), bias=bias)
    return nn.Sequential(up, *style.layers(width))


NETWORKS.preset("highres3dnet_dropout", "highres3dnet", head=(80,), dropout=0.5)
NETWORKS.preset(
    "highres3dnet_small", "highres3dnet", stride=(2, 2, 2), head=(80,), head_kernel=(3, 3, 3)
)
NETWORKS.preset("highres3dnet_large", "highres3dnet", head=(64, 64), head_kernel=(3, 3, 3))
